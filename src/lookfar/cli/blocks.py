"""Commands about blocks: blocks, cost, check."""

import sys
from typing import Annotated

import typer

from lookfar.cli._app import app


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

    from lookfar._overview import is_pattern, overview, select

    found = select(pattern, kind=kind, family=family)
    if as_json:
        print(json.dumps(found, indent=1))
    elif pattern is not None and found and not is_pattern(pattern):
        from lookfar.blocks._catalogue import page

        print(page(found[0]["name"]), end="")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(overview(found, width=width))


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
