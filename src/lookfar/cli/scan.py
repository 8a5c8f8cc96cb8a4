"""The command that tries many blocks for a few steps: scan."""

from pathlib import Path
from typing import Annotated

import typer

from lookfar.cli._app import command
from lookfar.cli._complete import block_names, data_sets, places
from lookfar.cli._shared import DATA, HOST_WEIGHTS, NETWORK, OUTPUT_STRIDE, PRETRAINED, SIZE, VAL

RUNNING = "Running"


@command()
def scan(
    trial: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRIAL|STUDY]", help="The trial of a baseline, or its study. [default: a host is trained first]"
        ),
    ] = None,
    blocks: Annotated[
        str,
        typer.Option(
            metavar="BLOCK,BLOCK",
            help="Blocks to try, with options and places as in `lookfar study`.",
            autocompletion=block_names,
            rich_help_panel=NETWORK,
        ),
    ] = "",
    at: Annotated[
        str | None,
        typer.Option(
            "--places",
            metavar="MODULE,MODULE",
            help="Where each block goes, one after the other. [default: where the study's go]",
            autocompletion=places,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Your images, for a host that is trained first; or where a trial's data are now.",
            autocompletion=data_sets,
            rich_help_panel=DATA,
        ),
    ] = None,
    size: SIZE = None,
    val: VAL = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="Host to train first. [default: as a study's]", rich_help_panel=NETWORK),
    ] = None,
    pretrained: PRETRAINED = None,
    host_weights: HOST_WEIGHTS = None,
    output_stride: OUTPUT_STRIDE = None,
    host_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps of its training. [default: a study's]", rich_help_panel=NETWORK),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each block alone.", rich_help_panel=RUNNING)] = 200,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="How often each block is drawn and trained.", rich_help_panel=RUNNING)
    ] = 2,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for scan.json, and the study of a host trained first. [default: none; runs/ and the data's "
            "name for a host]",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Try many blocks and places for a few steps each in a frozen network, to choose what a study compares.

    Example: lookfar scan runs/mine --blocks nonlocal --places layer3,layer4
    """
    from lookfar.scan.command import scan_command

    host_options = {
        "data": data, "size": size, "val": val, "host": host, "pretrained": pretrained, "host_weights": host_weights,
        "output_stride": output_stride, "steps": host_steps,
    }  # fmt: skip
    raise SystemExit(
        scan_command(trial, blocks, places=at, seeds=seeds, steps=steps, out=out, as_json=as_json, host=host_options)
    )
