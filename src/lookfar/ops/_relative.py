"""Attention with relative positions in ordinary operations, for a block of queries at a time."""

import torch
from torch import Tensor

from lookfar.ops._blockwise import over_queries, whole
from lookfar.ops._normalization import normalised

Pair = tuple[int, int]


def logits(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, at: Tensor, size: Pair) -> Tensor:
    """``(B, h, Q, N)`` of queries ``(B, h, Q, D)`` at the flat positions ``at`` (Q,)."""
    H, W = size

    def by_distance(table: Tensor, n: int, own: Tensor) -> Tensor:
        distance = torch.arange(n, device=q.device) - own[:, None] + n - 1  # (Q, n)
        return (q @ table.T).gather(-1, distance.expand(*q.shape[:2], -1, -1))

    logits = (q @ k.transpose(-2, -1)).unflatten(-1, (H, W))
    y = at // W  # the remainder of a tensor by a free size has no ONNX form
    logits = logits + by_distance(rows, H, y)[..., None] + by_distance(columns, W, at - y * W)[..., None, :]
    return logits.flatten(-2)


def in_blocks(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, size: Pair, normalization: str = "softmax"
) -> Tensor:
    """``(B, h, N, E)``, recomputed in the backward pass, or one operation of a compiled program."""
    at = torch.arange(q.shape[-2], device=q.device)[:, None]
    return over_queries(_some, (q, at), k, v, rows, columns, keys=q.shape[-2], sizes=size, words=[normalization])


@whole(lambda q, at, k, v, *_: (*q.shape[:-1], v.shape[-1]))
def _some(
    q: Tensor, at: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, H: int, W: int, normalization: str
) -> Tensor:
    return normalised(logits(q, k, rows, columns, at[:, 0], (H, W)), normalization) @ v
