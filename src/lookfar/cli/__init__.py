"""The command line: parses, calls the library, prints. Nothing heavy is imported before a command needs it."""

import io
import os
import sys

# trials and measurements set their own thread count; OpenMP spins when processes outnumber cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

# commands stand in the help in the order of their import
from lookfar.cli import blocks, networks, study, scan, insight  # isort: skip
from lookfar.cli._app import app
from lookfar.cli._messages import usage, user_error

__all__ = ["app", "blocks", "insight", "main", "networks", "scan", "study"]


def main() -> None:
    """Run the command line; mistakes of the user end in a message and exit code 2, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no UTF-8 ends no command
    try:
        code = app(standalone_mode=False)
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has left
            return
        if os.environ.get("LOOKFAR_TRACEBACK"):
            raise
        user_error(error)
    except Exception as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "Abort":
            raise SystemExit(130) from None
        if type(error).__name__ == "NoArgsIsHelpError":
            if context is not None:
                print(context.get_help())
            raise SystemExit(2) from None
        if not hasattr(error, "format_message"):  # typer's errors have one; older versions take them from click
            raise
        user_error(ValueError(usage(error)))
    if isinstance(code, int) and code:
        raise SystemExit(code)
