"""Commands about studies: study, report."""

from pathlib import Path
from typing import Annotated

import typer

from lookfar.cli._app import command
from lookfar.cli._complete import block_names, data_sets, places
from lookfar.cli._shared import (
    CLASSES,
    DATA,
    EXIF,
    GROUPS,
    HOST_WEIGHTS,
    IGNORE,
    LABELS,
    MARGIN,
    NETWORK,
    OUTPUT_STRIDE,
    PRETRAINED,
    SIZE,
    VAL,
)

TRAINING, JUDGING, RUNNING = "Training", "Judging", "Running"


@command()
def study(
    plan: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PLAN.yaml|STUDY]", help="A plan, or the folder of a study; options replace its entries."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Your images: a PATH, classify:PATH, camvid:PATH, cifar10:PATH ...; or scenes:lookup, scenes:match, "
            "which come along.",
            autocompletion=data_sets,
            rich_help_panel=DATA,
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCK,BLOCK",
            help="Blocks to compare, with options and places: 'nonlocal,cbam@layer3,my.py:MyBlock(heads=2)'.",
            autocompletion=block_names,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="segmentation, classification or a class of yours, my.py:Regression. [default: by the labels]",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="The score of a classification: accuracy or balanced. [default: accuracy]",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="How often every candidate is trained. [default: 3]", rich_help_panel=RUNNING),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimiser steps of a trial. [default: 2000; fewer for the scenes that come along]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="The study's folder. [default: runs/ and the name of the data]", rich_help_panel=RUNNING
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK",
            help="small, patch, points, a timm network such as resnet18, a name that `lookfar.list_networks()` gives, "
            "or my.py:build. [default: resnet18; small or patch for the scenes that come along]",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    pretrained: PRETRAINED = None,
    host_weights: HOST_WEIGHTS = None,
    norm: Annotated[
        str | None,
        typer.Option(
            metavar="NORM",
            help="batch puts batch norms in the place of a token host's LayerNorms. [default: as they are]",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    output_stride: OUTPUT_STRIDE = None,
    place: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE",
            help="Stage or module after which blocks go; a glob names several. [default: by the host]",
            autocompletion=places,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    size: SIZE = None,
    val: VAL = None,
    also_val: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|SEQUENCE",
            help="A second validation set, used for nothing but judging.",
            rich_help_panel=DATA,
        ),
    ] = None,
    ignore: IGNORE = None,
    labels: LABELS = None,
    classes: CLASSES = None,
    exif: EXIF = None,
    skip_bad: Annotated[
        bool | None,
        typer.Option("--skip-bad", help="Skip damaged images instead of stopping.", rich_help_panel=DATA),
    ] = None,
    in_chans: Annotated[
        int | None, typer.Option(metavar="N", help="Bands of the images. [default: 3]", rich_help_panel=DATA)
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Classification: share of an image's shorter side that validation sees. [default: as timm judges the "
            "host]",
            rich_help_panel=DATA,
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Classification: train on mirrored images too. [default: --flip]",
            rich_help_panel=DATA,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Images per step. [default: 8 with masks, 32 with labels; other for the scenes]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Highest learning rate. [default: 0.001; 0.003 for small, patch, points and vit_small_mixer]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="onecycle, cosine or poly. [default: onecycle]", rich_help_panel=TRAINING),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            metavar="NORM", help="Largest norm of the gradient; 0 is no limit. [default: 0]", rich_help_panel=TRAINING
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W", help="Weight of each class in the loss. [default: all equal]", rich_help_panel=TRAINING
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Classification: share of the target spread over all classes. [default: 0]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    mixup: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Classification: blend pairs of images, in shares from Beta(A, A). [default: 0, off]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    cutmix: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Classification: paste in part of another image, its share from Beta(A, A). [default: 0, off]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="32-true, bf16-mixed or 16-mixed. [default: 32-true]", rich_help_panel=TRAINING
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Score masks resized to --size, or predictions at the original size of each file. [default: resized]",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu, cuda or mps. [default: cuda if there is one]", rich_help_panel=RUNNING),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="Devices per trial. [default: 1]", rich_help_panel=RUNNING)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Trials that run side by side. [default: one per core or GPU]",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Run the trials on a Ray cluster: ray or ray:ADDRESS. [default: on this machine]",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Run one trial alone, counted from 0, as array jobs of a cluster do. [default: all that are missing]",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Write the study's folder and count its trials.", rich_help_panel=RUNNING),
    ] = False,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", help="Write a TensorBoard log as well.", rich_help_panel=RUNNING),
    ] = None,
    margin: MARGIN = None,
    groups: GROUPS = None,
) -> None:
    """Compare blocks in one network on your images. Run it again to continue it, or to add seeds and blocks.

    Example: lookfar study --data scenes:lookup --blocks nonlocal,global_context
    """
    from lookfar.study.command import run_command

    options = dict(locals())
    for name in ("plan", "out", "workers", "on", "trial", "prepare", "run_command"):
        del options[name]
    if out == "":  # as a path it would be the folder in which the command is run
        raise ValueError("out must be a folder, got ''")
    folder = None if out is None else Path(out)
    how = {"workers": workers, "on": on, "trial": trial, "prepare": prepare}
    raise SystemExit(run_command(plan, options, out=folder, **how))


@command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's folder.")],
    margin: MARGIN = None,
    groups: GROUPS = None,
) -> None:
    """Write a study's report and tables again from its files. Example: lookfar report runs/lookup --margin 1"""
    from lookfar.study.command import report_command

    raise SystemExit(report_command(folder, margin=margin, groups=groups))
