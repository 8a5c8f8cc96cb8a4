"""The command line: parses, calls the library, prints. Nothing heavy is imported before a command needs it."""

import os
import sys
from typing import Annotated, NoReturn

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


@app.command()
def blocks(
    pattern: Annotated[str | None, typer.Argument(help="A name for its page, or a pattern such as '*local*'.")] = None,
    kind: Annotated[str | None, typer.Option(help="context, layer, upsampler, head, region or tokens.")] = None,
    family: Annotated[str | None, typer.Option(help="pairwise, global, channel, low_rank, sparse ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list with all that is known.")] = False,
) -> None:
    """The catalogue of blocks, or all about one. Example: lookfar blocks criss_cross"""
    import json
    import shutil

    from lookfar.blocks import _catalogue

    names = _catalogue.select(pattern, kind=kind, family=family)
    if as_json:
        print(json.dumps([_catalogue.facts(name) for name in names], indent=1))
    elif pattern is not None and names and not {"*", "?", "["} & set(pattern):
        print(_catalogue.page(names[0]), end="")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(_catalogue.overview(names, width=width))


@app.command()
def cost(
    names: Annotated[list[str], typer.Argument(metavar="BLOCK...", help="Such as nonlocal 'nonlocal(mode=gaussian)'.")],
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the feature map.")] = "64x64",
    channels: Annotated[
        int | None, typer.Option(help="Channels of the feature map. [default: 256; 32 with --grow]")
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Measure at 64x64 to 256x256 as well, and fit how time and memory grow.")
    ] = False,
    backward: Annotated[bool, typer.Option("--backward", help="Forward and backward pass, as in training.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Parameters, FLOPs, time and peak memory of blocks, measured. Example: lookfar cost criss_cross --size 97x97"""
    from lookfar._cost_tables import print_costs

    print_costs(names, size, channels=channels, grow=grow, backward=backward, device=device, as_json=as_json)


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
