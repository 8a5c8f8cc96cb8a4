"""The command line: parses, calls the library, prints. Nothing heavy is imported before a command needs it."""

import io
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
    names: Annotated[
        list[str], typer.Argument(metavar="BLOCK...", help="Such as nonlocal 'nonlocal(mode=gaussian)' my.py:MyBlock.")
    ],
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of the feature map; LENGTH or TxHxW for dims=1 or 3. [default: 64x64]"),
    ] = None,
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
    from lookfar.cost.tables import print_costs

    print_costs(names, size, channels=channels, grow=grow, backward=backward, device=device, as_json=as_json)


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="FILE.py:CLASS", help="Or package.module:CLASS, or a block's name.")],
    channels: Annotated[int, typer.Option(help="Channels of the input, given to the constructor.")] = 64,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the input; LENGTH or TxHxW too. [default: 16x16]")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A further option of the constructor; repeatable.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Ask this promise alone, such as images; repeatable.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Growth and the distance from the identity fail too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a module promises, what breaks and how; exit 1 if it does. Example: lookfar check my_module.py:MyBlock"""
    from lookfar.check.show import check_command

    raise SystemExit(
        check_command(
            target,
            channels=channels,
            size=size,
            options=option or [],
            only=only or [],
            strict=strict,
            as_json=as_json,
        )
    )


@app.command()
def study(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.YAML|FOLDER]", help="A plan; options replace entries.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="scenes:lookup, scenes:cue, camvid:PATH, voc:PATH or PATH.")] = None,
    blocks: Annotated[str | None, typer.Option(help="'nonlocal,cbam@layer3,my.py:MyBlock' ...")] = None,
    task: Annotated[str | None, typer.Option(help="segmentation, or my.py:Regression. (default segmentation)")] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions of everything. (default 3)")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a trial.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="The study's folder. (default runs/ and the name of the data)")
    ] = None,
    host: Annotated[str | None, typer.Option(help="small, a timm network such as resnet18, or my.py:build.")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Start from timm's weights.")] = None,
    host_weights: Annotated[str | None, typer.Option(metavar="FILE", help="Start from these weights.")] = None,
    output_stride: Annotated[int | None, typer.Option(help="Of the feature map: 8, 16 or 32.")] = None,
    place: Annotated[str | None, typer.Option(help="Stage or module after which blocks go.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="What the network sees.")] = None,
    val: Annotated[str | None, typer.Option(metavar="FOLDER|SEQUENCE", help="Validate on this instead.")] = None,
    also_val: Annotated[
        str | None, typer.Option(metavar="FOLDER|SEQUENCE", help="A second set to judge by, used for nothing else.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Mask values to ignore beside 255.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="V,V", help="Mask value of class 0, 1, ...: 0,255")] = None,
    classes: Annotated[int | None, typer.Option(help="How many, where no classes.txt says it.")] = None,
    exif: Annotated[str | None, typer.Option(help="apply or ignore, where masks fit both ways.")] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Skip damaged images.")] = None,
    in_chans: Annotated[int | None, typer.Option(help="Bands of the images. (default 3)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="onecycle, cosine or poly.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    score: Annotated[
        str | None, typer.Option(help="resized: masks at --size; original: predictions at each file's size.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu, cuda or mps. (default cuda where it is)")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices of one trial. (default 1)")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials side by side. (default one a core or GPU)")] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Also write a TensorBoard log.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points of the score that practically do not count. (0.5)")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(metavar="REGEX|none", help="Validation images that belong together, by their names.")
    ] = None,
) -> None:
    """Compare blocks in one network on your images; run it again to go on, or with more seeds and blocks.

    Example: lookfar study --data scenes:lookup --blocks nonlocal,global_context --seeds 3 --out runs/lookup
    """
    from lookfar.study.command import run_command

    options = {k: v for k, v in locals().items() if k not in ("plan", "out", "workers", "run_command")}
    if out == "":  # as a path it would be the folder in which the command is run
        raise ValueError("out must be a folder, got ''")
    raise SystemExit(run_command(plan, options, out=None if out is None else Path(out), workers=workers))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    margin: Annotated[float | None, typer.Option(help="Points of the score that practically do not count.")] = None,
    groups: Annotated[
        str | None, typer.Option(metavar="REGEX|none", help="Validation images that belong together, by their names.")
    ] = None,
) -> None:
    """Make a study's report and tables again from its files. Example: lookfar report runs/lookup --margin 1"""
    from lookfar.study.command import report_command

    raise SystemExit(report_command(folder, margin=margin, groups=groups))


# as the versions of typer say it
NUMBERS = {"valid integer": "an integer", "valid number": "a number", "valid float": "a number"}


def _usage(error: Any) -> str:
    """What is wrong with a command line, in the voice of all other messages; typer's own takes a box of six lines."""
    param, said = getattr(error, "param", None), error.format_message()
    kind = next((ours for theirs, ours in NUMBERS.items() if theirs in said), None)
    if kind is not None and param is not None:
        option = param.opts[0]
        values = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == option]
        values += [a.partition("=")[2] for a in sys.argv if a.startswith(f"{option}=")]
        said = f"{option.lstrip('-').replace('-', '_')} must be {kind}" + (f", got {values[-1]!r}" if values else "")
    command = getattr(getattr(error, "ctx", None), "command_path", "lookfar")
    return f"{said.rstrip('.')}. `{command} --help` says what is accepted."


_LONG = re.compile(r"\S{73,}")


def _cut(word: re.Match[str]) -> str:
    """A path or value that no line holds, without its middle."""
    return f"{word[0][:36]}…{word[0][-35:]}"


def _user_error(error: Exception) -> NoReturn:
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
        _user_error(error)
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
        _user_error(ValueError(_usage(error)))
    if isinstance(code, int) and code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
