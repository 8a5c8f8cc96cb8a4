"""What a report shows of a trial: some validation images, what was predicted, and where its block looks.

One compressed ``samples.npz`` a trial. n images, each at most ``SIDE`` pixels a side:

    index (n,), name (n,)             which validation images
    image (n, C, h, w) uint8          as read, before normalisation; of clips the middle frame; or what the samples'
                                      ``picture(index)`` draws
    truth, prediction (n, h, w) uint8, (n,) int64 labels, or (n,) words, as the task shows them
    asks, holds (n, h, w) uint8       where data know answers: that of question q > 0 stands where holds is q; 0 is none
    asking (), sought ()              what asks and what holds the answer, in words; empty where the data do not know
    reason ()                         why there are no maps; an empty string where there are

and, of a block with weights over positions, for each of its maps, mostly heads (several share the room of one, on
coarser grids):

    map (n, heads, Q, m) uint8        value = low + (high - low) map / 255, on the key grid ``map_size``
    low, high (n, heads, Q) float32
    mean, mean_low, mean_high         the same of the query-independent part, over all queries asked: (n, heads, m), ...
    map_kinds (k,)                    what they are where they are not heads of one: each has all heads
    query (Q, 2) float32              centres of the queries, (y, x) in [0, 1]
    query_size, map_size, key_size, feature_size (2,)
    share (n, heads, Q), chance (n, Q)    of maps of labels: share of the weight on keys of the query's class, by chance
    found (n, heads, Q), found_chance (n, Q)    share on what holds the query's answer; nan where it asks nothing
    similarity (n, heads) float64     mean cosine between the maps of different queries, over ``queries_asked`` of them
    mean_share, mean_found (n, heads), mean_chance, mean_found_chance (n,)    their means over all queries asked
    queries_asked ()

Files of an earlier version hold the mean over heads, without their axis: ``lookfar.study.pictures`` gives it to them.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookfar._modes import modes_restored
from lookfar.diagnostics import maps as M
from lookfar.diagnostics._undisturbed import first

IGNORE = 255
SIDE = 480  # pixels: what a report can show of an image
QUERIES = 16  # a side: the grid of queries whose maps are kept, of one head
KEYS = 32  # a side: maps are averaged down to this, of one head
ASKED = 2048  # queries that the numbers are computed over, at most
_CHUNK = 256  # queries at a time


def choose_images(count: int, wanted: int = 12) -> list[int]:
    """Indices spread evenly over ``count`` images, the same for every trial of a study.

    >>> choose_images(100, 4)
    [12, 37, 62, 87]
    """
    wanted = min(wanted, count)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


@torch.no_grad()
def collect_samples(
    network: nn.Module, block_name: str | None, data: Any, task: Any, indices: list[int], path: Path
) -> None:
    """Write ``samples.npz`` of a trained network. Its training flags and random state are left as they were.

    Args:
        network: Images (B, in_chans, H, W) to what the task shows.
        block_name: Module name of the inserted block; None for a network without one.
        data: An opened data set: ``val``, ``val.names``, ``normalise``.
        task: Its ``show(output, target)`` gives truth and prediction of one sample: maps of labels (h, w),
            labels (), or words.
        indices: Validation images, the same for all trials, see :func:`choose_images`.
        path: The file to write.
    """
    device = next(network.parameters()).device
    block = None if block_name is None else network.get_submodule(block_name)
    reason = "no block" if block is None else M.why_no_maps(block)
    record: dict[str, list[Any]] = {}
    common: dict[str, Any] = {}
    seen: list[Tensor] = []
    answers, drawn = (getattr(data.val, what, None) for what in ("answer", "picture"))
    words = {key: np.array(getattr(data.val, key, "")) for key in ("asking", "sought")}
    keep = lambda _, *given: seen.append(first(*given))  # noqa: E731
    with modes_restored(network), ExitStack() as hooks:
        if block is not None:
            hooks.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
        network.eval()
        for index in indices:
            image, truth = (torch.as_tensor(np.asarray(part)) for part in data.val[index])
            seen.clear()
            output = network(data.normalise(image[None]).to(device))
            shown = task.show(output[0].cpu(), truth)
            row: dict[str, Any] = {
                "index": index,
                "name": str(data.val.names[index]),
                "image": _shrink((_picture(image) if drawn is None else drawn(index)).float()).round().byte().numpy(),
                **{name: _kept(part) for name, part in zip(("truth", "prediction"), shown)},
            }
            answer = None if answers is None else answers(index)
            if answer is not None:
                row["asks"], row["holds"] = (_shrink_labels(part).numpy() for part in answer)
            if block is not None and not reason:
                if seen[-1].dim() != 4:
                    reason = "its input is not a feature map"
                else:
                    of_image, common = _look(block, seen[-1].float(), shown[0], answer)
                    reason = common.pop("reason", "")
                    row |= of_image
            for key, value in row.items():
                record.setdefault(key, []).append(value)
    stacked = {key: np.stack(values) for key, values in record.items() if len(values) == len(indices)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(path).with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, reason=np.array(reason), **words, **stacked, **common)
    temporary.replace(path)


def _look(
    block: nn.Module, x: Tensor, truth: Tensor | str, answer: tuple[Tensor, Tensor] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of one image: what is stored of its maps, and what is the same for all images."""
    H, W = M.query_size(block, x.shape[-2:])
    N = H * W
    heads = M.attention_maps(block, x, torch.zeros(1, dtype=torch.long, device=x.device)).shape[1]
    room = heads**-0.25  # a side of queries and of keys
    grid = _grid(H, round(QUERIES * room)), _grid(W, round(QUERIES * room))
    shown = (grid[0][:, None] * W + grid[1]).flatten()
    asked = torch.arange(N) if N <= ASKED else torch.arange(ASKED) * N // ASKED
    maps = M.attention_maps(block, x, shown.to(x.device))
    keys = M.key_size(block, x.shape[-2:])
    if keys is None or len(keys) != 2 or math.prod(keys) != maps.shape[-1]:
        return {}, {"reason": f"its {maps.shape[-1]} keys form no grid on the {H}×{W} map"}

    shares = {}
    if isinstance(truth, Tensor) and truth.dim():
        labels = truth.to(x.device)
        shares["share"] = _Share((labels, labels), (H, W), keys)
    if answer is not None:
        asks, holds = (part.to(x.device) for part in answer)
        shares["found"] = _Share((asks.where(asks > 0, IGNORE), holds), (H, W), keys)
    # the numbers and the query-independent part over many queries, in full precision, a chunk at a time
    totals, counts, means = [], [], []
    over_asked: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in shares}
    for chunk in asked.split(_CHUNK):
        some = M.attention_maps(block, x, chunk.to(x.device))
        total, count = M.unit_sum(some)
        totals.append(total)
        counts.append(count)
        means.append(some.double().sum(-2))
        for name, share in shares.items():
            over_asked[name].append(share.of(some, chunk))
    similarity = M.similarity_from_sums(torch.stack(totals).sum(0), torch.stack(counts).sum(0))
    mean = torch.stack(means).sum(0)[0] / len(asked)  # (heads, M)

    small = min(keys[0], round(KEYS * room)), min(keys[1], round(KEYS * room))
    stored, low, high = _quantise(_pool(maps[0].flatten(0, 1), keys, small))
    mean_stored, mean_low, mean_high = _quantise(_pool(mean.float(), keys, small))
    found = {
        "map": stored.reshape(heads, len(shown), -1),
        "low": low.reshape(heads, -1),
        "high": high.reshape(heads, -1),
        "mean": mean_stored,
        "mean_low": mean_low,
        "mean_high": mean_high,
        "similarity": similarity[0].cpu().numpy(),
    }
    for name, share in shares.items():
        by_chance = "chance" if name == "share" else f"{name}_chance"
        lists = [share.of(maps, shown), tuple(torch.cat(parts, -1) for parts in zip(*over_asked[name]))]
        for prefix, (weight, chance) in zip(("", "mean_"), lists):
            weight, chance = weight[0].float(), chance[0].float()
            if prefix:
                weight, chance = weight.nanmean(-1), chance.nanmean(-1)
            found |= {f"{prefix}{name}": weight.cpu().numpy(), f"{prefix}{by_chance}": chance.cpu().numpy()}
    return found, {
        "map_kinds": np.array(M.map_kinds(block), dtype=str),
        "query": torch.stack([(shown // W + 0.5) / H, (shown % W + 0.5) / W], -1).float().numpy(),
        "query_size": np.array([len(grid[0]), len(grid[1])]),
        "map_size": np.array(small),
        "key_size": np.array(keys),
        "feature_size": np.array([H, W]),
        "queries_asked": np.array(len(asked)),
    }


class _Share:
    """The share of weight on keys that have the query's label."""

    def __init__(self, labels: tuple[Tensor, Tensor], queries: tuple[int, int], keys: tuple[int, ...]) -> None:
        self.queries = M.labels_at(labels[0][None], queries)
        self.keys = M.labels_at(labels[1][None], (keys[0], keys[1]))

    def of(self, maps: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (1, heads, Q, M) of some queries -> share (1, heads, Q) and chance (1, Q)."""
        return M.own_class_share(maps, self.queries[:, queries], self.keys)


def _grid(n: int, most: int) -> Tensor:
    """At most ``most`` positions of ``n``, evenly spread."""
    wanted = min(n, most)
    return (2 * torch.arange(wanted) + 1) * n // (2 * wanted)


def _pool(maps: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(maps.view(-1, 1, *size), to).flatten(1)


def _quantise(maps: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (Q, m) to uint8 with a scale of their own."""
    low, high = maps.amin(-1), maps.amax(-1)
    span = (high - low).where(high > low, 1)
    stored = ((maps - low[:, None]) / span[:, None] * 255).round().byte()
    return stored.cpu().numpy(), low.float().cpu().numpy(), high.float().cpu().numpy()


def _small(h: int, w: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(h, w))
    return max(round(h * scale), 1), max(round(w * scale), 1)


def _picture(image: Tensor) -> Tensor:
    """(C, h, w) of an input of any rank: the middle one of several frames, a line of a sequence."""
    if image.ndim < 3:
        return image.reshape(len(image), 1, -1)
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    return image


def _shrink(image: Tensor) -> Tensor:
    size = _small(*image.shape[-2:])
    if size == tuple(image.shape[-2:]):
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _kept(part: Tensor | str) -> np.ndarray:
    """Truth or prediction as the file holds it: a map of labels at most so large, one label, or words."""
    if not isinstance(part, Tensor):
        return np.array(part)
    return _shrink_labels(part).numpy() if part.dim() else part.numpy().astype(np.int64)


def _shrink_labels(labels: Tensor) -> Tensor:
    size = _small(*labels.shape[-2:])
    return M.labels_at(labels[None], size).view(size).byte()
