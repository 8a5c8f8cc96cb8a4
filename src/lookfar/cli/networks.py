"""Commands about networks: predict, evaluate, train, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lookfar.cli._app import app

NETWORK = typer.Option(metavar="FILE|TRIAL|NAME", help="A published file, a trial's folder, or a name with --weights.")
WEIGHTS = typer.Option(metavar="FILE", help="Weights for a NAME.")
TILE = typer.Option(metavar="N|HxW", help="Tiles of this size. (default as the network has it)")
STRIDE = typer.Option(metavar="N|HxW", help="From a tile to the next. (default two thirds of --tile)")
WHOLE = typer.Option("--whole", help="The whole image at once, where the network has tiles.")
SCALES = typer.Option(metavar="N,N", help="Mean of predictions at several sizes: 0.5,0.75,1,1.25,1.5,1.75.")
FLIP = typer.Option("--flip", help="Predict the mirrored image too.")


@app.command()
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, patterns such as 'a/*.jpg'.")
    ],
    network: Annotated[str, NETWORK],
    out: Annotated[Path, typer.Option(metavar="DIR", help="For labels, overlays and a legend.")],
    weights: Annotated[Path | None, WEIGHTS] = None,
    classes: Annotated[int | None, typer.Option(help="How many, for a NAME that does not say it.")] = None,
    tile: Annotated[str | None, TILE] = None,
    stride: Annotated[str | None, STRIDE] = None,
    whole: Annotated[bool, WHOLE] = False,
    scales: Annotated[str | None, SCALES] = None,
    flip: Annotated[bool, FLIP] = False,
) -> None:
    """Name every pixel of images; exit 1 if one fails. Example: lookfar predict a.jpg --network model.pth --out seen"""
    from lookfar.use.command import predict_command

    options = {"tile": tile, "stride": stride, "whole": whole, "scales": scales, "flip": flip}
    raise SystemExit(predict_command(images, network, out, weights=weights, num_classes=classes, options=options))


@app.command()
def evaluate(
    network: Annotated[str, NETWORK],
    data: Annotated[
        str | None, typer.Option(help="camvid:PATH, voc:PATH, PATH ... (default what a trial was trained on)")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--val", metavar="SPLIT|FOLDER", help="val, test, or a folder. (default val)")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="For confusion.png and evaluation.json.")] = None,
    weights: Annotated[Path | None, WEIGHTS] = None,
    score: Annotated[
        str | None,
        typer.Option(help="original: at the size of the files; training: as a trial was judged. (default that)"),
    ] = None,
    tile: Annotated[str | None, TILE] = None,
    stride: Annotated[str | None, STRIDE] = None,
    whole: Annotated[bool, WHOLE] = False,
    scales: Annotated[str | None, SCALES] = None,
    flip: Annotated[bool, FLIP] = False,
    ignore: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Mask values to ignore beside 255.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="V,V", help="Mask value of class 0, 1, ...: 0,255")] = None,
    classes: Annotated[int | None, typer.Option(help="How many, where no classes.txt says it.")] = None,
    exif: Annotated[str | None, typer.Option(help="apply or ignore, where masks fit both ways.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip damaged images.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Mean IoU, accuracy, IoU of classes. Example: lookfar evaluate --network model_800.pth --data camvid:CamVid"""
    from lookfar.use.command import evaluate_command

    options: dict[str, Any] = {"tile": tile, "stride": stride, "whole": whole, "scales": scales, "flip": flip}
    reading = {"ignore": ignore or (), "labels": labels or (), "classes": classes, "exif": exif, "skip_bad": skip_bad}
    evaluate_command(
        network, data, split, weights=weights, out=out, score=score, options=options, reading=reading, as_json=as_json
    )


@app.command()
def train(
    network: Annotated[
        str, typer.Option(metavar="NAME", help="Such as danet_resnet50_d8, cgnet, a timm network, or my.py:build.")
    ],
    data: Annotated[str, typer.Option(help="camvid:PATH, voc:PATH, PATH, scenes:lookup ...")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder; the same command goes on there.")],
    preset: Annotated[
        str | None, typer.Option(help="20k, 40k, 80k or 160k: mmsegmentation's steps, SGD, poly, crops.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="What images are resized to. (default their own)")
    ] = None,
    crop: Annotated[str | None, typer.Option(metavar="HxW", help="Train on scaled, cropped, distorted images.")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Start from timm's weights.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="Start the backbone from these weights.")] = None,
    output_stride: Annotated[int | None, typer.Option(help="Of the feature map: 8, 16 or 32.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.")] = None,
    schedule: Annotated[str | None, typer.Option(help="onecycle, cosine or poly.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu, cuda or mps. (default cuda where it is)")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices. (default 1)")] = None,
    val: Annotated[str | None, typer.Option(metavar="FOLDER|SEQUENCE", help="Validate on this instead.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Mask values to ignore beside 255.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="V,V", help="Mask value of class 0, 1, ...: 0,255")] = None,
    classes: Annotated[int | None, typer.Option(help="How many, where no classes.txt says it.")] = None,
    exif: Annotated[str | None, typer.Option(help="apply or ignore, where masks fit both ways.")] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Skip damaged images.")] = None,
) -> None:
    """Train one network on your masks. Example: lookfar train --network gcnet --data PATH --out runs/gc --preset 40k"""
    options = {name: value for name, value in locals().items() if name not in ("network", "data", "out", "preset")}
    options["host_weights"] = options.pop("weights")

    from lookfar.use.command import train_command

    raise SystemExit(train_command(network, data, out, preset=preset, options=options))


@app.command()
def export(
    network: Annotated[str, typer.Argument(metavar="FILE|TRIAL|NAME", help=NETWORK.help)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The program.")],
    format: Annotated[str, typer.Option(help="onnx or torch-export.")] = "onnx",
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Of the example; any other is served too, unless it is said.")
    ] = "128x160",
    weights: Annotated[Path | None, WEIGHTS] = None,
    classes: Annotated[int | None, typer.Option(help="How many, for a NAME that does not say it.")] = None,
) -> None:
    """A program for images of any number and size, run at three others. Example: lookfar export a.pth --out a.onnx"""
    from lookfar.use.command import export_command

    export_command(network, out, format=format, size=size, weights=weights, num_classes=classes)
