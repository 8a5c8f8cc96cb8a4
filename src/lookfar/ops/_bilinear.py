"""Samples between positions: where they lie, what they read, and how many are held at a time.

Maps are rows ``(B N, C)`` here, one for each position, so that a sample reads and gives whole rows.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._layout import match_format
from lookfar.ops._window import Pair

CORNERS = 4  # of a place between positions

BAGS = ("cpu", "cuda")  # devices that sum rows without copying them, in every version of torch

# numbers held at a time: 1 MB of float32 stays in a CPU's cache, a GPU needs more to be busy
LIMIT = {"cpu": 1 << 18}
LIMIT_ELSEWHERE = 1 << 25


def places_of(offsets: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of all samples, ``(k^2, B N)`` each."""
    _, twice, H, W = offsets.shape
    k = math.isqrt(twice // 2)
    step = dilation * (torch.arange(k, dtype=offsets.dtype, device=offsets.device) - k // 2)
    down, right = (torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in (H, W))
    moves = offsets.transpose(0, 1).unflatten(0, (k, k, 2))  # (k, k, 2, B, H, W)
    rows = moves[:, :, 0] + step[:, None, None, None, None] + down[:, None]
    columns = moves[:, :, 1] + step[:, None, None, None] + right
    return rows.flatten(0, 1).flatten(1), columns.flatten(0, 1).flatten(1)


def corners(
    rows: Tensor, columns: Tensor, size: Pair, start: Tensor | int = 0, *, slopes: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """For each of the four positions around the places: its index, counted from ``start``, the first position of the
    place's map; its bilinear weight, 0 outside; and with ``slopes`` the weight's derivatives by row and by column.
    """
    (down, there, by_height), (right, here, by_width) = _line(rows, size[0]), _line(columns, size[1])
    found = [start + (down * size[1])[:, None] + right, by_height[:, None] * by_width]
    if slopes:
        found += [_slope(there)[:, None] * by_width, by_height[:, None] * _slope(here)]
    return zip(*(t.flatten(0, 1).unbind() for t in found))


def _line(places: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two integers around each place, ``(2, *places)``, whether they are on an axis of ``n``, and their shares."""
    first = places.floor()
    u = places - first
    at = torch.stack([first, first + 1])
    inside = ~((at < 0) | (at >= n))  # a place that is NaN counts as on the axis, and gives NaN
    return at.long().clamp(0, n - 1), inside, torch.where(inside, torch.stack([1 - u, u]), 0)


def _slope(inside: Tensor) -> Tensor:
    """Derivatives of the shares by the place: integers, which take the precision of what they multiply."""
    return torch.stack([-inside[0].int(), inside[1].int()])


def starts_of(n: int, size: Pair, device: torch.device) -> Tensor:
    """The row at which the map of each of the ``n`` = B N rows begins."""
    N = size[0] * size[1]
    return torch.arange(n, device=device) // N * N


def block_starts(cells: slice, n: int, size: Pair, device: torch.device) -> Tensor:
    """As :func:`starts_of`, where each sample has maps of its own, one after the other."""
    return starts_of(n, size, device) + n * torch.arange(cells.stop - cells.start, device=device)[:, None]


def bags(rows: Tensor, columns: Tensor, size: Pair, start: Tensor, *, slopes: bool = False) -> tuple[Tensor, ...]:
    """:func:`corners` of the places ``(cells, n)`` side by side, ``(n, 4 cells)`` each: what a position reads."""
    found = zip(*corners(rows, columns, size, start, slopes=slopes))
    return tuple(torch.cat(parts).T.contiguous() for parts in found)


def gathered(x: Tensor, at: Tensor, shares: Tensor) -> Tensor:
    """Sums of the rows ``at`` (n, m) of ``x`` times their shares (n, m): ``(n, C)``."""
    if x.device.type in BAGS:
        return F.embedding_bag(at, x, mode="sum", per_sample_weights=shares)
    parts = _parts(len(at), at.shape[1] * x.shape[1], x.device)
    return torch.cat([x[:0], *((shares[some, :, None] * x[at[some]]).sum(1) for some in parts)])


def met(x: Tensor, at: Tensor, shares: Tensor, g: Tensor) -> Tensor:
    """The gradient of :func:`gathered` by the shares."""
    # by a transform, since autograd is switched off within an operation
    return torch.func.vjp(lambda shares: gathered(x, at, shares), shares)[1](g)[0]


def give(x: Tensor, at: Tensor, shares: Tensor, g: Tensor) -> None:
    """Add to ``x`` the gradient of :func:`gathered` by it; as many rows are held at a time as the budget lets."""
    for some in _parts(len(at), at.shape[1] * x.shape[1], x.device):
        given = (shares[some, :, None] * g[some, None]).flatten(0, 1)
        x.scatter_add_(0, at[some].flatten()[:, None].expand(-1, x.shape[1]), given)


def blocks(n: int, samples: int, device: torch.device) -> list[slice]:
    """Of n positions, which read so many samples each, those whose corners are held at a time."""
    return _parts(n, 2 * CORNERS * samples, device)


def groups(cells: int, numbers: int, device: torch.device) -> list[slice]:
    """Of maps of so many numbers, one a cell, those that are held at a time."""
    return _parts(cells, numbers, device)


def _parts(n: int, numbers: int, device: torch.device) -> list[slice]:
    step = max(LIMIT.get(device.type, LIMIT_ELSEWHERE) // max(numbers, 1), 1)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def rows_of(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B N, C)``, whole rows in memory; not copied where the map is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2).contiguous()  # that of one image may be a view without it


def map_of(y: Tensor, x: Tensor) -> Tensor:
    """``(B N, E) -> (B, E, H, W)`` in the precision and the memory format of ``x``."""
    B, _, H, W = x.shape
    return match_format(y.view(B, H, W, y.shape[1]).permute(0, 3, 1, 2).to(x.dtype), x)
