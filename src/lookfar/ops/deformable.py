"""Weighted sums over a small grid of samples that each position shifts by its own offsets, with bilinear interpolation.

Sample (i, j) of position p lies at p + dilation (i - r, j - r) + its offset; the map is zero outside.

The definition reads k^2 C numbers per position. Interpolation is linear, so a convolution can mix channels first, and
sums are accumulated sample by sample: N (C + G k^2) numbers, forward and backward.

Traps: offsets are (row, column), in positions, one field for all channels; places are float32 at least, since half
precision has no fraction left on large maps; at whole numbers the derivative is the right-hand one, unlike that of the
tent 1 - |p - m| or of a grid normalised to -1 .. 1 and back.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._checked import positive
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._window import Pair, Window, weighted_sum
from lookfar.ops.neighborhood import neighborhood_rows

# numbers read at a time: 1 MB of float32 stays in a CPU's cache, a GPU needs more to be busy
LIMIT = {"cpu": 1 << 18}
LIMIT_ELSEWHERE = 1 << 25


def deformable_sum_reference(weights: Tensor, x: Tensor, offsets: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """The definition: all samples, ``(B, C, k^2, H, W)``, times their weights.

    >>> x, w = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.ones(1, 1, 1, 1, 3)
    >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)  # half a position to the right
    >>> deformable_sum_reference(w, x, offsets).tolist()
    [[[[1.5, 2.5, 1.5]]]]
    """
    B, G, K, H, W = weights.shape
    if offsets is None:
        k, margin = math.isqrt(K), dilation * (math.isqrt(K) // 2)
        steps = range(0, dilation * k, dilation)
        seen, there = (
            torch.stack([F.pad(t, (margin,) * 4)[:, :, a : a + H, b : b + W] for a in steps for b in steps], 2)
            for t in (x, torch.ones_like(x))
        )
        there = there.unflatten(1, (G, x.shape[1] // G)) == 1
    else:
        seen, there = _samples(x, offsets, dilation), torch.ones((), dtype=torch.bool, device=x.device)
    seen = seen.unflatten(1, (G, x.shape[1] // G))
    return torch.where(there, weights[:, :, None] * seen, 0).sum(3).flatten(1, 2)


def deformable_sum(weights: Tensor, x: Tensor, offsets: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """Every position's weighted sum of its shifted samples.

    Places and sums are float32 where ``x`` is float16 or bfloat16.

    >>> x, w = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.ones(1, 1, 1, 1, 3)
    >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)  # half a position to the right
    >>> deformable_sum(w, x, offsets).tolist()
    [[[[1.5, 2.5, 1.5]]]]

    Args:
        weights: ``(B, G, k^2, H, W)``, samples row by row, k odd; group g weighs the channels g C/G .. (g + 1) C/G.
        x: ``(B, C, H, W)``.
        offsets: ``(B, 2 k^2, H, W)``, row and column of each sample in turn; None for no shift.
        dilation: Spacing of the grid's samples.

    Shape: ``(B, C, H, W)``

    Raises:
        ValueError: Shapes that do not fit.
    """
    B, C, H, W = x.shape
    if weights.dim() != 5 or weights.shape[0] != B or weights.shape[3:] != (H, W) or C % weights.shape[1]:
        raise ValueError(
            f"want weights (B, G, k^2, H, W) and x (B, C, H, W), G divides C; {weights.shape=}, {x.shape=}"
        )
    G, K = weights.shape[1:3]
    k = _side(K, offsets, x, dilation)
    with without_autocast(x):
        w, wide = widened(weights), widened(x)
        if offsets is None:
            y = weighted_sum(w, wide.unflatten(1, (G, C // G)), Window((k, k), dilation=(dilation, dilation)))
            return match_format(y.flatten(1, 2).to(x.dtype), x)
        places = _places(widened(offsets), dilation)
        w = w.permute(2, 0, 3, 4, 1).reshape(K, -1, G).contiguous()
        apply = _sum if for_graphs() or has_tangent(w, wide, *places) else _Sum.apply
        y: Any = apply(w, _rows_of(wide), *places, (H, W))
    return _map_of(y, x)


def deformable_convolution_reference(x: Tensor, weight: Tensor, offsets: Tensor, *, dilation: int = 1) -> Tensor:
    """The definition: all samples, ``(B, C, k^2, H, W)``, times the kernel.

    >>> x, kernel = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.full((1, 1, 1, 1), 10.0)
    >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)  # half a position to the right
    >>> deformable_convolution_reference(x, kernel, offsets).tolist()
    [[[[15.0, 25.0, 15.0]]]]
    """
    return torch.einsum("ock,bckyx->boyx", weight.flatten(2), _samples(x, offsets, dilation))


def deformable_convolution(x: Tensor, weight: Tensor, offsets: Tensor, *, dilation: int = 1) -> Tensor:
    """A convolution whose samples are shifted at every position; zeros outside, the output as large as the input.

    >>> x, kernel = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.full((1, 1, 1, 1), 10.0)
    >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)  # half a position to the right
    >>> deformable_convolution(x, kernel, offsets).tolist()
    [[[[15.0, 25.0, 15.0]]]]

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(O, C, k, k)``, k odd.
        offsets: ``(B, 2 k^2, H, W)``, row and column of each sample in turn.
        dilation: Spacing of the kernel's samples.

    Shape: ``(B, O, H, W)``

    Raises:
        ValueError: Shapes that do not fit.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1] != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"want x (B, C, H, W) and weight (O, C, k, k), got {x.shape=}, {weight.shape=}")
    _side(weight.shape[2] * weight.shape[3], offsets, x, dilation)
    with without_autocast(x):
        matrices = widened(weight).flatten(2).permute(2, 1, 0)  # (k^2, C, O)
        places = _places(widened(offsets), dilation)
        rows = _rows_of(widened(x))
        apply = _convolution if for_graphs() or has_tangent(rows, matrices, *places) else _Convolution.apply
        y: Any = apply(rows, matrices, *places, (x.shape[2], x.shape[3]))
    return _map_of(y, x)


def deformable_rows(
    weights: Tensor, offsets: Tensor | None = None, *, dilation: int = 1, queries: Tensor | None = None
) -> Tensor:
    """Weights of shifted samples as rows over all positions; what falls outside the map is dropped.

    >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)  # half a position to the right
    >>> deformable_rows(torch.ones(1, 1, 1, 1, 3), offsets).tolist()
    [[[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]]]]

    Args:
        weights: ``(B, G, k^2, H, W)``.
        offsets: As in :func:`deformable_sum`.
        dilation: As in :func:`deformable_sum`.
        queries: Flat positions ``(Q,)``; all when None.

    Shape: ``(B, G, Q, N)``
    """
    B, G, K, H, W = weights.shape
    if offsets is None:
        return neighborhood_rows(weights, (H, W), kernel_size=math.isqrt(K), dilation=dilation, queries=queries)
    w = weights.flatten(3).transpose(2, 3)  # (B, G, N, k^2)
    rows, columns = (t.unflatten(1, (B, -1)).permute(1, 2, 0) for t in _places(widened(offsets), dilation))
    if queries is not None:
        w, rows, columns = w[:, :, queries], rows[:, queries], columns[:, queries]
    dense = w.new_zeros((*w.shape[:3], H * W))
    for at, share in _corners(rows, columns, (H, W)):
        given = w * share[:, None]
        dense = dense.scatter_add(3, at[:, None].expand_as(given), given)
    return dense


def _corners(
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


def _starts(n: int, size: Pair, device: torch.device) -> Tensor:
    """The row at which the map of each of the ``n`` = B N rows begins."""
    N = size[0] * size[1]
    return torch.arange(n, device=device) // N * N


def _sum(w: Tensor, x: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
    """``(k^2, n, G), (n, C), (k^2, n), (k^2, n) -> (n, C)``, n = B N: all samples at a time."""
    K, n, G = w.shape
    seen = _all_samples(x, rows, columns, size, _starts(n, size, x.device).repeat(K))
    return (w[..., None] * seen.view(K, n, G, x.shape[1] // G)).sum(0).flatten(1)


def _convolution(x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
    """``(n, C), (k^2, C, O), (k^2, n), (k^2, n) -> (n, O)``."""
    (K, n), O = rows.shape, weight.shape[2]
    starts = _block_starts(slice(0, K), n, size, x.device).flatten()
    return _all_samples((x @ weight).view(K * n, O), rows, columns, size, starts).view(K, n, O).sum(0)


def _all_samples(x: Tensor, rows: Tensor, columns: Tensor, size: Pair, starts: Tensor) -> Tensor:
    """``(k^2 n, C)`` of the places, (k^2, n), in maps that begin at the rows ``starts`` (k^2 n,) of x."""
    parts = [
        share[:, None] * x.index_select(0, at)
        for at, share in _corners(rows.flatten(), columns.flatten(), size, starts)
    ]
    return sum(parts[1:], parts[0])


class _Sum(torch.autograd.Function):
    """:func:`_sum` over as many samples at a time as the budget allows."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
        ctx.save_for_backward(w, x, rows, columns)
        ctx.size = size
        n, G = w.shape[1:]
        y = torch.zeros_like(x)
        starts = _starts(n, size, x.device)
        for cells, some, held in _blocks(w.shape[0], x):
            for at, share in _corners(rows[cells, some], columns[cells, some], size, starts[some]):
                seen = _read(x, at, held).unflatten(2, (G, x.shape[1] // G))
                seen *= (w[cells, some] * share[..., None])[..., None]
                y[some] += (seen.sum(0) if len(seen) > 1 else seen[0]).flatten(1)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, x, rows, columns = saved = ctx.saved_tensors
        if needs_graph():
            f = functools.partial(_sum, size=ctx.size)
            return *gradients(f, saved, ctx.needs_input_grad[:4], grads[0]), None
        (K, n, G), C = w.shape, x.shape[1]
        g = grads[0].contiguous().view(n, G, C // G)
        gw, gx, gr, gc = (torch.zeros_like(t) for t in saved)
        starts = _starts(n, ctx.size, x.device)
        for cells, some, held in _blocks(K, x):
            places = rows[cells, some], columns[cells, some]
            for at, share, fall, drift in _corners(*places, ctx.size, starts[some], slopes=True):
                seen = _read(x, at, held).unflatten(2, (G, C // G))
                met = seen.mul_(g[some]).sum(-1)  # (cells, some, G)
                gw[cells, some] += share[..., None] * met
                met = (w[cells, some] * met).sum(-1)
                gr[cells, some] += fall * met
                gc[cells, some] += drift * met
                given = torch.mul((w[cells, some] * share[..., None])[..., None], g[some], out=seen)
                _give(gx, at, given.flatten(2))
        return gw, gx, gr, gc, None


class _Convolution(torch.autograd.Function):
    """:func:`_convolution` over as many samples at a time as the budget allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        ctx.size = size
        n = len(x)
        y = x.new_zeros((n, weight.shape[2]))
        for cells, parts in _grouped(_blocks(len(weight), y)):
            mixed = (x @ weight[cells]).flatten(0, 1)
            starts = _block_starts(cells, n, size, x.device)
            for some, held in parts:
                for at, share in _corners(rows[cells, some], columns[cells, some], size, starts[:, some]):
                    seen = _read(mixed, at, held)
                    seen *= share[..., None]
                    y[some] += seen.sum(0) if len(seen) > 1 else seen[0]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, rows, columns = saved = ctx.saved_tensors
        if needs_graph():
            f = functools.partial(_convolution, size=ctx.size)
            return *gradients(f, saved, ctx.needs_input_grad[:4], grads[0]), None
        n, g = len(x), grads[0].contiguous()
        gx, gw, gr, gc = (torch.zeros_like(t) for t in saved)
        with without_autocast(x):
            for cells, parts in _grouped(_blocks(len(weight), g)):
                mixed = (x @ weight[cells]).flatten(0, 1)
                back = torch.zeros_like(mixed)
                starts = _block_starts(cells, n, ctx.size, x.device)
                for some, held in parts:
                    places = rows[cells, some], columns[cells, some]
                    for at, share, fall, drift in _corners(*places, ctx.size, starts[:, some], slopes=True):
                        seen = _read(mixed, at, held)
                        met = seen.mul_(g[some]).sum(-1)  # (cells, some)
                        gr[cells, some] += fall * met
                        gc[cells, some] += drift * met
                        _give(back, at, torch.mul(share[..., None], g[some], out=seen))
                for given, matrix, to in zip(back.split(n), weight[cells], gw[cells]):
                    gx.addmm_(given, matrix.T)
                    to.copy_(x.T @ given)
        return gx, gw, gr, gc, None


def _blocks(cells: int, like: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of samples and of positions of a map ``like`` (n, C) that are held at a time, and the memory for them."""
    n, C = like.shape
    limit = LIMIT.get(like.device.type, LIMIT_ELSEWHERE)
    held = like.new_empty((max(min(limit // max(C, 1), cells * n), 1), C))
    step = min(max(len(held) // max(n, 1), 1), cells)
    some = min(len(held), n)
    for first in range(0, cells, step):
        last = min(first + step, cells)
        for start in range(0, n, max(some, 1)):
            stop = min(start + some, n)
            yield slice(first, last), slice(start, stop), held[: (last - first) * (stop - start)]


def _grouped(
    blocks: Iterator[tuple[slice, slice, Tensor]],
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """The blocks of the same samples together."""
    for first, found in itertools.groupby(blocks, key=lambda block: (block[0].start, block[0].stop)):
        yield slice(*first), ((some, held) for _, some, held in found)


def _read(x: Tensor, at: Tensor, held: Tensor) -> Tensor:
    """``(cells, n, C)``, the rows ``at`` (cells, n) of ``x`` (m, C), in the memory of ``held``."""
    return torch.index_select(x, 0, at.flatten(), out=held).view(*at.shape, x.shape[1])


def _give(x: Tensor, at: Tensor, given: Tensor) -> None:
    """Add ``given`` (cells, n, C) to the rows ``at`` (cells, n) of ``x`` (m, C)."""
    x.scatter_add_(0, at.flatten()[:, None].expand(-1, x.shape[1]), given.flatten(0, 1))


def _block_starts(cells: slice, n: int, size: Pair, device: torch.device) -> Tensor:
    """As :func:`_starts`, where each sample has maps of its own, one after the other."""
    return _starts(n, size, device) + n * torch.arange(cells.stop - cells.start, device=device)[:, None]


def _places(offsets: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of all samples, ``(k^2, B N)`` each."""
    _, twice, H, W = offsets.shape
    k = math.isqrt(twice // 2)
    step = dilation * (torch.arange(k, dtype=offsets.dtype, device=offsets.device) - k // 2)
    down, right = (torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in (H, W))
    moves = offsets.transpose(0, 1).unflatten(0, (k, k, 2))  # (k, k, 2, B, H, W)
    rows = moves[:, :, 0] + step[:, None, None, None, None] + down[:, None]
    columns = moves[:, :, 1] + step[:, None, None, None] + right
    return rows.flatten(0, 1).flatten(1), columns.flatten(0, 1).flatten(1)


def _samples(x: Tensor, offsets: Tensor, dilation: int) -> Tensor:
    """``(B, C, k^2, H, W)``, for the definitions: sum_nm x_nm t(row - n) t(column - m), pixel (n, m) by pixel."""
    H, W = x.shape[2:]
    cells = offsets.shape[1] // 2
    k = math.isqrt(cells)
    cell = torch.arange(cells, device=x.device)[:, None, None]
    row = offsets[:, 0::2] + dilation * (cell // k - k // 2) + torch.arange(H, device=x.device)[:, None]
    column = offsets[:, 1::2] + dilation * (cell % k - k // 2) + torch.arange(W, device=x.device)
    # zero, but part of the graph even where the map has no pixels
    seen = (x.sum((2, 3))[:, :, None, None, None] + (row + column)[:, None]).mul(0).nan_to_num(0, 0, 0)
    for n, m in itertools.product(range(H), range(W)):
        down, right = row - n, column - m
        far = (down < -1) | (down >= 1) | (right < -1) | (right >= 1)
        share = torch.where(down < 0, 1 + down, 1 - down) * torch.where(right < 0, 1 + right, 1 - right)
        seen = seen + (share[:, None] * x[:, :, n, m, None, None, None]).masked_fill(far[:, None], 0)
    return seen


def _rows_of(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B N, C)``, whole rows in memory; not copied where the map is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map_of(y: Tensor, x: Tensor) -> Tensor:
    """``(B N, E) -> (B, E, H, W)`` in the precision and the memory format of ``x``."""
    B, _, H, W = x.shape
    return match_format(y.view(B, H, W, y.shape[1]).permute(0, 3, 1, 2).to(x.dtype), x)


def _side(cells: int, offsets: Tensor | None, x: Tensor, dilation: int) -> int:
    """The side k of the grid, after checking what was given."""
    k = math.isqrt(cells)
    if k * k != cells or k % 2 == 0:
        raise ValueError(f"the grid has k x k samples, k odd; got {cells} of them")
    if offsets is not None and offsets.shape != (x.shape[0], 2 * cells, *x.shape[2:]):
        raise ValueError(
            f"want offsets (B, 2 k^2, H, W), two for each of {cells} samples; {offsets.shape=}, {x.shape=}"
        )
    positive("dilation", dilation)
    return k
