"""Commands that look into networks: explore, simplify, claims, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from lookfar.cli._app import app


@app.command()
def explore(
    networks: Annotated[
        list[str], typer.Argument(metavar="TRIAL|FILE...", help="Folders of trials, or files of published networks.")
    ],
    port: Annotated[int, typer.Option(help="Of the page; 0 is a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in the browser.")] = False,
) -> None:
    """A page on this computer: click a pixel of your image, see where blocks look.

    Example: lookfar explore runs/lookup/trials/nonlocal/0
    """
    from lookfar.explorer.command import explore_command

    raise SystemExit(explore_command(networks, port=port, browser=browser))


@app.command()
def simplify(
    trial: Annotated[Path, typer.Argument(metavar="TRIAL", help="Folder STUDY/trials/CANDIDATE/SEED.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the new network goes; nothing is overwritten.")],
    to: Annotated[
        str, typer.Option(help="auto, or none, average, one-map, global_context in the block's place.")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Of distillation to the block's own output.")] = 0,
    label_steps: Annotated[int, typer.Option(help="Then of training the new block with labels.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write it although the score says that it loses.")] = False,
    margin: Annotated[float | None, typer.Option(help="Points of the score that do not count. (the plan's)")] = None,
    images: Annotated[int, typer.Option(help="Training images that the new block is fitted on, at most.")] = 64,
    data: Annotated[str | None, typer.Option(help="Where the data lie now, if elsewhere.")] = None,
) -> None:
    """Put a cheaper block, or none, in a block's place where the score allows it; exit 1 if it does not.

    Example: lookfar simplify runs/red/trials/nonlocal/0 --out runs/red-simple
    """
    from lookfar.study.simplified import simplify_command

    options = {"to": to, "steps": steps, "label_steps": label_steps, "force": force, "margin": margin, "images": images}
    raise SystemExit(simplify_command(trial, out, data=data, **options))


@app.command()
def claims(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CLAIM...]", help="Such as c3 c25; all without.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all as a page of Markdown.")] = None,
) -> None:
    """Claims of papers that seconds of a CPU decide: confirmed, refuted or open. Example: lookfar claims c3 c25"""
    from lookfar.claims import EXACT, claim_of, document, run_claim
    from lookfar.study._files import write_text

    for name in names or EXACT:
        claim_of(name)  # refuse all before one is run
    outcomes = {}
    for name in names or EXACT:
        outcomes[name] = run_claim(name)
        print(f"{name}  {claim_of(name).says}\n    {outcomes[name].word}: {outcomes[name].found}", flush=True)
    if out is not None:
        write_text(out, document(outcomes))


@app.command()
def inspect(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRIAL|STUDY|FILE [IMAGE...]",
            help="Folder of a trial or a study (all blocks, seed 0), or a published file; then images or folders.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Look at this data, with its labels. (default what a trial was trained on)")
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="A network of your own, instead of a target.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="Its weights.")] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A pixel whose maps are drawn; repeatable.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of images, as the network sees them. (default of the first)")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points of the score that practically do not count. (default 0.5)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where page and pictures go. (default inspect)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list; page and pictures with --out alone.")] = False,
) -> None:
    """What could take the place of a block, and where does it look? Example: lookfar inspect runs/lookup"""
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
