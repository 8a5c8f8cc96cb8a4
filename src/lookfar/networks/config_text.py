"""Configurations as training files hold them: Python text of literals and ``dict(...)``, read and never run."""

import ast
from dataclasses import dataclass
from typing import Any

_LONGEST = 1_000_000  # characters; a configuration has some ten thousand


@dataclass(frozen=True)
class Unread:
    """Stands for an expression that would have to be run."""

    text: str

    def __repr__(self) -> str:
        return self.text


def read_config(text: str) -> dict[str, Any]:
    """What the assignments of a configuration say, by name.

    Literals, ``dict(...)`` and names that were assigned before are read; anything else becomes :class:`Unread`.

    Raises:
        ValueError: It is no Python.

    >>> read_config("norm = dict(type='BN')\\nmodel = dict(depth=50, norm_cfg=norm, run=print('no'))")["model"]
    {'depth': 50, 'norm_cfg': {'type': 'BN'}, 'run': print('no')}
    """
    if len(text) > _LONGEST:
        raise ValueError(f"a configuration of {len(text)} characters is not read")
    known: dict[str, Any] = {}
    try:
        for line in ast.parse(text).body:
            if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
                known[line.targets[0].id] = _value(line.value, known)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the configuration cannot be read: {(str(error) or 'too deep').splitlines()[0]}") from None
    return known


def unread_in(value: Any, name: str = "") -> tuple[str, Unread] | None:
    """The first expression within a value that was not read, and where it stands."""
    if isinstance(value, Unread):
        return name, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (unread_in(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next(filter(None, found), None)


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    if isinstance(node, ast.List):
        return [_value(element, known) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element, known) for element in node.elts)
    pairs: list[tuple[ast.expr | None, ast.expr]] | None = None
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        pairs = [(None, argument) for argument in node.args]
        pairs += [(None if k.arg is None else ast.Constant(k.arg), k.value) for k in node.keywords]
    return Unread(ast.unparse(node)) if pairs is None else _dictionary(node, pairs, known)


def _dictionary(node: ast.expr, pairs: list[tuple[ast.expr | None, ast.expr]], known: dict[str, Any]) -> Any:
    found: dict[Any, Any] = {}
    for key, part in pairs:
        value = _value(part, known)
        if key is None and isinstance(value, dict):  # **other
            found |= value
        elif isinstance(key, ast.Constant):
            found[key.value] = value
        else:
            return Unread(ast.unparse(node))
    return found
