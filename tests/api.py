"""The public names, their signatures, the blocks' options and the commands, as ``tests/api.txt`` lists them.

python tests/api.py     # writes the list: a line that changes or goes is a change that users notice
"""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

import lookfar
from lookfar import cli
from lookfar.blocks import block_info, list_blocks

FILE = Path(__file__).with_suffix(".txt")
HEAD = "# Written by `make api`. A line that changes or goes is a change that users notice: see CONTRIBUTING.md.\n"


def listed() -> str:
    """The whole list, a line a name."""
    modules = ["lookfar", *(f"lookfar.{name}" for name in sorted(lookfar._MODULES))]
    lines = [line for module in modules for line in of_module(module)]
    lines += [f"block {name}{signature(block_info(name).cls)}" for name in list_blocks()]
    for name, command in sorted(typer.main.get_command(cli.app).commands.items()):
        options = sorted("/".join([*param.opts, *param.secondary_opts]) for param in command.params)
        lines.append(f"command {name} {' '.join(options)}")
    return HEAD + "\n".join(lines) + "\n"


def of_module(name: str) -> Iterator[str]:
    """The names of one module; what it takes from another is listed there as well, since both imports work."""
    module = import_module(name)
    for public in sorted(module.__all__):
        value = getattr(module, public)
        if inspect.isclass(value):
            yield f"{name}.{public}{signature(value)}"
            fields = getattr(value, "__dataclass_fields__", ())  # those stand in the signature
            for method in sorted(dir(value)):
                if not method.startswith("_") and method not in fields and _is_ours(value, method):
                    yield f"{name}.{public}.{method}{signature(inspect.getattr_static(value, method))}"
        else:
            yield f"{name}.{public}{signature(value)}"


def signature(value: Any) -> str:
    """Names, order and defaults of parameters; annotations are written differently by versions of Python."""
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    if not callable(value):
        return ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):  # exceptions and protocols
        return "(...)"
    parameters = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default if parameter.default is inspect.Parameter.empty else _Written(parameter.default),
        )
        for parameter in found.parameters.values()
    ]
    # the order of what is given by name is nobody's concern
    parameters.sort(key=lambda p: (p.kind, p.name if p.kind is inspect.Parameter.KEYWORD_ONLY else ""))
    return str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class _Written:
    """A default as it is read: functions and classes by name, everything else as itself."""

    def __init__(self, value: Any) -> None:
        self.text = getattr(value, "__qualname__", None) or repr(value)

    def __repr__(self) -> str:
        return self.text


def _is_ours(cls: type, name: str) -> bool:
    """Whether a method comes from this library: those of ``nn.Module`` and of tuples are not ours to keep."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    return owner.__module__.startswith("lookfar")


if __name__ == "__main__":
    FILE.write_text(listed(), encoding="utf-8")
