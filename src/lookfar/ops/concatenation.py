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
    E = v.shape[-1]
    dtype = a.dtype
    # a S0 and S1 cancel where a and b have opposite offsets; removing that of b is exact, since a + b does not change
    offset = b.masked_fill(b == -torch.inf, 0).mean(-1, keepdim=True)
    a, b = a + offset, b - offset
    if a.device.type != "mps":  # has no float64
        a, b, v = a.double(), b.double(), v.double()
    if normalization == "l1":
        v = F.pad(v, (0, 1), value=1.0)  # the row's sum is one more channel
    # no key passes a query of -inf, and a key of -inf passes none: they must not turn the sums' zeros into NaN
    a = a.clamp_min(torch.finfo(a.dtype).min)
    b, order = b.sort(-1, descending=True)
    v = v.gather(-2, order[..., None].expand(*order.shape, v.shape[-1]))
    S0, S1 = (F.pad(t.cumsum(-2), (0, 0, 1, 0)) for t in (v, b.masked_fill(b == -torch.inf, 0)[..., None] * v))
    with torch.no_grad():
        k = torch.searchsorted((-b).contiguous(), a.contiguous())  # how many -b_j < a_i
    k = k[..., None].expand(*k.shape, v.shape[-1])
    everything = 0 * S0[..., -1:, :]  # NaN where any value is, so that it reaches every query
    y = a[..., None] * S0.gather(-2, k) + S1.gather(-2, k) + everything
    if normalization == "l1":
        return (y[..., :E] / y[..., E:].clamp_min(1e-12)).to(dtype)
    return (y / key_count(v, -2)).to(dtype)


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
