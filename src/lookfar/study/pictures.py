"""Pictures of the report: images and masks as data URIs, and the maps that the explorer shows."""

import base64
import colorsys
import io
from collections.abc import Sequence
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
    """``samples.npz`` of a trial, see :mod:`lookfar.diagnostics.samples`; None where there is none."""
    path = folder / "samples.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
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


def most_different(samples: Sequence[dict[str, Any]]) -> list[int]:
    """Order of the images: those on which the predictions differ in the largest share of pixels first."""
    predictions = np.stack([s["prediction"] for s in samples])  # (candidates, n, h, w)
    differ = (predictions != predictions[:1]).any(0) & (samples[0]["truth"] != IGNORE)
    share = differ.reshape(len(differ), -1).mean(1)
    return sorted(range(len(share)), key=lambda i: (-share[i], i))


def right_share(sample: dict[str, Any], i: int) -> float | None:
    """Per cent of an image's labelled pixels that are predicted right."""
    valid = sample["truth"][i] != IGNORE
    return 100 * float((sample["prediction"][i] == sample["truth"][i])[valid].mean()) if valid.any() else None


def explorer_block(sample: dict[str, Any], images: Sequence[int], detail: Detail) -> dict[str, Any]:
    """What the page needs of one block: maps of some images, and the numbers beside them.

    Maps are uint8 in base64, one after the other; ``span[k] = [low, high]`` brings map k back to weights.
    """
    rows, keys = _reduced_queries(sample, detail), (int(sample["map_size"][0]), int(sample["map_size"][1]))
    small = min(keys[0], detail.keys), min(keys[1], detail.keys)
    found: dict[str, Any] = {
        "size": small,
        "grid": [len(rows[0]), len(rows[1])],
        "query": _rounded(sample["query"][_flat(rows, sample)], 6),
        "uniform": 1 / float(np.prod(sample["key_size"])),
        "images": [],
    }
    for i in images:
        chosen = _flat(rows, sample)
        maps = _weights(sample["map"][i][chosen], sample["low"][i][chosen], sample["high"][i][chosen])
        mean = _weights(sample["mean"][i][None], sample["mean_low"][i][None], sample["mean_high"][i][None])
        maps, mean = (_pool(m, keys, small) for m in (maps, mean))
        packed, span = _pack(np.concatenate([mean, maps]))
        found["images"].append(
            {
                "maps": packed,
                "span": span,
                "share": _rounded(sample["share"][i][chosen]),
                "chance": _rounded(sample["chance"][i][chosen]),
                "similarity": _rounded(float(np.mean(sample["similarity"][i]))),
                "mean_share": _rounded(sample["mean_share"][i]),
                "mean_chance": _rounded(sample["mean_chance"][i]),
            }
        )
    return found


def best_query(blocks: Sequence[dict[str, Any]], image: int) -> list[float]:
    """A query worth looking at first: where some block's share on the own class is furthest above chance, in a
    class that does not fill the image; the centre where no share is known."""
    found = (-1.0, [0.5, 0.5])
    for block in blocks:
        of = block["images"][image]
        for place, share, chance in zip(block["query"], of["share"], of["chance"]):
            if share is not None and chance is not None and chance < 0.5 and share - chance > found[0]:
                found = (share - chance, place)
    return found[1]


def labels_near(labels: np.ndarray, query: Sequence[Sequence[float]]) -> list[int]:
    """The label under each query centre (y, x) in [0, 1]."""
    h, w = labels.shape
    # centres are rounded: one that lies on the edge of two pixels belongs to the second
    return [int(labels[min(int(y * h + 1e-3), h - 1), min(int(x * w + 1e-3), w - 1)]) for y, x in query]


def _reduced_queries(sample: dict[str, Any], detail: Detail) -> tuple[list[int], list[int]]:
    """Rows and columns of the stored grid of queries that are kept."""
    kept = []
    for stored in sample["query_size"]:
        stored = int(stored)
        wanted = min(stored, detail.queries)
        kept.append([(2 * i + 1) * stored // (2 * wanted) for i in range(wanted)])
    return kept[0], kept[1]


def _flat(rows: tuple[list[int], list[int]], sample: dict[str, Any]) -> list[int]:
    width = int(sample["query_size"][1])
    return [r * width + c for r in rows[0] for c in rows[1]]


def _weights(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low[:, None] + (high - low)[:, None] * (stored / np.float32(255))


def _pool(maps: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """Means over the cells of a coarser grid, (Q, h*w) -> (Q, to)."""
    if to == size:
        return maps
    maps = maps.reshape(-1, *size)
    for axis, (n, m) in enumerate(zip(size, to), start=1):
        edges = [i * n // m for i in range(m)]
        counts = np.diff([*edges, n]).reshape([-1 if a == axis else 1 for a in range(3)])
        maps = np.add.reduceat(maps, edges, axis=axis) / counts
    return maps.reshape(len(maps), -1)


def _pack(maps: np.ndarray) -> tuple[str, list[list[float]]]:
    low, high = maps.min(1), maps.max(1)
    span = np.where(high > low, high - low, 1)
    stored = np.round((maps - low[:, None]) / span[:, None] * 255).astype(np.uint8)
    pairs = [[float(f"{a:.3g}"), float(f"{b:.3g}")] for a, b in zip(low, high)]
    return base64.b64encode(stored.tobytes()).decode(), pairs


def _rounded(values: Any, digits: int = 3) -> Any:
    """Plain numbers with a few decimals; None for what is not known, since JSON has no nan."""
    values = np.asarray(values, float)
    if values.ndim:
        return [_rounded(v, digits) for v in values]
    return None if np.isnan(values) else round(float(values), digits)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
