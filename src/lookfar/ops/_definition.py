"""Shared by the definitions, for no other use: weights by their formulas, keys listed one by one."""

import torch
from torch import Tensor


def row_weights(s: Tensor, normalization: str) -> Tensor:
    """The weights of similarities ``(..., M)`` of one query with all the keys that it sees."""
    if normalization == "softmax":
        return s.softmax(-1)
    if normalization == "l1":
        return s / s.abs().sum(-1, keepdim=True).clamp_min(1e-12)
    return (s.sigmoid() if normalization == "sigmoid" else s) / max(s.shape[-1], 1)


def attended(q: Tensor, k: Tensor, v: Tensor, seen: list[tuple[int, ...]], normalization: str) -> Tensor:
    """One query's ``(B, h, D)`` average of the keys and values (B, h, D or E, *S) at the places seen: (B, h, E)."""
    places = (..., *torch.tensor(seen, device=q.device).T)
    s = (q[..., None] * k[places]).sum(2)  # (B, h, M)
    return (row_weights(s, normalization)[:, :, None] * v[places]).sum(-1)
