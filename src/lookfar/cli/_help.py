"""Help as plain text, which fits every terminal: no name, value or default is cut, and nothing is read as markup."""

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer.core

WIDEST = 100  # lines longer than this are hard to read
BESIDE = 60  # narrower than this, what an option does stands below its name
GAP = 2


class Command(typer.core.TyperCommand):
    """A command whose help is written by :func:`page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))


class Group(typer.core.TyperGroup):
    """The program, which lists its commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))


def page(command: Any, ctx: Any, width: int | None = None) -> str:
    """The help of a command: how it is called, what it does, an example, arguments, options by group, commands.

    Args:
        command: As typer builds it.
        ctx: Its context, which knows by what name it was called.
        width: Of a line; that of the terminal by default, ``WIDEST`` at most.
    """
    width = max(min(width or shutil.get_terminal_size().columns, WIDEST), 24)
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    arguments = [param for param in params if param.param_type_name == "argument"]
    called = [ctx.command_path, *map(name_of, arguments), "[OPTIONS]"]
    if commands := getattr(command, "commands", {}):
        called = [ctx.command_path, "COMMAND", "[OPTIONS]"]
    said, example = parts(command.help or "")
    lines = [*_wrap(f"Usage: {' '.join(called)}", width, "       "), "", *_wrap(said, width)]
    if example:
        lines += ["", f"Example: {example}"]  # one line, so that it can be pasted
    if commands:
        rows = [(name, parts(one.help or "")[0]) for name, one in commands.items()]
        lines += ["", "Commands", *_rows(rows, width)]
    if arguments:
        lines += ["", "Arguments", *_rows([(name_of(p), explained(p)) for p in arguments], width)]
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if param.param_type_name != "argument":
            panel = getattr(param, "rich_help_panel", None) or "Options"
            groups.setdefault(panel, []).append((name_of(param), explained(param)))
    for title, rows in groups.items():
        lines += ["", title, *_rows(rows, width)]
    return "\n".join(lines) + "\n"


def parts(text: str) -> tuple[str, str]:
    """What a command does, and its example, from its docstring.

    >>> parts("Make the report again. Example: lookfar report runs/a")
    ('Make the report again.', 'lookfar report runs/a')
    """
    said, _, example = " ".join(inspect.cleandoc(text).split()).partition("Example: ")
    return said.strip(), example.strip()


def name_of(param: Any) -> str:
    """An option with its value, an argument as it stands in the usage."""
    if param.param_type_name == "argument":
        return param.metavar or str(param.name).upper()
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += f"/{param.secondary_opts[0]}"
    return names if is_switch(param) else f"{names} {param.metavar or str(param.name).upper()}"


def is_switch(param: Any) -> bool:
    """Whether an option takes no value."""
    return bool(getattr(param, "is_flag", False))


def explained(param: Any) -> str:
    """What a parameter means, then what holds without it."""
    said = getattr(param, "help", None) or ""
    if param.required and param.param_type_name != "argument":
        return f"{said} [required]"
    default = param.default
    if is_switch(param) or default in (None, "", (), []) or callable(default):
        return said  # what fits the data or the network says so in its own words
    return f"{said} [default: {default}]"


def _rows(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Names on the left; what they mean beside them or, where that leaves too little room, below."""
    rows = list(rows)
    left = max((len(name) for name, _ in rows if len(name) <= width // 3), default=0)
    for name, said in rows:
        if width >= BESIDE and len(name) <= left:
            first, *rest = _wrap(said, width - left - 2 * GAP) or [""]
            yield f"{'':{GAP}}{name:{left + GAP}}{first}".rstrip()
            yield from (f"{'':{left + 2 * GAP}}{line}" for line in rest)
            continue
        indent = left + 2 * GAP if width >= BESIDE else 3 * GAP
        yield f"{'':{GAP}}{name}"
        yield from (f"{'':{indent}}{line}" for line in _wrap(said, width - indent))


def _wrap(text: str, width: int, further: str = "") -> list[str]:
    # names of files and commands stay whole, though a line becomes too long
    return textwrap.wrap(text, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)
