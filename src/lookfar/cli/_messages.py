"""What is printed when a command cannot be followed: one message, no traceback."""

import re
import sys
import textwrap
from typing import Any, NoReturn

# as the versions of typer say it
NUMBERS = {"valid integer": "an integer", "valid number": "a number", "valid float": "a number"}


def usage(error: Any) -> str:
    """What is wrong with a command line, in the voice of all other messages; typer's own takes a box of six lines."""
    param, said = getattr(error, "param", None), error.format_message()
    kind = next((ours for theirs, ours in NUMBERS.items() if theirs in said), None)
    if kind is not None and param is not None:
        option = param.opts[0]
        values = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == option]
        values += [a.partition("=")[2] for a in sys.argv if a.startswith(f"{option}=")]
        said = f"{option.lstrip('-').replace('-', '_')} must be {kind}" + (f", got {values[-1]!r}" if values else "")
    command = getattr(getattr(error, "ctx", None), "command_path", "lookfar")
    said = said.rstrip(".")
    return f"{said}{'' if said.endswith('?') else '.'} `{command} --help` says what is accepted."


_LONG = re.compile(r"\S{73,}")


def _cut(word: re.Match[str]) -> str:
    """A path or value that no line holds, without its middle."""
    return f"{word[0][:36]}…{word[0][-35:]}"


def user_error(error: Exception) -> NoReturn:
    """At most three lines on stderr and exit code 2: the user can put it right. One line and 1 if the system fails."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        if not isinstance(error, FileNotFoundError):  # a full disk, a folder that is read only, a file in its place
            print(f"lookfar: {_LONG.sub(_cut, message)}", file=sys.stderr)
            raise SystemExit(1)
    first, *own = f"lookfar: {_LONG.sub(_cut, message)}".splitlines()  # lists of differences bring lines of their own
    wrap = {"width": 80, "break_long_words": False, "break_on_hyphens": False}
    print("\n".join([*textwrap.wrap(first, max_lines=3, placeholder=" …", **wrap), *own]), file=sys.stderr)
    raise SystemExit(2)
