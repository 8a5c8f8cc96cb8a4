"""What `lookfar predict`, `evaluate`, `train` and `export` do once their options are parsed."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookfar._warnings import warnings_as_lines
from lookfar.use.evaluating import evaluate
from lookfar.use.files import predict_files
from lookfar.use.opening import Opened, open_network
from lookfar.use.pictures import confusion_picture, save
from lookfar.use.reading import find_images

DONE, FAILED = 0, 1
MANY = 20  # images for which optimizing a network pays: over a few it takes longer than it saves
EXAMPLE = (128, 128)  # at which linear layers in a row are found: maps of 4x4 at a stride of 32


@contextlib.contextmanager
def _without_tiny_numbers() -> Iterator[None]:
    """Numbers below the smallest normal one are zero: many processors take a hundred times as long to multiply them.

    Weights that decayed throughout a long training are such numbers, and no result would notice them.
    """
    import torch

    was = not torch.tensor(1e-39).mul(1)
    torch.set_flush_denormal(True)  # of this thread, and of those that it starts from now on
    try:
        yield
    finally:
        torch.set_flush_denormal(was)


@_without_tiny_numbers()
def predict_command(
    images: Sequence[str],
    network: str,
    out: Path,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    options: dict[str, Any],
) -> int:
    """Predict images into a folder; 1 where one of them could not be.

    Args:
        images: Files, folders, patterns.
        network: As :func:`open_network` takes it.
        out: The folder of the results.
        weights: For the name of a network.
        num_classes: For the name of a network.
        options: ``tile``, ``stride``, ``whole``, ``scales``, ``flip`` as text and flags.
    """
    chosen = parsed(options)
    paths = find_images(list(images))
    opened = _opened(network, weights=weights, num_classes=num_classes, images=False)
    if len(paths) >= MANY:
        opened = _quicker(opened)
    with _progress("predicting", len(paths)) as advance:

        def done(path: Path, error: str) -> None:
            advance()
            if error:
                print(f"lookfar: {error}", file=sys.stderr)

        failed = predict_files(opened, paths, out, done=done, **chosen)
    fine = len(paths) - len(failed)
    print(f"{fine} of {len(paths)} image{'s' * (len(paths) != 1)} in {out}: labels, overlays, legend.png, classes.txt")
    if failed:
        print(f"lookfar: {len(failed)} of {len(paths)} images could not be predicted", file=sys.stderr)
    return FAILED if failed else DONE


@_without_tiny_numbers()
def evaluate_command(
    network: str,
    data: str | None,
    split: str | None,
    *,
    weights: Path | None = None,
    out: Path | None = None,
    score: str | None = None,
    options: dict[str, Any],
    reading: dict[str, Any],
    as_json: bool = False,
) -> None:
    """Judge a network and print how it did.

    Args:
        network: As :func:`open_network` takes it.
        data: The data set; by default that of a trial.
        split: Which part of it.
        weights: For the name of a network.
        out: A folder for the picture and the numbers.
        score: As :func:`evaluate` takes it; by default as a trial was judged, and else at the size of the files.
        options: As for :func:`predict_command`.
        reading: Options of :func:`lookfar.data.judged.open_judged`.
        as_json: Print JSON.
    """
    from lookfar.data.judged import open_judged

    chosen = parsed(options)
    classes = None if weights is None else reading["classes"]
    opened = _opened(network, weights=weights, num_classes=classes, data=data if split is None else None)
    notes = []
    if opened.data is not None and split is None:
        if given := [name for name, value in reading.items() if value]:
            raise ValueError(f"{given[0]} is as the trial's plan has it; --val reads other data")
        judged = opened.data
    elif data is None:
        raise ValueError(f"evaluating {network} needs data: give --data PATH")
    else:
        white = {} if opened.peak is None else {"white": opened.peak}
        reading, notes = _reduced(opened, {**_as_trained(opened), **{k: v for k, v in reading.items() if v}})
        judged = open_judged(data, split, in_chans=_bands(opened), **white, **reading)
    if score is None:
        score = "training" if opened.data is judged and not chosen else "original"
    with _progress("evaluating", len(judged.val)) as advance:
        found = evaluate(opened, judged, score=score, done=lambda _: advance(), notes=notes, **chosen)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save(confusion_picture(found.confusion, found.classes), out / "confusion.png")
        (out / "evaluation.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found.to_dict()) if as_json else found)


def export_command(
    network: str, out: Path, *, format: str, size: str, weights: Path | None = None, num_classes: int | None = None
) -> None:
    """Write a network as a program, and print how it was checked.

    Args:
        network: As :func:`open_network` takes it.
        out: The file; its folder is made.
        format: As :func:`lookfar.networks.export` takes it.
        size: Of the example, ``HxW``.
        weights: For the name of a network.
        num_classes: For the name of a network.
    """
    from lookfar.networks import export

    (height, width) = parsed({"size": size})["size"]
    opened = _opened(network, weights=weights, num_classes=num_classes, images=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(export(opened.network, out, format=format, size=(height, width)))  # type: ignore[arg-type]


def parsed(options: dict[str, Any]) -> dict[str, Any]:
    """Options of :func:`lookfar.networks.predict` that were given.

    >>> parsed({"tile": "769", "stride": "513x400", "whole": False, "scales": "0.5,1", "flip": True})
    {'tile': (769, 769), 'stride': (513, 400), 'scales': (0.5, 1.0), 'flip': True}
    """
    found = {name: value for name, value in options.items() if value is not None and value is not False}
    for name in ("tile", "stride", "size"):
        if name in found:
            parts = found[name].lower().replace("×", "x").split("x")
            if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
                raise ValueError(f"{name} must be N or HxW, as in 769 or 512x1024, got {found[name]!r}")
            found[name] = (int(parts[0]), int(parts[-1]))
    if "scales" in found:
        try:
            found["scales"] = tuple(float(part) for part in found["scales"].split(","))
        except ValueError:
            raise ValueError(f"scales must be numbers, as in 0.5,1,1.5, got {found['scales']!r}") from None
        if not all(0 < scale <= 16 for scale in found["scales"]):
            raise ValueError(f"scales must lie between 0 and 16, got {options['scales']!r}")
    return found


def _as_trained(opened: Opened) -> dict[str, Any]:
    """How the masks of a trial were read."""
    from lookfar.study import Plan
    from lookfar.study._files import read_json

    names = ("ignore", "labels", "classes", "exif", "skip_bad")
    if opened.trial is None:
        return {"ignore": (), "labels": (), "classes": None, "exif": None, "skip_bad": False}
    plan = Plan.from_dict(read_json(opened.trial / "config.json")["plan"])
    return {name: getattr(plan, name) for name in names}


def _bands(opened: Opened) -> int:
    around: Any = opened.network.preprocessing
    return len(around.mean)


def _reduced(opened: Opened, reading: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Masks in whose files 0 is no class, where the network's data set has it so and the user says nothing else."""
    inference: Any = opened.network.inference
    if not inference.reduce_zero_label or reading["labels"]:
        return reading, []
    last = len(opened.classes)
    values = {"labels": f"1-{last}", "ignore": [*reading["ignore"], "0"]}
    note = (
        f"0 in masks is no class and 1 is class 0, as in the network's data set; --labels 0-{last - 1} says otherwise"
    )
    return {**reading, **values}, [note]


def _opened(network: str, **options: Any) -> Opened:
    with warnings_as_lines():
        return open_network(network, **options)


def _quicker(opened: Opened) -> Opened:
    """With :func:`lookfar.optimize` of the network; with the network where that cannot run on the example."""
    import torch

    from lookfar.networks import optimize

    like = next(opened.network.parameters(), torch.empty(0))
    try:
        network = optimize(opened.network, torch.randn(1, _bands(opened), *EXAMPLE).to(like))
    except Exception:  # of whatever class: the images may fit where the example does not
        return opened
    return replace(opened, network=network)


@contextlib.contextmanager
def _progress(what: str, count: int) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=count)
        yield lambda: bar.advance(task)


def train_command(network: str, data: str, out: Path, *, preset: str | None, options: dict[str, Any]) -> int:
    """Train a network and print how it did; 1 where it failed, 130 after Ctrl-C.

    Args:
        network: The name of a network, or what studies take as a host.
        data: The data set.
        out: The folder.
        preset: Of mmsegmentation's schedules.
        options: Entries of the plan; None where they were not given.
    """
    from lookfar.study.running import Stopped
    from lookfar.use.training import train_network

    given = {name: value for name, value in options.items() if value not in (None, [])}
    try:
        trained = train_network(network, data, out, preset=preset, **given)
    except Stopped as stopped:
        print(f"\nlookfar: {stopped}", file=sys.stderr)
        return 130
    if not trained.result:
        print(f"lookfar: {network} was not trained: {trained.reason}", file=sys.stderr)
        return FAILED
    miou, accuracy = trained.result["miou"], trained.result["accuracy"]
    print(f"mIoU {100 * miou:.2f} %, accuracy {100 * accuracy:.2f} % after {trained.result['step']} steps")
    trial = shlex.quote(str(trained.trial))
    print(f"Next: lookfar evaluate --network {trial}    lookfar predict IMAGE --network {trial} --out DIR")
    return DONE
