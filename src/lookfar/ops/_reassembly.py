"""CARAFE's reassembly on a CPU, row by row of the small map.

The s^2 output pixels of one source see the same k^2 cells: a matrix of weights times one of values. If the k rows that
a row sees are laid side by side, column by column, every window is one piece of memory, and those of a row are a batch
of matrices that overlap and are not copied.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import gradients, needs_graph
from lookfar.ops._loops import of_function
from lookfar.ops._precision import wide, widened
from lookfar.ops._window import Window, weighted_sum


class Reassembly(torch.autograd.Function):
    """``(B, C, H, W), (B, G, k^2, s^2, H, W) -> (B, C, sH, sW)``, or ``(B, sH, sW, C)`` where ``last``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, last: bool) -> Tensor:
        ctx.save_for_backward(x, cells)
        ctx.last = last
        y = x.new_empty(_size(x, cells, last))
        for part, weights, out in zip(_groups(x, cells), cells.flatten(0, 1), _groups(_map(y, last), cells)):
            _assemble(part, weights, out)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, cells = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if needs_graph():
            return *gradients(lambda *t: reassembled(t[0], t[1], ctx.last), (x, cells), wanted, grads[0]), None
        dx, dcells = torch.empty_like(x), torch.empty_like(cells, memory_format=torch.contiguous_format)
        maps = _groups(x, cells), cells.flatten(0, 1), _groups(_map(grads[0], ctx.last), cells)
        for given in zip(*maps, _groups(dx, cells), dcells.flatten(0, 1)):
            _pull(*given, wanted)
        return *(g if w else None for g, w in zip((dx, dcells), wanted)), None


def _size(x: Tensor, cells: Tensor, last: bool) -> tuple[int, ...]:
    (B, C, H, W), s = x.shape, math.isqrt(cells.shape[3])
    return (B, s * H, s * W, C) if last else (B, C, s * H, s * W)


def _map(y: Tensor, last: bool) -> Tensor:
    return y.permute(0, 3, 1, 2) if last else y


def _groups(x: Tensor, cells: Tensor) -> Iterator[Tensor]:
    """Of every image and group the channels ``(C/G, H, W)``."""
    return (part for image in x for part in image.unflatten(0, (cells.shape[1], -1)))


def _assemble(x: Tensor, cells: Tensor, y: Tensor) -> None:
    """``(D, H, W), (k^2, s^2, H, W) -> (D, sH, sW)``, written into ``y``."""
    (W, D), s = (x.shape[2], len(x)), math.isqrt(cells.shape[1])
    weights = _weights(cells)
    seen = weights.new_empty(W, s * s, D)
    for h, stack in enumerate(_stacks(_padded(x, cells), cells)):
        torch.bmm(weights[h].flatten(2), _windows(stack, W), out=seen)
        lines, pixels = y[:, s * h : s * (h + 1)], seen.unflatten(1, (s, s)).transpose(0, 1)  # (s, W, s, D)
        if y.stride(0) == 1:
            lines.permute(1, 2, 0).unflatten(1, (W, s)).copy_(pixels)
        else:  # twice, and each in long pieces
            lines.copy_(pixels.flatten(0, 2).t().contiguous().view_as(lines))


def _pull(x: Tensor, cells: Tensor, dy: Tensor, dx: Tensor, dcells: Tensor, wanted: tuple[bool, bool]) -> None:
    """The gradients that are wanted of :func:`_assemble`, written into ``dx`` and ``dcells``."""
    W, k, s = x.shape[2], math.isqrt(len(cells)), math.isqrt(cells.shape[1])
    weights, rows = _weights(cells), _padded(x, cells)
    dweights, drows = torch.empty_like(weights), torch.zeros_like(rows)
    for h, stack in enumerate(_stacks(rows, cells)):
        lines = widened(dy[:, s * h : s * (h + 1)])
        lines = lines.permute(1, 2, 0) if dy.stride(0) == 1 else lines.flatten(1).t().contiguous()
        pixels = lines.reshape(s, W, s, len(x)).transpose(0, 1).flatten(1, 2)  # (W, s^2, D)
        if wanted[1]:
            torch.bmm(pixels, _windows(stack, W).transpose(1, 2), out=dweights[h].flatten(2))
        if wanted[0]:
            given = torch.zeros_like(stack)
            for column in range(k):
                given[column : column + W].baddbmm_(weights[h, :, :, column].transpose(1, 2), pixels)
            drows[h : h + k].add_(given.transpose(0, 1))
    if wanted[0]:
        dx.copy_(_inside(drows, k // 2).flatten(0, 1).t().contiguous().view_as(dx))
    if wanted[1]:
        dcells.copy_(_without_outside(dweights).permute(4, 3, 2, 0, 1).reshape(cells.shape))


def _weights(cells: Tensor) -> Tensor:
    """``(k^2, s^2, H, W) -> (H, W, s^2, k, k)``, columns of cells before rows."""
    k = math.isqrt(len(cells))
    turned = cells.unflatten(0, (k, k)).permute(3, 4, 2, 1, 0)
    return _without_outside(turned.to(wide(cells), memory_format=torch.contiguous_format, copy=True))


def _without_outside(weights: Tensor) -> Tensor:
    """In place: cells off the map take no part, not even where their weight is infinite."""
    (H, W), k = weights.shape[:2], weights.shape[-1]
    for i in range(k // 2):
        n = k // 2 - i
        weights[:n, ..., i] = 0
        weights[max(H - n, 0) :, ..., k - 1 - i] = 0
        weights[:, :n, :, i] = 0
        weights[:, max(W - n, 0) :, :, k - 1 - i] = 0
    return weights


def _padded(x: Tensor, cells: Tensor) -> Tensor:
    """With channels last and a border of zeros, ``(H + k - 1, W + k - 1, D)``."""
    (D, H, W), r = x.shape, math.isqrt(len(cells)) // 2
    rows = x.new_zeros(H + 2 * r, W + 2 * r, D, dtype=wide(x))
    _inside(rows, r).copy_(x.flatten(1).t().contiguous().view(H, W, D))
    return rows


def _inside(rows: Tensor, border: int) -> Tensor:
    return rows[border : len(rows) - border, border : rows.shape[1] - border]


def _stacks(rows: Tensor, cells: Tensor) -> Iterator[Tensor]:
    """For every row of the map the k rows that it sees, ``(W + k - 1, k, D)``: each overwrites the last."""
    k = math.isqrt(len(cells))
    stack = rows.new_empty(rows.shape[1], k, rows.shape[2])
    for h in range(cells.shape[2]):
        yield stack.copy_(rows[h : h + k].transpose(0, 1))


def _windows(stack: Tensor, W: int) -> Tensor:
    """``(W, k^2, D)``, columns of cells before rows."""
    _, k, D = stack.shape
    return stack.as_strided((W, k * k, D), (k * D, D, 1))


def reassembled(x: Tensor, cells: Tensor, last: bool = False) -> Tensor:
    """What :class:`Reassembly` gives, in ordinary operations."""
    groups, k, s = cells.shape[1], math.isqrt(cells.shape[2]), math.isqrt(cells.shape[3])
    values = widened(x).contiguous().unflatten(1, (groups, -1))[:, None]  # (B, 1, G, C/G, H, W)
    values = values.expand(-1, s * s, -1, -1, -1, -1)
    y = weighted_sum(widened(cells).permute(0, 3, 1, 2, 4, 5), values, Window((k, k), border="zeros"))
    y = y.flatten(2, 3).unflatten(1, (s, s)).permute(0, 3, 4, 1, 5, 2)  # (B, C, H, s, W, s)
    y = y.flatten(4, 5).flatten(2, 3).to(x.dtype)
    return y.permute(0, 2, 3, 1) if last else y


REASSEMBLY = of_function(
    "reassembly",
    Reassembly,
    reassembled,
    lambda given, sizes: _size(given[0], given[1], bool(sizes[0])),
    last=lambda sizes, _: bool(sizes[0]),
)
