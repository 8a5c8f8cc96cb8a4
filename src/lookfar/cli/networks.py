"""Commands about networks: predict, evaluate, train, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lookfar.cli._app import command
from lookfar.cli._complete import data_sets
from lookfar.cli._shared import CLASSES, EXIF, IGNORE, LABELS, VAL

NETWORK = typer.Option(
    metavar="FILE|TRIAL|NAME", help="A published file, a trial's folder, or a network's name with --weights."
)
WEIGHTS = typer.Option(metavar="FILE", help="Weights of a network given by name.")
NUM_CLASSES = typer.Option(metavar="N", help="Number of classes, for a name that does not say it.")
TILE = typer.Option(metavar="N|HxW", help="Predict in tiles of this size. [default: as the network was published]")
STRIDE = typer.Option(metavar="N|HxW", help="Distance from one tile to the next. [default: two thirds of --tile]")
WHOLE = typer.Option("--whole", help="Predict the whole image at once, even if the network was published with tiles.")
SCALES = typer.Option(
    metavar="F,F", help="Average predictions at several scales, such as 0.5,0.75,1,1.25,1.5,1.75. [default: 1]"
)
FLIP = typer.Option("--flip", help="Average with the prediction of the mirrored image.")


@command()
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Files, folders or patterns such as 'a/*.jpg'.")
    ],
    network: Annotated[str, NETWORK],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for labels, overlays and a legend.")],
    weights: Annotated[Path | None, WEIGHTS] = None,
    classes: Annotated[int | None, NUM_CLASSES] = None,
    tile: Annotated[str | None, TILE] = None,
    stride: Annotated[str | None, STRIDE] = None,
    whole: Annotated[bool, WHOLE] = False,
    scales: Annotated[str | None, SCALES] = None,
    flip: Annotated[bool, FLIP] = False,
) -> None:
    """Predict the class of every pixel; exit with 1 if an image fails.

    Example: lookfar predict a.jpg --network model.pth --out seen
    """
    from lookfar.use.command import predict_command

    options = {"tile": tile, "stride": stride, "whole": whole, "scales": scales, "flip": flip}
    raise SystemExit(predict_command(images, network, out, weights=weights, num_classes=classes, options=options))


@command()
def evaluate(
    network: Annotated[str, NETWORK],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="camvid:PATH, voc:PATH, a PATH ... [default: what the trial was trained on]",
            autocompletion=data_sets,
            rich_help_panel="Data",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--val", metavar="SPLIT|FOLDER", help="val, test or a folder. [default: val]", rich_help_panel="Data"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for confusion.png and evaluation.json.")
    ] = None,
    weights: Annotated[Path | None, WEIGHTS] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="original scores at the size of the files, training as the trial was judged. [default: training for a "
            "trial, original otherwise]",
        ),
    ] = None,
    tile: Annotated[str | None, TILE] = None,
    stride: Annotated[str | None, STRIDE] = None,
    whole: Annotated[bool, WHOLE] = False,
    scales: Annotated[str | None, SCALES] = None,
    flip: Annotated[bool, FLIP] = False,
    ignore: IGNORE = None,
    labels: LABELS = None,
    classes: CLASSES = None,
    exif: EXIF = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip damaged images instead of stopping.", rich_help_panel="Data")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure mean IoU, accuracy and the IoU of every class.

    Example: lookfar evaluate --network model_800.pth --data camvid:CamVid
    """
    from lookfar.use.command import evaluate_command

    options: dict[str, Any] = {"tile": tile, "stride": stride, "whole": whole, "scales": scales, "flip": flip}
    reading = {"ignore": ignore or (), "labels": labels or (), "classes": classes, "exif": exif, "skip_bad": skip_bad}
    evaluate_command(
        network, data, split, weights=weights, out=out, score=score, options=options, reading=reading, as_json=as_json
    )


@command()
def train(
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="A network such as danet_resnet50_d8 or cgnet, a timm network, or my.py:build."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="camvid:PATH, voc:PATH, a PATH, scenes:lookup ...",
            autocompletion=data_sets,
            rich_help_panel="Data",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder; the same command continues what lies there.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="20k, 40k, 80k or 160k: steps, SGD, schedule and crops of mmsegmentation. [default: none]",
            rich_help_panel="Training",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimiser steps. [default: those of the preset, otherwise as `lookfar study`]",
            rich_help_panel="Training",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Resize images to this size. [default: by the data]", rich_help_panel="Data"),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Train on scaled, cropped and distorted images of this size. [default: off; 512x1024 with a preset]",
            rich_help_panel="Training",
        ),
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained", help="Start from timm's weights.", rich_help_panel="Network")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Start the backbone from the weights in FILE.", rich_help_panel="Network"),
    ] = None,
    output_stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stride of the last feature map: 8, 16 or 32. [default: 16; 8 for small and published networks]",
            rich_help_panel="Network",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Images per step. [default: 8; other for the scenes]", rich_help_panel="Training"
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Highest learning rate. [default: 0.01 with a preset, otherwise 0.001; 0.003 for small]",
            rich_help_panel="Training",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="adamw or sgd. [default: adamw; sgd with a preset]", rich_help_panel="Training"
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="onecycle, cosine or poly. [default: onecycle; poly with a preset]",
            rich_help_panel="Training",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="32-true, bf16-mixed or 16-mixed. [default: 32-true]", rich_help_panel="Training"
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="cpu, cuda or mps. [default: cuda if there is one]", rich_help_panel="Running"
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="Devices. [default: 1]", rich_help_panel="Running")
    ] = None,
    val: VAL = None,
    ignore: IGNORE = None,
    labels: LABELS = None,
    classes: CLASSES = None,
    exif: EXIF = None,
    skip_bad: Annotated[
        bool | None, typer.Option("--skip-bad", help="Skip damaged images instead of stopping.", rich_help_panel="Data")
    ] = None,
) -> None:
    """Train one network on your masks. Example: lookfar train --network gcnet --data PATH --out runs/gc --preset 40k"""
    options = {name: value for name, value in locals().items() if name not in ("network", "data", "out", "preset")}
    options["host_weights"] = options.pop("weights")

    from lookfar.use.command import train_command

    raise SystemExit(train_command(network, data, out, preset=preset, options=options))


@command()
def export(
    network: Annotated[str, typer.Argument(metavar="FILE|TRIAL|NAME", help=NETWORK.help)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    format: Annotated[str, typer.Option(metavar="FORMAT", help="onnx or torch-export.")] = "onnx",
    size: Annotated[
        str,
        typer.Option(
            metavar="HxW", help="Size of the example input. Other sizes work too; if one does not, the command says so."
        ),
    ] = "136x144",
    weights: Annotated[Path | None, WEIGHTS] = None,
    classes: Annotated[int | None, NUM_CLASSES] = None,
) -> None:
    """Write a program for any number and size of images, and try it at three sizes.

    Example: lookfar export a.pth --out a.onnx
    """
    from lookfar.use.command import export_command

    export_command(network, out, format=format, size=size, weights=weights, num_classes=classes)
