"""Concatenation attention in O((N + M) log M): y_i = 1/M sum_j ReLU(a_i + b_j) v_j.

w . [theta_i, phi_j] is a sum of two numbers, a_i + b_j. The keys that pass query i's ReLU, b_j > -a_i, are the first
k_i keys in descending order of b, so that with prefix sums S0_k = sum_{t<=k} v_t and S1_k = sum_{t<=k} b_t v_t

    y_i = (a_i S0_{k_i} + S1_{k_i}) / M,    k_i found by bisection.

k_i is locally constant, and the term that enters or leaves at a jump is zero there, so ordinary autograd is correct.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._checked import choice
from lookfar.ops._normalization import key_count
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._tiles import few_weights

ConcatenationNormalization = Literal["none", "l1"]

_BLOCK = 32  # keys whose sums are formed together


def concatenation_weights(a: Tensor, b: Tensor, *, normalization: ConcatenationNormalization = "none") -> Tensor:
    """``(B, h, Q), (B, h, M) -> (B, h, Q, M)``, ReLU(a_i + b_j) over M (none) or over the row's sum (l1).

    >>> a, b = torch.tensor([[[1.0]]]), torch.tensor([[[5.0, -3.0]]])
    >>> concatenation_weights(a, b).tolist()  # ReLU(1 + 5) / 2, ReLU(1 - 3) / 2
    [[[[3.0, 0.0]]]]
    """
    with without_autocast(a):
        a, b = widened(a), widened(b)
        weights = (a[..., :, None] + b[..., None, :]).relu()
        if normalization == "l1":
            return F.normalize(weights, p=1.0, dim=-1)
        return weights / key_count(weights, -1)


def concatenation_reference(
    a: Tensor, b: Tensor, v: Tensor, *, normalization: ConcatenationNormalization = "none"
) -> Tensor:
    """The definition: y_i = 1/M sum_j ReLU(a_i + b_j) v_j (none) or with weights that sum to one (l1).

    >>> a, b, v = torch.tensor([[[1.0]]]), torch.tensor([[[5.0, -3.0]]]), torch.tensor([[[[2.0], [7.0]]]])
    >>> concatenation_reference(a, b, v).tolist()  # (ReLU(1 + 5) * 2 + ReLU(1 - 3) * 7) / 2
    [[[[6.0]]]]
    """
    with without_autocast(a):
        return (concatenation_weights(a, b, normalization=normalization) @ widened(v)).to(v.dtype)


def _definition(a: Tensor, b: Tensor, v: Tensor, normalization: ConcatenationNormalization) -> Tensor:
    return concatenation_reference(a, b, v, normalization=normalization)


def _sorted(a: Tensor, b: Tensor, v: Tensor, normalization: ConcatenationNormalization) -> Tensor:
    if v.shape[-2] == 0:
        return _definition(a, b, v, normalization)
    with without_autocast(a):
        return _prefix_sums(widened(a), widened(b), widened(v), normalization).to(v.dtype)


PATHS = {"definition": _definition, "sorted": _sorted}  # tests go through each


def _prefix_sums(a: Tensor, b: Tensor, v: Tensor, normalization: ConcatenationNormalization) -> Tensor:
    E, dtype, most = v.shape[-1], v.dtype, v.dtype if v.device.type == "mps" else torch.float64  # which it has not
    # a S0 and S1 cancel where a and b have opposite offsets; removing that of b is exact, since a + b does not change
    offset = b.masked_fill(b == -torch.inf, 0).mean(-1, keepdim=True)
    a, b = (a + offset).to(most), (b - offset).to(most)
    # no key passes a query of -inf, and a key of -inf passes none: they must not turn the sums' zeros into NaN
    a = a.clamp_min(torch.finfo(most).min)
    b, order = b.sort(-1, descending=True)
    with torch.no_grad():
        k = torch.searchsorted((-b).contiguous(), a.contiguous())  # how many -b_j < a_i
    if normalization == "l1":
        v = F.pad(v, (0, 1), value=1.0)  # the row's sum is one more channel
    count = 1 if normalization == "l1" else key_count(v, -2)
    S0, S1 = _sums_before(b.masked_fill(b == -torch.inf, 0), _rows(v, order), count)
    y = torch.addcmul(_rows(S1, k), a[..., None], _rows(S0, k))
    if normalization == "l1":
        y = y[..., :E] / y[..., E:].clamp_min(1e-12)
    return y.to(dtype)


def _rows(t: Tensor, index: Tensor) -> Tensor:
    """``(B, h, M, E), (B, h, N) -> (B, h, N, E)``; whole rows are copied, which ``gather`` does number by number."""
    B, h, M, E = t.shape
    start = M * torch.arange(B * h, device=t.device).view(B, h, 1)
    return t.reshape(B * h * M, E).index_select(0, (index + start).flatten()).view(*index.shape, E)


def _sums_before(b: Tensor, v: Tensor, count: int | Tensor) -> list[Tensor]:
    """``(B, h, K, E)``: sums of v and of b v over the first k keys, by ``count``, for every k from 0 to M and more.

    Within blocks by a product with a triangle of ones, which is faster than a cumulative sum over rows. NaN anywhere
    reaches all of them.
    """
    more = _BLOCK - v.shape[-2] % _BLOCK  # one at least: the last k is M
    b = F.pad(b, (0, more)).unflatten(-1, (-1, _BLOCK))
    v = F.pad(v, (0, 0, 0, more)).to(b.dtype).unflatten(-2, (-1, _BLOCK))
    before = torch.ones(_BLOCK, _BLOCK, dtype=b.dtype, device=b.device).tril(-1)
    found = []
    for weights in (torch.ones_like(b) / count, b / count):
        of_block = weights[..., None, :] @ v  # (B, h, blocks, 1, E)
        start = F.pad(of_block[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0)) + 0 * of_block.sum(2, keepdim=True)
        inside = (before * weights[..., None, :]).flatten(0, 2)
        found.append(torch.baddbmm(start.expand_as(v).flatten(0, 2), inside, v.flatten(0, 2)).view_as(v).flatten(2, 3))
    return found


def concatenation(a: Tensor, b: Tensor, v: Tensor, *, normalization: ConcatenationNormalization = "none") -> Tensor:
    """:func:`concatenation_reference` by sorting and prefix sums, in time O((N + M) log M + (N + M) E).

    Sums are accumulated in float64. Where weights are few the definition is computed, which is faster there; programs
    exported to ONNX, which has no bisection, compute it too.

    >>> a, b, v = torch.tensor([[[1.0]]]), torch.tensor([[[5.0, -3.0]]]), torch.tensor([[[[2.0], [7.0]]]])
    >>> concatenation(a, b, v).tolist()  # (ReLU(1 + 5) * 2 + ReLU(1 - 3) * 7) / 2
    [[[[6.0]]]]

    Shape: ``(B, h, N), (B, h, M), (B, h, M, E) -> (B, h, N, E)``

    Raises:
        ValueError: ``b`` and ``v`` have different numbers of keys, or the normalisation is unknown.
    """
    if b.shape != v.shape[:-1] or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"want a (B, h, N), b (B, h, M), v (B, h, M, E); got {a.shape=}, {b.shape=}, {v.shape=}")
    choice("normalization", normalization, get_args(ConcatenationNormalization))
    few = few_weights(v, *a.shape, v.shape[-2])
    return PATHS["definition" if few or torch.onnx.is_in_onnx_export() else "sorted"](a, b, v, normalization)
