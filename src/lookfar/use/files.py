"""Images into files: labels, an overlay, a legend; nothing of another image is written over."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lookfar.use.opening import Opened
from lookfar.use.pictures import labels_picture, legend, overlay, save
from lookfar.use.reading import read_image

INDEX = "predictions.jsonl"  # whose results lie here: a line an image


def predict_files(
    opened: Opened,
    images: Sequence[Path],
    out: Path,
    *,
    done: Callable[[Path, str], None] = lambda path, error: None,
    **options: Any,
) -> dict[Path, str]:
    """Write ``NAME_labels.png`` and ``NAME_overlay.jpg`` of every image, ``legend.png`` and ``classes.txt``.

    ``NAME`` is the file's without its ending; where several are called so, with the folders that tell them apart.

    Args:
        opened: The network.
        images: Files.
        out: A folder, which is made.
        done: Called after each image, with what was wrong with it, or an empty text.
        **options: Of :func:`lookfar.networks.predict`.

    Returns:
        The images that could not be predicted, and why.

    Raises:
        ValueError: Results of other images lie in ``out``, or the options contradict each other.
    """
    from lookfar.networks.predicting import tiles_of

    tiles_of(opened.network, options.get("tile"), options.get("stride"), whole=options.get("whole", False))
    names = names_of(images)
    lines = (f"{name} {' '.join(map(str, colour))}\n" for name, colour in zip(opened.classes, opened.palette))
    classes = "".join(lines)
    _refuse_others(names, out)
    if (known := out / "classes.txt").exists() and known.read_text(encoding="utf-8", errors="replace") != classes:
        raise ValueError(f"{known} exists already and has other classes: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    save(legend(opened.classes, opened.palette), out / "legend.png")
    (out / "classes.txt").write_text(classes, encoding="utf-8")
    failed: dict[Path, str] = {}
    for path, name in names.items():
        try:
            _predict_file(opened, path, out, name, options)
        except (AssertionError, ValueError, FileNotFoundError, RuntimeError, MemoryError) as error:
            failed[path] = " ".join(str(error).split()) or type(error).__name__
        done(path, failed.get(path, ""))
    return failed


def _predict_file(opened: Opened, path: Path, out: Path, name: str, options: dict[str, Any]) -> None:
    from lookfar.networks import predict

    around: Any = opened.network.preprocessing
    image = read_image(path, len(around.mean), peak=opened.peak)
    labels = predict(opened.network, image, **options).numpy()
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    about = {"name": name, "image": str(path.resolve()), "size": list(labels.shape), "network": opened.source}
    with (out / INDEX).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(about) + "\n")
    save(labels_picture(labels, opened.palette), target.with_name(f"{target.name}_labels.png"))
    save(overlay(image.numpy(), labels, opened.palette), target.with_name(f"{target.name}_overlay.jpg"), quality=90)


def names_of(images: Sequence[Path]) -> dict[Path, str]:
    """A name for the results of each image, each another.

    >>> list(names_of([Path("a/x.jpg"), Path("b/x.jpg"), Path("b/x.png"), Path("b/y.png")]).values())
    ['a/x', 'b/x.jpg', 'b/x.png', 'y']
    >>> list(names_of([Path("x.jpg"), Path("x.png"), Path("x.jpg.png")]).values())
    ['x.jpg', 'x.png', 'x.jpg.png']
    """
    stems = Counter(path.stem.casefold() for path in images)
    if not images:
        return {}
    places = {path: path.parent.resolve() / path.name for path in images}
    common = Path(os.path.commonpath([place.parent for place in places.values()]))
    names = {
        path: path.stem if stems[path.stem.casefold()] == 1 else place.relative_to(common).with_suffix("").as_posix()
        for path, place in places.items()
    }
    twice = Counter(name.casefold() for name in names.values())
    whole = {path: place.relative_to(common).as_posix() for path, place in places.items()}
    final = {path: name if twice[name.casefold()] == 1 else whole[path] for path, name in names.items()}
    # x.jpg beside x.png and x.jpg.png: a whole name may be what is left of another
    return final if len({name.casefold() for name in final.values()}) == len(final) else whole


def _refuse_others(names: dict[Path, str], out: Path) -> None:
    """Results may be made again, those of other images stay."""
    known: dict[str, str] = {}
    if (out / INDEX).is_file():
        for line in (out / INDEX).read_text(encoding="utf-8").splitlines():
            try:
                about = json.loads(line)
                known[about["name"]] = about["image"]
            except (ValueError, KeyError, TypeError):  # cut short
                continue
    for path, name in names.items():
        for result in (out / f"{name}_labels.png", out / f"{name}_overlay.jpg"):
            if result.exists() and known.get(name) != str(path.resolve()):
                of = f"of {known[name]}" if name in known else "not of this command"
                raise ValueError(f"{result} exists already and {of}: give another folder for {path}")
