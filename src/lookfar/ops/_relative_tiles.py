"""Softmax attention with relative positions on a CPU, a tile of queries and keys at a time, with its own gradient.

As :mod:`lookfar.ops._tiles`, but keys of a tile are some rows of the map: it begins with each query's products with the
embeddings of its distances to these rows and to all columns, to which those with the keys are added.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, for_graphs, has_tangent
from lookfar.ops._blockwise import BUDGET
from lookfar.ops._loops import Tiled
from lookfar.ops._precision import LOG2_E, powers_
from lookfar.ops._relative import Pair, in_blocks
from lookfar.ops._tiles import LIMITS, SMALL, _add, _blocks, _sum_up


def takes(q: Tensor, *others: Tensor) -> bool:
    """Whether tiles are for these: not where all weights are few enough for a single block."""
    if not q.is_cpu or q.dtype not in (torch.float32, torch.float64):
        return False
    if compiled_here():
        return True
    return not (for_graphs() or has_tangent(q, *others)) and q.shape[:3].numel() * q.shape[2] > BUDGET["cpu"]


def _parts(size: Pair) -> list[tuple[slice, slice]]:
    """Rows of the map whose keys make a tile, and these keys; parts are about alike."""
    H, W = size
    each = -(-H // -(-H // max(LIMITS["keys"] // W, 1)))
    parts = [slice(y, min(y + each, H)) for y in range(0, H, each)]
    return [(lines, slice(W * lines.start, W * lines.stop)) for lines in parts]


class _Distances:
    """Of a block of queries at flat positions: which embedding of a table each key's row or column has."""

    def __init__(self, at: slice, size: Pair, like: Tensor) -> None:
        H, W = size
        here = torch.arange(at.start, at.stop, device=like.device)[:, None]
        self.rows = torch.arange(H, device=like.device) - here // W + H - 1  # (Q, H)
        self.columns = torch.arange(W, device=like.device) - here % W + W - 1

    def products(self, q: Tensor, rows: Tensor, columns: Tensor) -> list[Tensor]:
        """``(heads, Q, H)`` and ``(heads, Q, W)``."""
        pairs = (rows, self.rows), (columns, self.columns)
        return [(q @ table.T).gather(-1, of.expand(len(q), -1, -1)) for table, of in pairs]

    def pull(self, table: Tensor, of: Tensor, grad: Tensor, q: Tensor, dq: Tensor, dtable: Tensor) -> None:
        """What the products' gradient adds to those of queries and of a table."""
        spread = grad.new_zeros(*grad.shape[:2], len(table)).scatter_(-1, of.expand(len(q), -1, -1), grad)
        dq.add_(spread @ table)
        dtable.add_(spread.flatten(0, 1).T @ q.flatten(0, 1))


def _buffer(q: Tensor, size: Pair, times: int) -> Tensor:
    heads, at = next(_blocks(q, math.prod(size), times))
    keys = _parts(size)[0][1].stop
    return q.new_empty((heads.stop - heads.start) * (at.stop - at.start) * keys)


def _tile(buffer: Tensor, q: Tensor, keys: slice) -> Tensor:
    shape = *q.shape[:2], keys.stop - keys.start
    return buffer[: math.prod(shape)].view(shape)


def _logits(buffer: Tensor, q: Tensor, k: Tensor, products: Sequence[Tensor], part: tuple[slice, slice]) -> Tensor:
    """In part of the buffer, ``(heads, Q, keys)``."""
    (lines, keys), (of_rows, of_columns) = part, products
    s = _tile(buffer, q, keys)
    torch.add(of_rows[..., lines, None], of_columns[..., None, :], out=s.unflatten(-1, (-1, of_columns.shape[-1])))
    return s.baddbmm_(q, k[:, keys].transpose(1, 2))


def _forward(given: Sequence[Tensor], size: Pair) -> tuple[Tensor, Tensor]:
    """``y`` and the log-sum-exps to the base 2, ``(B, h, N, 1)``."""
    images, (rows, columns) = given[0].shape[:2], given[3:]
    q, k, v = (t.flatten(0, 1) for t in given[:3])
    y, lse, buffer = v.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], 1), _buffer(q, size, 2)
    longest = torch.linalg.vector_norm(k, dim=-1).amax(-1)[:, None]
    for heads, at in _blocks(q, len(k[0]), 2):
        some = q[heads, at] * LOG2_E
        products = _Distances(at, size, q).products(some, rows, columns)
        most = torch.linalg.vector_norm(some, dim=-1) * longest[heads]
        for t in products:
            most += t.abs().amax(-1)
        small = bool((most < SMALL).all())
        _sum_up(y[heads, at], lse[heads, at], partial(_sum, small, some, k[heads], v[heads], products, buffer, size))
    return y.unflatten(0, images), lse.unflatten(0, images)


def _sum(
    small: bool, q: Tensor, k: Tensor, v: Tensor, products: Sequence[Tensor], buffer: Tensor, size: Pair,
    y: Tensor, total: Tensor, top: Tensor,
) -> None:  # fmt: skip
    """Sums of one block of queries; powers of small logits need no shift to stay in range."""
    if small:
        top.zero_()
    for part in _parts(size):
        s, values = _logits(buffer, q, k, products, part), v[:, part[1]]
        if small:
            total.add_(s.exp2_().sum(-1, keepdim=True))
            y.baddbmm_(s, values)
        else:
            _add(s, values, y, total, top)


def _backward(given: Sequence[Tensor], size: Pair, y: Tensor, lse: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    images, (rows, columns) = given[0].shape[:2], given[3:]
    q, k, v, y, lse, dy = (t.flatten(0, 1) for t in (*given[:3], y, lse, dy))
    dq, dk, dv, drows, dcolumns = (t.new_zeros(t.shape) for t in (q, k, v, rows, columns))
    buffers = [_buffer(q, size, 1) for _ in range(2)]
    for heads, at in _blocks(q, len(k[0])):
        here, some, grad = (heads, at), q[heads, at], dy[heads, at]
        distances, scaled = _Distances(at, size, q), some * LOG2_E
        products = distances.products(scaled, rows, columns)
        products[0].sub_(lse[here])
        mean = (grad * y[here]).sum(-1, keepdim=True)
        dproducts = [torch.zeros_like(t) for t in products]
        for part in _parts(size):
            lines, keys = part
            p = powers_(_logits(buffers[0], scaled, k[heads], products, part))
            dv[heads, keys].baddbmm_(p.transpose(1, 2), grad)
            ds = torch.bmm(grad, v[heads, keys].transpose(1, 2), out=_tile(buffers[1], some, keys)).sub_(mean).mul_(p)
            dq[here].baddbmm_(ds, k[heads, keys])
            dk[heads, keys].baddbmm_(ds.transpose(1, 2), some)
            on_map = ds.unflatten(-1, (-1, size[1]))
            torch.sum(on_map, -1, out=dproducts[0][..., lines])
            dproducts[1].add_(on_map.sum(-2))
        distances.pull(rows, distances.rows, dproducts[0], some, dq[here], drows)
        distances.pull(columns, distances.columns, dproducts[1], some, dq[here], dcolumns)
    return *(t.unflatten(0, images) for t in (dq, dk, dv)), drows, dcolumns


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, size: Pair) -> Tensor:
    """``(B, h, N, D), (B, h, N, D), (B, h, N, E), (2H - 1, D), (2W - 1, D) -> (B, h, N, E)``."""
    return _TILES((q, k, v, rows, columns), size)


_TILES = Tiled(
    "relative",
    _forward,
    _backward,
    lambda given, size: in_blocks(*given, size=size),
    lambda given, _: (given[2].shape, (*given[0].shape[:3], 1)),
)
