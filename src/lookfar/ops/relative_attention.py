"""Softmax attention of all positions of a map to all, with embeddings of the distances in rows and in columns.

o_i = sum_j softmax_j(q_i . (k_j + rows[jy - iy + H - 1] + columns[jx - ix + W - 1])) v_j

A query's products with the 2H - 1 and 2W - 1 embeddings are looked up by distance, for one block of queries at a time,
again in the backward pass: neither the N x N logits nor the N (H + W) lookups are ever held at once. On a CPU logits of
a softmax are held for a tile of queries and keys.
"""

from typing import Any

import torch
from torch import Tensor

from lookfar.ops import _relative_tiles
from lookfar.ops._definition import row_weights
from lookfar.ops._normalization import RowNormalization, check_normalization, normalised
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._relative import Pair, in_blocks, logits

WHY_NOT_DOUBLE = "a key's popularity among all queries would need their relative logits a second time"


def relative_attention_weights(
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    size: Pair,
    queries: Tensor | None = None,
    normalization: RowNormalization = "softmax",
) -> Tensor:
    """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None.

    >>> q, rows, columns = torch.ones(1, 1, 2, 1), torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    >>> relative_attention_weights(q, 0 * q, rows, columns, size=(1, 2), normalization="none").tolist()  # over two keys
    [[[[1.0, 1.5], [0.5, 1.0]]]]
    """
    _check(q, k, rows, columns, size, normalization)
    at = torch.arange(q.shape[-2], device=q.device)
    at = at if queries is None else at[queries]
    with without_autocast(q):
        q, k, rows, columns = (widened(t) for t in (q, k, rows, columns))
        return normalised(logits(q[..., at, :], k, rows, columns, at, size), normalization)


def relative_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, **options: Any
) -> Tensor:
    """The definition: every pair's embedding gathered, N x N x D of them; keywords as in :func:`relative_attention`.

    >>> q, rows, columns = torch.ones(1, 1, 2, 1), torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    >>> v = torch.tensor([[[[1.0], [10.0]]]])
    >>> relative_attention_reference(q, 0 * q, v, rows, columns, size=(1, 2), normalization="none").flatten().tolist()
    [16.0, 10.5]
    """
    (H, W), normalization = _check(q, k, rows, columns, **options)
    at = torch.arange(q.shape[-2], device=q.device)
    y = at // W
    x = at - y * W
    with without_autocast(q):
        q, k, rows, columns = (widened(t) for t in (q, k, rows, columns))
        distances = rows[y - y[:, None] + H - 1] + columns[x - x[:, None] + W - 1]  # (N, N, D)
        logits = torch.einsum("bhid,bhijd->bhij", q, k[:, :, None] + distances)
        return (row_weights(logits, normalization) @ widened(v)).to(v.dtype)


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    size: Pair,
    normalization: RowNormalization = "softmax",
) -> Tensor:
    """:func:`relative_attention_reference` in blocks of queries.

    >>> q, rows, columns = torch.ones(1, 1, 2, 1), torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    >>> v = torch.tensor([[[[1.0], [10.0]]]])
    >>> relative_attention(q, 0 * q, v, rows, columns, size=(1, 2), normalization="none").flatten().tolist()
    [16.0, 10.5]

    Args:
        q: Queries ``(B, h, N, D)``, already scaled.
        k: Keys ``(B, h, N, D)``.
        v: Values ``(B, h, N, E)``.
        rows: Embeddings ``(2H - 1, D)`` of the distance in rows, distance 0 in the middle; for all heads.
        columns: Embeddings ``(2W - 1, D)`` of the distance in columns.
        size: H and W with N = H W.
        normalization: How logits become weights: ``softmax``, ``l1``, ``sigmoid``, ``none``.

    Shape: ``(B, h, N, E)``

    Raises:
        ValueError: Shapes that do not fit, an unknown normalisation.
    """
    _check(q, k, rows, columns, size, normalization)
    dtype = v.dtype
    with without_autocast(q):
        q, k, v, rows, columns = (widened(t) for t in (q, k, v, rows, columns))
        if normalization == "softmax" and _relative_tiles.takes(q, k, v, rows, columns):
            return _relative_tiles.attend(q, k, v, rows, columns, size).to(dtype)
        return in_blocks(q, k, v, rows, columns, size, normalization).to(dtype)


def _check(
    q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, size: Pair, normalization: RowNormalization = "softmax"
) -> tuple[Pair, RowNormalization]:
    check_normalization(normalization, why=WHY_NOT_DOUBLE)
    D, (H, W) = q.shape[-1], size
    if q.shape != k.shape or q.shape[-2] != H * W or rows.shape != (2 * H - 1, D) or columns.shape != (2 * W - 1, D):
        raise ValueError(
            f"want q, k (B, h, HW, D), rows (2H - 1, D), columns (2W - 1, D) with {H=}, {W=}; "
            f"got {q.shape=}, {k.shape=}, {rows.shape=}, {columns.shape=}"
        )
    return size, normalization
