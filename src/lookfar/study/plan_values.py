"""Entries of a plan out of a file, a command line or a notebook: what is read, how much of it, and what is refused."""

import math
import re
from pathlib import Path
from typing import Any

from lookfar._tables import shorten
from lookfar.study.candidates import split_candidates

PLAN_BYTES, PLAN_VALUES, PLAN_DEPTH = 100_000, 2000, 3


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The entries of a ``study.yaml``, unchecked.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No flat list of ``name: value``.
    """
    import yaml

    path = Path(path)
    where = shorten(str(path), 100)
    if not path.is_file():
        raise FileNotFoundError(f"no plan at {where}")
    with path.open("rb") as file:
        content = file.read(PLAN_BYTES + 1)
    if len(content) > PLAN_BYTES:
        raise ValueError(f"{where} is not a plan: it has more than {PLAN_BYTES // 1000} kB")
    try:
        values = _flat(content.decode())
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # an integer of 5000 digits and bytes that are no text are ValueErrors
        raise ValueError(f"{where} is not the YAML of a plan: {shorten(' '.join(str(error).split()), 120)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a plan: want lines of `name: value`, as in `data: scenes:lookup`")
    return values


def _flat(text: str) -> Any:
    """What a YAML text holds, where it is as flat as a plan: other texts could keep a machine busy for hours."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("a plan has no aliases (`*name`)")
            self.depth, self.nodes = self.depth + 1, self.nodes + 1
            if self.depth > PLAN_DEPTH:
                raise ValueError("a plan is flat: names, values and lists of values")
            if self.nodes > PLAN_VALUES:
                raise ValueError(f"a plan has no more than {PLAN_VALUES} names and values")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{twice!r} is named twice")
            return super().construct_mapping(node, deep)

    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_value(name: str, kind: str, value: Any) -> Any:
    """A field's value from what a file, a command line or a notebook gives; the annotation says what is wanted."""
    optional = kind.endswith(" | None")
    kind = kind.removesuffix(" | None")
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}.get(kind, kind)
    if value is None and optional:
        return None
    if kind == "tuple[str, ...]":
        items = split_candidates(value) if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(items)
        wanted = "names with commas between them, or a list"
    elif kind == "tuple[int | str, ...]":
        items = _values(value)
        if items is not None:
            return tuple(items)
        wanted = "whole numbers, or colours as '#rrggbb', with commas between them, or a list"
    elif kind == "tuple[float, ...]":
        value = _weights(value) if isinstance(value, str) else value
        if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
            return tuple(float(v) for v in value)
        wanted = "a list of numbers"
    elif kind == "tuple[int, int]":
        items = _numbers(value.replace("x", ",").replace("×", ",") if isinstance(value, str) else value)
        if items is not None and len(items) in (1, 2) and min(items) > 0:
            return (items[0], items[-1])
        wanted = "height and width, as in 180x240"
    elif kind == "str" and value == "":
        wanted = "text with something in it"
    elif isinstance(value, {"bool": bool, "str": str}.get(kind, ())):
        return value
    elif kind in ("int", "float") and not isinstance(value, bool):
        try:  # YAML reads 3e-3 as text
            number = float(value if isinstance(value, int | float | str) else math.nan)
        except (ValueError, OverflowError):
            number = math.nan
        if kind == "float" and not math.isnan(number):
            return number
        if number.is_integer():
            return int(number)
    raise ValueError(f"{name} must be {wanted}, got {as_shown(value)}")


def as_shown(value: Any) -> str:
    """A value as it stands in a message; numbers of thousands of digits have no text at all."""
    try:
        return shorten(repr(value), 80)
    except ValueError:
        return "a very large number"


def _numbers(value: Any) -> list[int] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, str):
        value = [int(part) if part.strip().isdigit() else part for part in value.split(",")]
    if isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return list(value)
    return None


def _weights(text: str) -> Any:
    """Numbers out of ``1,0.5,2``; the text itself where it is none."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def _values(value: Any) -> list[int | str] | None:
    """Values of masks; :func:`lookfar.data.open_data` reads what they mean."""
    items: list[int | str] = []
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, str):
            words = [word.strip() for word in part.split(",")]
            if not all(re.fullmatch(r"\d+(-\d+)?|#[0-9a-fA-F]+", word) for word in words):
                return None
            items += [int(word) if word.isdecimal() else word for word in words]
        elif isinstance(part, int) and not isinstance(part, bool):
            items.append(part)
        else:
            return None
    return items
