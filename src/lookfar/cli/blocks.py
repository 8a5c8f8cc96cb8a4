"""Commands about blocks: blocks, cost, check."""

import sys
from typing import Annotated

import typer

from lookfar.cli._app import command
from lookfar.cli._complete import block_names, families, kinds


@command()
def blocks(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|PATTERN]",
            help="A block's name for its page, or a pattern such as '*local*' for a list.",
            autocompletion=block_names,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="List only context, layer, upsampler, head, region or tokens.", autocompletion=kinds
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY",
            help="List only one family: pairwise, global, channel, low_rank, sparse and others.",
            autocompletion=families,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of everything known.")] = False,
) -> None:
    """List all blocks, or show everything about one. Example: lookfar blocks criss_cross"""
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


@command()
def cost(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="BLOCK...",
            help="Blocks to measure, such as nonlocal 'nonlocal(mode=gaussian)' my.py:MyBlock.",
            autocompletion=block_names,
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Size of the feature map; LENGTH with dims=1, TxHxW with dims=3. [default: 64x64]"
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Channels of the feature map. [default: 256; 32 with --grow]")
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Also measure at 64x64 to 256x256, and fit how time and memory grow.")
    ] = False,
    backward: Annotated[
        bool, typer.Option("--backward", help="Measure the forward and the backward pass, as in training.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure this network (small, resnet18) as it is, then with each block in it. [default: blocks alone]",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where a block goes in the host; a layer replaces convolutions, as in 'layer3.*.conv2'. "
            "[default: none; --host needs one]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Measure parameters, FLOPs, time and peak memory of blocks. Example: lookfar cost criss_cross --size 97x97"""
    if host is not None or at is not None:
        from lookfar.study.costs import print_costs_in

        others = {"--channels": channels is not None, "--grow": grow, "--device": device != "cpu"}
        print_costs_in(host, names, at, size, others=others, backward=backward, as_json=as_json)
        return
    from lookfar.cost.printing import print_costs

    print_costs(names, size, channels=channels, grow=grow, backward=backward, device=device, as_json=as_json)


@command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:CLASS",
            help="A module of yours; package.module:CLASS or a block's name will do too.",
            autocompletion=block_names,
        ),
    ],
    channels: Annotated[int, typer.Option(metavar="N", help="Channels of the input, handed to the constructor.")] = 64,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the input; LENGTH or TxHxW too. [default: 16x16]")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A further option of the constructor; may be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMISE", help="Test only this promise, such as images; may be repeated."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail on growth, and on a block that is not the identity as built.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test what a module promises; exit with 1 if something breaks. Example: lookfar check my_module.py:MyBlock"""
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
