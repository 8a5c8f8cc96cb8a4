"""Commands about studies: study, report."""

from pathlib import Path
from typing import Annotated

import typer

from lookfar.cli._app import app


@app.command()
def study(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.YAML|FOLDER]", help="A plan; options replace entries.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="PATH, classify:PATH, scenes:lookup, scenes:match, camvid:PATH, cifar10:PATH ...")
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="'nonlocal,cbam@layer3,my.py:MyBlock' ...")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="segmentation, classification, my.py:Regression. (default as the data are labelled)"),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The score of a classification: accuracy or balanced.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions of everything. (default 3)")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a trial.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="The study's folder. (default runs/ and the name of the data)")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="small, patch, a timm network such as resnet18, or my.py:build.")
    ] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Start from timm's weights.")] = None,
    host_weights: Annotated[str | None, typer.Option(metavar="FILE", help="Start from these weights.")] = None,
    norm: Annotated[str | None, typer.Option(help="batch: instead of the LayerNorms of a host on tokens.")] = None,
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
    crop_pct: Annotated[
        float | None, typer.Option(help="Share of the shorter side that validation sees (classification).")
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror images (classification).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="onecycle, cosine or poly.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    class_weights: Annotated[str | None, typer.Option(metavar="W,W", help="Of each class in the loss.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the target spread over all classes (classification).")
    ] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Lay images over each other, by Beta(a, a) (classification).")
    ] = None,
    cutmix: Annotated[float | None, typer.Option(help="Paste in a part of another, likewise (classification).")] = None,
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
