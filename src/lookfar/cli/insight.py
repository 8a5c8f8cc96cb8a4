"""Commands that look into networks: explore, simplify, claims, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from lookfar.cli._app import command


@command()
def explore(
    networks: Annotated[
        list[str], typer.Argument(metavar="TRIAL|FILE...", help="Folders of trials, or files of published networks.")
    ],
    port: Annotated[int, typer.Option(metavar="N", help="Port of the page; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
) -> None:
    """Open a page on this computer: click a pixel of your image and see where blocks look.

    Example: lookfar explore runs/lookup/trials/nonlocal/0
    """
    from lookfar.explorer.command import explore_command

    raise SystemExit(explore_command(networks, port=port, browser=browser))


@command()
def simplify(
    target: Annotated[
        str,
        typer.Argument(metavar="TRIAL|NETWORK", help="A trial, or with --data a network's file, address or folder."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the new network; nothing is overwritten.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What takes the block's place: none, average, one-map or global_context; auto tries the first three.",
        ),
    ] = "auto",
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of distillation to the block's own output.")] = 0,
    label_steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of training the new block on labels afterwards.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the network even if it loses more than the margin.")
    ] = False,
    margin: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="How many points of the score may be lost. [default: the plan's, or 0.5]"),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="Training images to fit the new block on, at most.")] = 64,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled data to judge a network on; or where a trial's data are now."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size at which a network sees them. [default: by the data]")
    ] = None,
) -> None:
    """Replace a block by a cheaper one, or by none, if the score allows it; exit with 1 if it does not.

    Example: lookfar simplify runs/red/trials/nonlocal/0 --out runs/red-simple
    """
    from lookfar.insight.simplifying import simplify_command

    options = {"to": to, "steps": steps, "label_steps": label_steps, "force": force, "margin": margin, "images": images}
    raise SystemExit(simplify_command(target, out, data=data, size=size, **options))


@command()
def claims(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CLAIM...]", help="Claims such as c3 c25. [default: all]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the outcomes as a Markdown page.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Run the trainings that the claims need, as far as they are not done.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Trainings that run side by side. [default: one per core or GPU]")
    ] = None,
) -> None:
    """Test claims of papers that a CPU can settle, in seconds or, with --train, by small trainings.

    Example: lookfar claims c3 c25
    """
    from lookfar.claims.command import claims_command

    raise SystemExit(claims_command(names or [], out, train=train, workers=workers))


@command()
def inspect(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRIAL|STUDY|NETWORK [IMAGE...]",
            help="A trial, a study (all its blocks, seed 0) or a network's file or folder; then images or folders.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled data to look at. [default: what the trial was trained on]"),
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="A network of your own instead of a trial.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its weights, or those of a network given by its name.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A pixel whose maps are drawn; may be repeated.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size that the network sees. [default: that of the first image]"),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Differences of up to so many points count as practically none. [default: 0.5]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the page and the pictures. [default: inspect]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list; write page and pictures only with --out.")
    ] = False,
) -> None:
    """Find what could take a block's place, and see where it looks. Example: lookfar inspect runs/lookup"""
    from lookfar.insight.command import inspect_command

    first, *rest = [*(target or []), None] if network is None else [None, *(target or [])]
    raise SystemExit(
        inspect_command(
            first,
            [path for path in rest if path is not None],
            data=data,
            network=network,
            weights=weights,
            queries=query or [],
            size=size,
            margin=margin,
            out=out,
            as_json=as_json,
        )
    )
