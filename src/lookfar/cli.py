"""The command line: parses, calls the library, prints. Nothing heavy is imported before a command needs it."""

import os
import sys
from typing import NoReturn

# trials and measurements set their own thread count; OpenMP spins when processes outnumber cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer

app = typer.Typer(
    name="lookfar",
    help="Visual attention that looks far: which block helps your network on your data, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Keeps `lookfar COMMAND` a group even while it has one command."""


def _user_error(error: Exception) -> NoReturn:
    """One line on stderr and exit code 2: the user can put it right."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    print(f"lookfar: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Run the command line; mistakes of the user end in one line and exit code 2, no traceback."""
    try:
        app()
    except (ValueError, TypeError, FileNotFoundError) as error:
        if os.environ.get("LOOKFAR_TRACEBACK"):
            raise
        _user_error(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has left


if __name__ == "__main__":
    main()
