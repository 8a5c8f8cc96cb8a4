"""Pictures of the report: images and masks as data URIs."""

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IGNORE = 255

# colours that colour-blind readers can distinguish (P. Tol: muted, then light); candidates have other colours
_CLASS_COLOURS = (
    "#4477aa", "#ddcc77", "#cc6677", "#44aa99", "#882255", "#88ccee", "#117733", "#999933", "#aa4499", "#ee8866",
    "#bbcc33", "#ffaabb", "#332288", "#77aadd", "#eedd88", "#99ddff", "#aaaa00", "#dddddd",
)  # fmt: skip
_BACKGROUND = ("background", "void", "unlabelled", "unlabeled", "other")


@dataclass(frozen=True)
class Detail:
    """How much of the pictures a report carries; a smaller one is taken where the file would be too large."""

    images: int = 12
    explored: int = 6
    queries: int = 16
    keys: int = 32
    seeds: int = 5
    heads: bool = True


def class_colours(classes: Sequence[str]) -> list[str]:
    """A colour for each class; background is nearly black, beyond eighteen the hue goes on by the golden angle."""
    colours, used = [], 0
    for name in classes:
        if name.lower() in _BACKGROUND:
            colours.append("#23272e")
            continue
        if used < len(_CLASS_COLOURS):
            colours.append(_CLASS_COLOURS[used])
        else:
            r, g, b = colorsys.hls_to_rgb(used * 0.618034 % 1, 0.42 + 0.12 * (used % 3), 0.55)
            colours.append(f"#{round(255 * r):02x}{round(255 * g):02x}{round(255 * b):02x}")
        used += 1
    return colours


def load_samples(folder: Path) -> dict[str, Any] | None:
    """``samples.npz`` of a trial, see :mod:`lookfar.diagnostics.samples`; None where it is missing or damaged."""
    path = folder / "samples.npz"
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = dict(file)
    except Exception:  # zip, zlib and numpy have an exception each for what is damaged; `lookfar study` makes it again
        return None
    if "map" in found and found["map"].ndim == 3:  # as earlier versions wrote it: the mean over heads alone
        for key in ("map", "low", "high", "mean", "mean_low", "mean_high", "share"):
            found[key] = found[key][:, None]
        found["mean_share"] = np.broadcast_to(found["mean_share"][:, None], (len(found["map"]), 1))
        found["similarity"] = found["similarity"].mean(1, keepdims=True)
    return found


def image_uri(image: np.ndarray) -> str:
    """(C, h, w) uint8 as PNG, or as JPEG where that is much smaller: photographs."""
    from PIL import Image

    if len(image) not in (1, 3):  # bands that are no colours: the first of two, the first three of more
        image = image[:3] if len(image) > 3 else image[:1]
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    if len(png.getvalue()) < 24_000:
        return _uri("image/png", png.getvalue())
    picture.save(jpeg, "JPEG", quality=85, optimize=True)
    return _uri("image/jpeg", jpeg.getvalue())


def labels_uri(labels: np.ndarray, colours: Sequence[str], *, wrong: np.ndarray | None = None) -> str:
    """Labels (h, w) as an indexed PNG. With ``wrong`` only those pixels keep their colour; void is transparent."""
    from PIL import Image

    K = len(colours)
    shown = np.where(labels < K, labels, K).astype(np.uint8)
    if wrong is not None:
        shown = np.where(wrong, shown, np.where(labels == IGNORE, K, K + 1)).astype(np.uint8)
    palette = [int(c[i : i + 2], 16) for c in colours for i in (1, 3, 5)] + [0, 0, 0, 127, 127, 127]
    picture = Image.frombytes("P", shown.shape[::-1], shown.tobytes())
    picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=bytes([255] * K + [0, 40]))
    return _uri("image/png", file.getvalue())


def named(sample: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A sample whose labels of whole images are the names of these classes: right or wrong, ``exact``."""
    if sample["prediction"].ndim != 1 or sample["prediction"].dtype.kind not in "iu":
        return sample
    known = dict(enumerate(classes))
    of = {key: [known.get(int(k), f"class {k}") for k in sample[key]] for key in ("truth", "prediction")}
    return sample | {key: np.array(names) for key, names in of.items()} | {"exact": True}


def are_maps(sample: Mapping[str, Any]) -> bool:
    """Whether truth and predictions are maps of labels; else they are words."""
    return sample["prediction"].dtype.kind != "U"


def most_different(samples: Sequence[dict[str, Any]]) -> list[int]:
    """Order of the images: those on which the predictions differ, in the largest share of pixels, first."""
    predictions = np.stack([s["prediction"] for s in samples])  # (candidates, n, h, w), or (candidates, n) words
    differ = (predictions != predictions[:1]).any(0)
    if are_maps(samples[0]):
        differ &= samples[0]["truth"] != IGNORE
    share = differ.reshape(len(differ), -1).mean(1)
    return sorted(range(len(share)), key=lambda i: (-share[i], i))


def right_share(sample: dict[str, Any], i: int) -> float | None:
    """Per cent of an image's labelled pixels that are predicted right."""
    valid = sample["truth"][i] != IGNORE
    return 100 * float((sample["prediction"][i] == sample["truth"][i])[valid].mean()) if valid.any() else None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
