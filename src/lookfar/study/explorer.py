"""Where blocks look, for the report: what the explorer shows, where it opens, and the same in sentences."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookfar._tables import by_kind, map_names
from lookfar.study.pictures import IGNORE, Detail, are_maps
from lookfar.study.words import capital, join

SAME = 0.999  # mean cosine between the maps of queries from which on they are one map

Sample = Mapping[str, Any]  # of one trial, see lookfar.diagnostics.samples
Samples = Mapping[str, Mapping[int, Sample]]  # by candidate and seed


@dataclass(frozen=True)
class Start:
    """Where the explorer opens: seed, number of the image, and the query (y, x) in [0, 1]."""

    seed: int
    image: int
    query: tuple[float, float]


# ---- in the page -----------------------------------------------------------------------------------------------------


def explorer(samples: Samples, classes: Sequence[str], images: Sequence[int], seed: int, detail: Detail) -> Any:
    """All that the page needs, as plain values for JSON.

    Args:
        samples: Of all candidates; the images of all trials are the same.
        classes: Their names.
        images: Which of the samples' images, in the order of the page.
        seed: To open with.
        detail: How much of it.
    """
    seeds = sorted({s for of in samples.values() for s in of})
    kept = sorted([seed, *[s for s in seeds if s != seed][: detail.seeds - 1]])
    blocks = {name: of for name, of in samples.items() if any("map" in s for s in of.values())}
    packed = [_block(name, {s: of[s] for s in kept if s in of}, images, detail) for name, of in blocks.items()]
    finest = max(packed, key=lambda block: len(block["query"]))
    stand = finest["query"]
    any_sample = next(iter(next(iter(samples.values())).values()))
    return {
        "classes": list(classes),
        "labels": are_maps(any_sample),
        "exact": "exact" in any_sample,
        "asking": str(any_sample.get("asking", "")),
        "sought": str(any_sample.get("sought", "")),
        "seeds": kept,
        "seed": seed,
        "grid": finest["grid"],
        "query": stand,
        "images": [_image(any_sample, i, stand) for i in images],
        "candidates": [
            {
                "name": name,
                "predicted": {s: [_near(of[s], "prediction", i, stand) for i in images] for s in kept if s in of},
            }
            for name, of in samples.items()
        ],
        "blocks": packed,
    }


def _image(sample: Sample, i: int, stand: Sequence[Sequence[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": str(sample["name"][i]),
        "size": list(sample["image"].shape[-2:]),
        "truth": _near(sample, "truth", i, stand),
    }
    if "asks" in sample:
        found["asks"] = _bytes(labels_near(sample["asks"][i], stand))
        found["answers"] = {int(q): _boxes(sample["holds"][i] == q) for q in np.unique(sample["holds"][i]) if q}
    return found


def _near(sample: Sample, what: str, i: int, stand: Sequence[Sequence[float]]) -> str:
    """Truth or prediction at every query, in base64; words as they are."""
    return _bytes(labels_near(sample[what][i], stand)) if are_maps(sample) else str(sample[what][i])


def _boxes(where: np.ndarray) -> list[list[float]]:
    """Top, left, bottom and right, in [0, 1], of each piece of what is true: an answer may stand in several places."""
    from scipy import ndimage

    h, w = where.shape
    numbered: Any = ndimage.label(where)
    pieces = ndimage.find_objects(numbered[0])
    ends = [(y.start / h, x.start / w, y.stop / h, x.stop / w) for y, x in pieces]
    return [[round(float(end), 4) for end in of] for of in ends]


def _block(name: str, of_seed: Mapping[int, Sample], images: Sequence[int], detail: Detail) -> dict[str, Any]:
    """Maps of one block: uint8 in base64, one after the other, of each head the mean over queries and then every query.

    ``span[head][k] = [low, high]`` brings map k back to weights.
    """
    sample = next(s for s in of_seed.values() if "map" in s)
    rows, keys = _reduced_queries(sample, detail), (int(sample["map_size"][0]), int(sample["map_size"][1]))
    small = min(keys[0], detail.keys), min(keys[1], detail.keys)
    chosen = _flat(rows, sample)
    return {
        "name": name,
        "size": small,
        "grid": [len(rows[0]), len(rows[1])],
        "query": _rounded(sample["query"][chosen], 6),
        "uniform": 1 / float(np.prod(sample["key_size"])),
        "maps": map_names(_kinds(sample), sample["map"].shape[1]) if detail.heads else [""],
        "of": {
            seed: [_maps(s, i, chosen, keys, small, detail) for i in images]
            for seed, s in of_seed.items()
            if "map" in s
        },
    }


def _kinds(sample: Sample) -> list[str]:
    """What its maps are where they are not heads of one; a file of an earlier version does not say it."""
    return [str(kind) for kind in sample.get("map_kinds", ())]


def _maps(
    s: Sample, i: int, chosen: list[int], keys: tuple[int, int], small: tuple[int, int], detail: Detail
) -> dict[str, Any]:
    maps = _weights(s["map"][i][:, chosen], s["low"][i][:, chosen], s["high"][i][:, chosen])
    mean = _weights(s["mean"][i][:, None], s["mean_low"][i][:, None], s["mean_high"][i][:, None])
    both = np.concatenate([mean, maps], 1)  # (heads, 1 + Q, m)
    of_heads = {name: s[name][i][:, chosen] for name in ("share", "found") if name in s}
    if not detail.heads:
        both, of_heads = both.mean(0, keepdims=True), {k: v.mean(0, keepdims=True) for k, v in of_heads.items()}
    packed, span = _pack(_pool(both.reshape(-1, both.shape[-1]), keys, small))
    by_chance = {name: s[name][i][chosen] for name in ("chance", "found_chance") if name in s}
    return {
        "maps": packed,
        "span": np.reshape(span, (len(both), -1, 2)).tolist(),
        "similarity": _rounded(s["similarity"][i]),
        **{name: _rounded(values) for name, values in (of_heads | by_chance).items()},
    }


# ---- where it opens --------------------------------------------------------------------------------------------------


def middle_seed(scores: Mapping[int, float]) -> int:
    """The seed in the middle of a candidate's scores, the lower of two.

    >>> middle_seed({0: 81.0, 1: 95.0, 2: 90.0})
    2
    """
    return sorted(scores, key=lambda seed: (scores[seed], seed))[(len(scores) - 1) // 2]


def opening(block: Sample, baseline: Sample | None, image: int) -> tuple[float, tuple[float, float]]:
    """A query of an image to open with, and how well it tells the story.

    Best is one that the block answers right and the baseline wrong, in what asks a question where the data know them;
    among equals the one with the most weight beyond chance on what holds the answer, or on its own class.

    Returns:
        A number that is larger for better ones, and the query.
    """
    query = block["query"]
    if are_maps(block):
        labels, got = (np.array(labels_near(block[what][image], query)) for what in ("truth", "prediction"))
        known = labels != IGNORE
        before = None if baseline is None else np.array(labels_near(baseline["prediction"][image], query))
    elif "found" in block and np.isfinite(block["found_chance"][image]).any():  # one answer for the whole image
        known = np.full(len(query), True)
        labels, got = block["truth"][image], block["prediction"][image]
        before = None if baseline is None else baseline["prediction"][image]
    else:  # the query in the middle
        middle = query[len(query) // 2]
        return 0.0, (float(middle[0]), float(middle[1]))
    gained = known & (got == labels)
    if before is not None:
        gained &= before != labels
    if "found" in block:
        known &= np.isfinite(block["found_chance"][image])
        beyond = block["found"][image].mean(0) - block["found_chance"][image]
    else:
        chance = block["chance"][image]
        beyond = np.where(chance < 0.5, block["share"][image].mean(0) - chance, -1)
    beyond = np.where(np.isfinite(beyond), beyond, -1.0)
    rank = 4.0 * (gained & known) + 2.0 * known + beyond
    best = int(rank.argmax())
    return float(rank[best]), (float(query[best][0]), float(query[best][1]))


# ---- in sentences ----------------------------------------------------------------------------------------------------


def looks(of_seed: Mapping[int, Sample]) -> str:
    """How alike a block's maps are and where they lie; what the block does with them no map can tell."""
    with_maps = {seed: s for seed, s in of_seed.items() if "similarity" in s}
    if not with_maps:
        reasons = [str(s.get("reason", "")) for s in of_seed.values()]
        return f"No maps: {next(filter(None, reasons), 'nothing was recorded')}."
    samples = list(with_maps.values())
    maps = samples[0]["similarity"].shape[-1]
    kinds = by_kind(_kinds(samples[0]), maps)
    said = [f"{capital(kind)}: " * bool(kind) + " ".join(_of_maps(samples, own)) for kind, own in kinds]
    heads = maps // len(kinds)
    if heads > 1:
        said.append(f"Numbers are means of {heads} heads.")
    return " ".join(said)


def _of_maps(samples: Sequence[Sample], own: slice) -> list[str]:
    """Sentences on some of the maps of each query, in the mean."""
    said = []
    if all("mean_found" in s for s in samples):
        by_seed = [float(np.nanmean(s["mean_found"][:, own])) for s in samples]
        chance = float(np.nanmean([s["mean_found_chance"] for s in samples]))
        if all(map(math.isfinite, by_seed)):
            said.append(
                f"{_percent(np.mean(by_seed))} of a {samples[0]['asking']}’s weight lies on the "
                f"{samples[0]['sought']}, {_percent(chance)} by chance{_seeds(by_seed)}."
            )
    elif all("mean_share" in s for s in samples):
        by_seed = [float(np.mean(s["mean_share"][:, own])) for s in samples]
        chance = float(np.mean([s["mean_chance"] for s in samples]))
        if all(map(math.isfinite, [*by_seed, chance])):
            said.append(
                f"{_percent(np.mean(by_seed))} of the weight lies on the query’s own class, which makes up "
                f"{_percent(chance)} of the positions{_seeds(by_seed)}."
            )
    similarity = float(np.mean([s["similarity"][:, own].mean() for s in samples]))
    said.append(
        "The map is the same for every query."
        if similarity >= SAME
        else f"Mean similarity between the maps of different queries {similarity:.2f}."
    )
    return said


def _seeds(values: Sequence[float]) -> str:
    return f" (seeds: {join([_percent(v) for v in values])})" if len(values) > 1 else ""


def _percent(share: Any) -> str:
    return f"{100 * float(share):.0f}\N{NO-BREAK SPACE}%"


# ---- maps and labels -------------------------------------------------------------------------------------------------


def labels_near(labels: np.ndarray, query: Any) -> list[int]:
    """The label under each query centre (y, x) in [0, 1]."""
    h, w = labels.shape
    # centres are rounded: one that lies on the edge of two pixels belongs to the second
    return [int(labels[min(int(y * h + 1e-3), h - 1), min(int(x * w + 1e-3), w - 1)]) for y, x in query]


def _reduced_queries(sample: Sample, detail: Detail) -> tuple[list[int], list[int]]:
    """Rows and columns of the stored grid of queries that are kept."""
    kept = []
    for stored in sample["query_size"]:
        stored = int(stored)
        wanted = min(stored, detail.queries)
        kept.append([(2 * i + 1) * stored // (2 * wanted) for i in range(wanted)])
    return kept[0], kept[1]


def _flat(rows: tuple[list[int], list[int]], sample: Sample) -> list[int]:
    width = int(sample["query_size"][1])
    return [r * width + c for r in rows[0] for c in rows[1]]


def _weights(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low[..., None] + (high - low)[..., None] * (stored / np.float32(255))


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


def _bytes(labels: Sequence[int]) -> str:
    return base64.b64encode(bytes(labels)).decode()


def _rounded(values: Any, digits: int = 3) -> Any:
    """Plain numbers with a few decimals; None for what is not known, since JSON has no nan."""
    values = np.asarray(values, float)
    if values.ndim:
        return [_rounded(v, digits) for v in values]
    return None if np.isnan(values) else round(float(values), digits)
