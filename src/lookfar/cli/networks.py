"""Commands about networks: predict, evaluate."""

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
