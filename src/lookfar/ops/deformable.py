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
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._bilinear import (
    CORNERS,
    bags,
    block_starts,
    blocks,
    corners,
    gathered,
    give,
    groups,
    map_of,
    met,
    places_of,
    rows_of,
    starts_of,
)
from lookfar.ops._checked import positive
from lookfar.ops._layout import match_format
from lookfar.ops._loops import of_function, trains_compiled
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._window import Pair, Window, weighted_sum
from lookfar.ops.neighborhood import neighborhood_rows


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
        places = places_of(widened(offsets), dilation)
        w = w.permute(2, 0, 3, 4, 1).reshape(K, -1, G).contiguous()
        inputs = w, rows_of(wide), *places
        if trains_compiled(*inputs):
            return map_of(_SUM(inputs, (H, W)), x)
        apply = _sum if for_graphs() or has_tangent(*inputs) else _Sum.apply
        y: Any = apply(*inputs, (H, W))
    return map_of(y, x)


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
        places = places_of(widened(offsets), dilation)
        inputs = rows_of(widened(x)), matrices, *places
        if trains_compiled(*inputs):
            return map_of(_CONVOLUTION(inputs, x.shape[2:]), x)
        apply = _convolution if for_graphs() or has_tangent(*inputs) else _Convolution.apply
        y: Any = apply(*inputs, (x.shape[2], x.shape[3]))
    return map_of(y, x)


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
    rows, columns = (t.unflatten(1, (B, -1)).permute(1, 2, 0) for t in places_of(widened(offsets), dilation))
    if queries is not None:
        w, rows, columns = w[:, :, queries], rows[:, queries], columns[:, queries]
    dense = w.new_zeros((*w.shape[:3], H * W))
    for at, share in corners(rows, columns, (H, W)):
        given = w * share[:, None]
        dense = dense.scatter_add(3, at[:, None].expand_as(given), given)
    return dense


def _sum(w: Tensor, x: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
    """``(k^2, n, G), (n, C), (k^2, n), (k^2, n) -> (n, C)``, n = B N: all samples at a time."""
    K, n, G = w.shape
    seen = _all_samples(x, rows, columns, size, starts_of(n, size, x.device).repeat(K))
    return (w[..., None] * seen.view(K, n, G, x.shape[1] // G)).sum(0).flatten(1)


def _convolution(x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
    """``(n, C), (k^2, C, O), (k^2, n), (k^2, n) -> (n, O)``."""
    (K, n), O = rows.shape, weight.shape[2]
    starts = block_starts(slice(0, K), n, size, x.device).flatten()
    return _all_samples((x @ weight).view(K * n, O), rows, columns, size, starts).view(K, n, O).sum(0)


def _all_samples(x: Tensor, rows: Tensor, columns: Tensor, size: Pair, starts: Tensor) -> Tensor:
    """``(k^2 n, C)`` of the places, (k^2, n), in maps that begin at the rows ``starts`` (k^2 n,) of x."""
    parts = [
        share[:, None] * x.index_select(0, at) for at, share in corners(rows.flatten(), columns.flatten(), size, starts)
    ]
    return sum(parts[1:], parts[0])


class _Sum(torch.autograd.Function):
    """:func:`_sum` for as many positions at a time as the budget allows."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
        ctx.save_for_backward(w, x, rows, columns)
        ctx.size = size
        (K, n, G), y = w.shape, torch.empty_like(x)
        starts = starts_of(n, size, x.device)
        for some in blocks(n, K * G, x.device):
            at, shares = bags(rows[:, some], columns[:, some], size, starts[some])
            y[some] = gathered(_apart(x, G), _of_groups(at, G), _weighted(shares, w[:, some])).view(-1, x.shape[1])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, x, rows, columns = saved = ctx.saved_tensors
        if needs_graph():
            f = functools.partial(_sum, size=ctx.size)
            return *gradients(f, saved, ctx.needs_input_grad[:4], grads[0]), None
        (K, n, G), g = w.shape, grads[0].contiguous()
        gw, gx, gr, gc = (torch.zeros_like(t) for t in saved)
        starts = starts_of(n, ctx.size, x.device)
        for some in blocks(n, K * G, x.device):
            at, *slopes = bags(rows[:, some], columns[:, some], ctx.size, starts[some], slopes=True)
            shares, fall, drift = (t.unflatten(1, (CORNERS, K)) for t in slopes)
            weights = _weighted(slopes[0], w[:, some])
            given = _of_groups(at, G), weights, _apart(g[some], G)
            give(_apart(gx, G), *given)
            seen = met(_apart(x, G), *given).view(-1, G, CORNERS, K)
            gw[:, some] = (shares[:, None] * seen).sum(2).permute(2, 0, 1)
            seen = (w[:, some].permute(1, 2, 0)[:, :, None] * seen).sum(1)
            gr[:, some], gc[:, some] = ((slope * seen).sum(1).T for slope in (fall, drift))
        return gw, gx, gr, gc, None


def _apart(x: Tensor, groups: int) -> Tensor:
    """A view, ``(n, C) -> (n G, C / G)``."""
    return x.view(len(x) * groups, x.shape[1] // groups)


def _of_groups(at: Tensor, groups: int) -> Tensor:
    """Rows of :func:`_apart` of the rows ``at``, ``(n, m) -> (n G, m)``."""
    return (groups * at[:, None] + torch.arange(groups, device=at.device)[:, None]).flatten(0, 1)


def _weighted(shares: Tensor, w: Tensor) -> Tensor:
    """``(n, 4 k^2), (k^2, n, G) -> (n G, 4 k^2)``."""
    w = w.permute(1, 2, 0)
    return (shares[:, None].unflatten(2, (CORNERS, -1)) * w[:, :, None]).flatten(2).flatten(0, 1)


class _Convolution(torch.autograd.Function):
    """:func:`_convolution` over as many samples, for as many positions, at a time as the budget allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        ctx.size = size
        n, O = len(x), weight.shape[2]
        y = x.new_zeros((n, O))
        for cells in groups(len(weight), n * O, x.device):
            mixed = (x @ weight[cells]).flatten(0, 1)
            starts = block_starts(cells, n, size, x.device)
            for some in blocks(n, len(starts), x.device):
                y[some] += gathered(mixed, *bags(rows[cells, some], columns[cells, some], size, starts[:, some]))
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
            for cells in groups(len(weight), g.numel(), x.device):
                mixed = (x @ weight[cells]).flatten(0, 1)
                back = torch.zeros_like(mixed)
                starts = block_starts(cells, n, ctx.size, x.device)
                for some in blocks(n, len(starts), x.device):
                    places = rows[cells, some], columns[cells, some]
                    at, shares, *slopes = bags(*places, ctx.size, starts[:, some], slopes=True)
                    give(back, at, shares, g[some])
                    seen = met(mixed, at, shares, g[some])
                    fall, drift = ((slope * seen).unflatten(1, (CORNERS, -1)).sum(1).T for slope in slopes)
                    gr[cells, some], gc[cells, some] = fall, drift
                for given, matrix, to in zip(back.split(n), weight[cells], gw[cells]):
                    gx.addmm_(given, matrix.T)
                    to.copy_(x.T @ given)
        return gx, gw, gr, gc, None


def _size(sizes: Sequence[int], _: Any) -> Pair:
    H, W = sizes
    return H, W


_SUM = of_function("deformable_sum", _Sum, _sum, lambda given, _: given[1].shape, size=_size)
_CONVOLUTION = of_function(
    "deformable_convolution",
    _Convolution,
    _convolution,
    lambda given, _: (given[0].shape[0], given[1].shape[2]),
    size=_size,
)


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
