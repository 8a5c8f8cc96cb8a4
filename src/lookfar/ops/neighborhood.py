"""Attention of every position to the k x k window around it: y_i = sum_{j in window(i)} w_ij v_j.

The definition unfolds the maps to N k^2 C numbers; here they are N (C + h k^2), forward and backward.

Traps: three borders are three functions, equal only inside the map. With ``mask`` cells outside do not exist; with
``zeros`` they take their share of the weights and contribute nothing; with ``clamped`` the window is pushed inward,
always has k x k cells, and the query is off its centre there.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._checked import choice
from lookfar.ops._definition import row_weights
from lookfar.ops._kernels import KERNELS
from lookfar.ops._normalization import RowNormalization, check_normalization, normalised
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._window import (
    SIMILARITIES,
    Border,
    Pair,
    Similarity,
    Window,
    similarities,
    size_of,
    weighted_sum,
    window_of,
)

Normalization = RowNormalization


def relative_logits(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Products of queries with embeddings of their cells' offsets, the first half of the channels with the row's.

    2 k products per query, added up for its k^2 cells.

    >>> rows = torch.tensor([[[-1.0, 0.0, 1.0]]])
    >>> relative_logits(torch.ones(1, 1, 2, 1, 1), rows, 10 * rows).flatten().tolist()
    [-11.0, -1.0, 9.0, -10.0, 0.0, 10.0, -9.0, 1.0, 11.0]

    Shape: ``(B, h, D, H, W), (h or 1, D/2, k), (h or 1, D/2, k) -> (B, h, k^2, H, W)``
    """
    with without_autocast(q):
        first, second = widened(q).tensor_split([rows.shape[1]], 2)
        heads = (q.shape[1], -1, -1)
        by_row = torch.einsum("bhdyx,hdk->bhkyx", first, widened(rows).expand(heads))
        by_column = torch.einsum("bhdyx,hdk->bhkyx", second, widened(columns).expand(heads))
        return (by_row[:, :, :, None] + by_column[:, :, None]).flatten(2, 3)


@dataclass(frozen=True)
class Cells:
    """The keywords of :func:`neighborhood`, checked: which cells a query sees and how they are weighed."""

    kernel_size: int | Pair
    stride: int | Pair = 1
    dilation: int | Pair = 1
    border: Border = "mask"
    outside: float = 0.0
    scale: float = 1.0
    bias: Tensor | None = None
    similarity: Similarity = "product"
    normalization: Normalization = "softmax"

    def __post_init__(self) -> None:
        window_of(self.kernel_size, self.stride, self.dilation, self.border)
        choice("similarity", self.similarity, SIMILARITIES)
        check_normalization(self.normalization)

    @property
    def window(self) -> Window:
        return window_of(self.kernel_size, self.stride, self.dilation, self.border)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """``(B, h, k^2, H', W')``."""
        _check(q, k, self.window)
        with without_autocast(q):
            s = self.scale * similarities(widened(q), widened(k), self.window, self.similarity)
            inside = self.window.inside(*size_of(k), k.device)
            if self.border == "zeros":
                s, inside = torch.where(inside, s, self.outside), None
            if self.bias is not None:
                s = s + widened(self.bias)
            return normalised(s, self.normalization, seen=inside, dim=-3)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(B, h, E, H', W')``, by loops over cells."""
        weights = self.weights(q, k)
        with without_autocast(q):
            return weighted_sum(weights, widened(v), self.window).to(v.dtype)


def neighborhood_weights(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """Weights of the cells, ``(B, h, k^2, H', W')``; keywords as in :func:`neighborhood`.

    >>> q = torch.zeros(1, 1, 1, 1, 3)
    >>> neighborhood_weights(q, q, kernel_size=3)[0, 0, :, 0, 0]  # the leftmost query: two cells are on the map
    tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.5000, 0.5000, 0.0000, 0.0000, 0.0000])
    """
    return Cells(**options).weights(q, k)


def neighborhood(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    outside: float = 0.0,
    scale: float = 1.0,
    bias: Tensor | None = None,
    similarity: Similarity = "product",
    normalization: Normalization = "softmax",
) -> Tensor:
    """Every query's weighted sum of the values in its window: :func:`neighborhood_reference` in N (C + h k^2) memory.

    Logits, softmax and sums are float32 where the inputs are float16 or bfloat16. On CUDA it can run as one kernel:
    :func:`~lookfar.ops.use_fused_kernels`.

    >>> q, v = torch.zeros(1, 1, 1, 1, 3), torch.tensor([[[[[0.0, 1.0, 1.0]]]]])
    >>> neighborhood(q, q, v, kernel_size=3).flatten()  # means of two, three and two values
    tensor([0.5000, 0.6667, 1.0000])

    Args:
        q: Queries ``(B, h, D, H', W')``, at every ``stride``-th position of the keys: H' = ceil(H / stride).
        k: Keys ``(B, h, D, H, W)``.
        v: Values ``(B, h, E, H, W)``.
        kernel_size: Odd extent of the window; it may exceed the map.
        stride: Step between queries on the keys' map.
        dilation: Step between the cells of a window.
        border: How cells outside the map are treated: ``mask`` leaves them out; ``zeros`` gives them similarity
            ``outside`` and value 0; ``clamped`` pushes the window inward (stride and dilation 1).
        outside: Similarity of a cell outside the map with ``border="zeros"``; not scaled, ``bias`` is added.
        scale: Factor on the similarities.
        bias: Added to the scaled similarities, broadcast to ``(B, h, k^2, H', W')``, cells row by row; -inf takes a
            cell out of a softmax.
        similarity: Summed over the D channels: ``product`` q k, ``key`` k, ``absolute`` -|q - k|, ``absolute_ratio``
            -|q - k| / (|q| + |k| + 1), ``squared_ratio`` -(q - k)^2 / (|q k| + 1), ``squared`` -(q - k)^2.
        normalization: ``softmax`` over the cells, ``l1`` s / sum |s|, and ``sigmoid`` and ``none`` divided by the
            number of cells on the map.

    Shape: ``(B, h, E, H', W')``

    Raises:
        ValueError: Shapes that do not fit, an even kernel, an unknown choice.
    """
    if v.dim() != 5 or v.shape[:2] != k.shape[:2] or v.shape[-2:] != k.shape[-2:]:
        raise ValueError(f"want k (B, h, D, H, W) and v (B, h, E, H, W); got {k.shape=}, {v.shape=}")
    cells = Cells(kernel_size, stride, dilation, border, outside, scale, bias, similarity, normalization)
    _check(q, k, cells.window)
    fused = KERNELS.get("neighborhood")
    return fused.attend(q, k, v, cells) if fused and fused.takes(q, k, v, cells) else cells.attend(q, k, v)


def neighborhood_reference(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The definition, query by query and cell by cell; keywords as in :func:`neighborhood`.

    >>> q, v = torch.zeros(1, 1, 1, 1, 3), torch.tensor([[[[[0.0, 1.0, 1.0]]]]])
    >>> neighborhood_reference(q, q, v, kernel_size=3).flatten()  # means of two, three and two values
    tensor([0.5000, 0.6667, 1.0000])
    """
    o = Cells(**options)
    (kh, kw), (sh, sw), (lh, lw) = ((n, n) if isinstance(n, int) else n for n in (o.kernel_size, o.stride, o.dilation))
    (H, W), grid = k.shape[-2:], q.shape[-2:]
    with without_autocast(q):
        q, k, values = widened(q), widened(k), widened(v)
        bias = q.new_zeros(()) if o.bias is None else widened(o.bias)
        bias = bias.expand(*q.shape[:2], kh * kw, *grid)
        found = []
        for i, j in itertools.product(range(grid[0]), range(grid[1])):
            top, left = i * sh - lh * (kh // 2), j * sw - lw * (kw // 2)
            if o.border == "clamped":
                top, left = max(min(top, H - kh), 0), max(min(left, W - kw), 0)
            logits, seen = [], []
            for cell in range(kh * kw):
                y, x = top + lh * (cell // kw), left + lw * (cell % kw)
                if 0 <= y < H and 0 <= x < W:
                    s = o.scale * _similarity(q[..., i, j], k[..., y, x], o.similarity)
                    seen.append(values[..., y, x])
                elif o.border == "zeros":
                    s = torch.full_like(q[:, :, 0, 0, 0], o.outside)
                    seen.append(torch.zeros_like(values[..., 0, 0]))
                else:
                    continue
                logits.append(s + bias[:, :, cell, i, j])
            weights = row_weights(torch.stack(logits, -1), o.normalization)
            found.append((weights[:, :, None] * torch.stack(seen, -1)).sum(-1))
        return torch.stack(found, -1).unflatten(-1, grid).to(v.dtype)


def _similarity(q: Tensor, k: Tensor, similarity: str) -> Tensor:
    """Similarity of two vectors along the last axis, for the definition."""
    q, k = torch.broadcast_tensors(q, k)
    if similarity == "product":
        return (q * k).sum(-1)
    if similarity == "key":
        return (k + 0 * q).sum(-1)  # the query stays in the graph
    distance = torch.linalg.vector_norm
    if similarity == "absolute":
        return -distance(q - k, 1, -1)
    if similarity == "squared":
        return -(q * q - 2 * q * k + k * k).sum(-1)
    if similarity == "absolute_ratio":
        return (-abs(q - k) / (1 + abs(q) + abs(k))).sum(-1)
    return (-((q - k) ** 2) / (1 + abs(q * k))).sum(-1)


def neighborhood_rows(
    weights: Tensor,
    size: Pair,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    queries: Tensor | None = None,
) -> Tensor:
    """Weights of cells as rows over all keys, exactly zero off the window.

    >>> q = torch.zeros(1, 1, 1, 1, 3)
    >>> neighborhood_rows(neighborhood_weights(q, q, kernel_size=3), (1, 3), kernel_size=3)
    tensor([[[[0.5000, 0.5000, 0.0000],
              [0.3333, 0.3333, 0.3333],
              [0.0000, 0.5000, 0.5000]]]])

    Args:
        weights: ``(B, h, k^2, H', W')``, of :func:`neighborhood_weights`.
        size: H and W of the keys.
        kernel_size: As in :func:`neighborhood`, like the next three.
        stride: Step between queries.
        dilation: Step between cells.
        border: How cells outside the map are treated.
        queries: Flat positions ``(Q,)`` on the queries' grid; all when None.

    Shape: ``(B, h, Q, N)``
    """
    window = window_of(kernel_size, stride, dilation, border)
    weights = weights.flatten(3)
    at = torch.arange(weights.shape[3], device=weights.device)
    if queries is not None:
        at, weights = at[queries], weights[..., queries]
    return rows_of_cells(weights, at, size, window)


def rows_of_cells(weights: Tensor, at: Tensor, size: Pair, window: Window) -> Tensor:
    """``(B, h, k^2, Q)`` of the windows around the flat positions ``at`` (Q,) as rows over all keys, (B, h, Q, N).

    >>> rows_of_cells(torch.ones(1, 1, 3, 1), torch.tensor([0]), (1, 3), Window((1, 3))).tolist()
    [[[[1.0, 1.0, 0.0]]]]
    """
    H, W = size
    rows, columns = window.lines(0, H, at.device)[0], window.lines(1, W, at.device)[0]
    keys = (W * rows[:, None, :, None] + columns[:, None, :]).flatten(2).flatten(0, 1)[:, at].T  # (Q, k^2)
    found = (weights * window.inside(H, W, at.device).flatten(1)[:, at]).transpose(2, 3)
    dense = found.new_zeros((*found.shape[:3], H * W))
    return dense.scatter_add(3, keys.expand_as(found), found)


def _check(q: Tensor, k: Tensor, window: Window) -> None:
    if q.dim() != 5 or k.dim() != 5 or q.shape[:3] != k.shape[:3] or q.shape[3:] != window.grid(*size_of(k)):
        raise ValueError(
            f"want q (B, h, D, H', W') and k (B, h, D, H, W), H' = ceil(H / stride); got {q.shape=}, {k.shape=}"
        )
