"""Weights from similarities, each row on its own: softmax, or terms divided by a sum over the keys.

    softmax   exp(s_j) / sum_j exp(s_j)
    l1        s_j / sum_j |s_j|
    sigmoid   1 / (1 + exp(-s_j)) / M
    none      s_j / M, with M keys seen

All but softmax have a numerator and a divisor that add up over disjoint sets of keys.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import traced
from lookfar.ops._blockwise import over_queries, whole
from lookfar.ops._checked import choice
from lookfar.ops._precision import softmax

RowNormalization = Literal["softmax", "l1", "sigmoid", "none"]
ROW_NORMALIZATIONS: tuple[str, ...] = get_args(RowNormalization)


def key_count(t: Tensor, dim: int) -> int | Tensor:
    """The length of ``t`` along its axis -1 or -2, at least 1; in a traced program a tensor to broadcast.

    Exporters take a derived size that is 1 in the example (a map of width 2, pooled) for a constant. An operation
    counts again at every size.
    """
    if not traced():
        return max(t.shape[dim], 1)
    one = t[..., :1] if dim == -2 else t[..., :1, :]
    return torch.ones_like(one).sum(dim, keepdim=True).clamp_min(1)


def normalised(s: Tensor, normalization: str, *, seen: Tensor | None = None, dim: int = -1) -> Tensor:
    """The weights of similarities whose keys lie along ``dim``; keys that are not ``seen`` are left out."""
    if normalization == "softmax":
        return softmax(s if seen is None else s.masked_fill(~seen, -torch.inf), dim)
    s = s.sigmoid() if normalization == "sigmoid" else s
    s = s if seen is None else torch.where(seen, s, 0)
    if normalization == "l1":
        return F.normalize(s, p=1.0, dim=dim)
    return s / (key_count(s, dim) if seen is None else seen.sum(dim, keepdim=True))


def terms(s: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """Each key's factor on its value in the numerator, and its term in the divisor; not for softmax."""
    w = s.sigmoid() if normalization == "sigmoid" else s
    return w, w.abs() if normalization == "l1" else torch.ones_like(w[..., :1]).expand_as(w)


def summed(q: Tensor, k: Tensor, v: Tensor, normalization: str, *, scale: float = 1.0) -> Tensor:
    """Numerator and divisor side by side, in blocks of queries.

    Shape: ``(..., Q, D), (..., M, D), (..., M, E) -> (..., Q, E + 1)``
    """
    return over_queries(_summed, scale * q, k, v, keys=k.shape[-2], words=[normalization])


@whole(lambda q, k, v, *_: (*q.shape[:-1], v.shape[-1] + 1))
def _summed(q: Tensor, k: Tensor, v: Tensor, normalization: str) -> Tensor:
    w, d = terms(q @ k.transpose(-2, -1), normalization)
    return torch.cat([w @ v, d.sum(-1, keepdim=True)], -1)


def divided(y: Tensor, divisor: Tensor) -> Tensor:
    """The average of a numerator and its divisor; 0 where the divisor is."""
    return y / divisor.clamp_min(1e-12)


def check_normalization(normalization: str, allowed: tuple[str, ...] = ROW_NORMALIZATIONS, why: str = "") -> None:
    """Raise a ValueError for a normalisation that is not allowed; ``why`` explains why ``double`` is not."""
    choice("normalization", normalization, allowed, why=why if normalization == "double" else "")
