"""One similarity s_ij = scale * q_i . k_j, turned into weights in five ways; none holds all N x M of them.

    softmax   exp(s_ij) / sum_j exp(s_ij)
    double    softmax over the queries, then every row divided by 1e-9 + its sum
    l1        s_ij / sum_j |s_ij|
    sigmoid   1 / (1 + exp(-s_ij)) / M
    none      s_ij / M

Double normalisation is ``softmax_j(s_ij - z_j)`` with ``z_j = log sum_i exp(s_ij)``: one fused attention in which every
key carries a bias, its popularity, with one more key of logit log 1e-9 and value 0. The weights of one query depend on
all queries; the 1e-9 matters for a query to which every key prefers others.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops import _tiles
from lookfar.ops._blockwise import log_sum_exp, over_queries, whole
from lookfar.ops._definition import row_weights
from lookfar.ops._normalization import check_normalization, normalised
from lookfar.ops._precision import exp, logsumexp, widened, without_autocast
from lookfar.ops.dot_product import dot_product, dot_product_weights
from lookfar.ops.double_normalization import EPS, double_normalization_reference
from lookfar.ops.embedded_gaussian import embedded_gaussian, embedded_gaussian_weights

Normalization = Literal["softmax", "double", "l1", "sigmoid", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    scale: float = 1.0,
    normalization: Normalization = "softmax",
    all_queries: Tensor | None = None,
) -> Tensor:
    """``(B, h, Q, D), (B, h, M, D) -> (B, h, Q, M)``.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]])
    >>> attention_weights(q, k, normalization="l1").tolist()
    [[[[0.75, 0.25]]]]

    Args:
        q: The queries whose weights are wanted.
        k: All keys.
        scale: Factor on every similarity.
        normalization: See the top of this module.
        all_queries: ``(B, h, N, D)``, where ``q`` holds only some of them: double normalisation sums over all.
    """
    check_normalization(normalization, NORMALIZATIONS)
    if normalization == "softmax":
        return embedded_gaussian_weights(q, k, scale=scale)
    with without_autocast(q):
        q, k = widened(q), widened(k)
        if normalization == "none":
            return dot_product_weights(q, k, scale=scale)
        s = scale * q @ k.transpose(-2, -1)
        if normalization != "double":
            return normalised(s, normalization)
        everybody = widened(q if all_queries is None else all_queries)
        s = s - log_sum_exp(k, everybody, scale=scale).transpose(-2, -1)
        total = logsumexp(s, -1)
        return exp(s - torch.logaddexp(total, total.new_full((), math.log(EPS))))


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0, normalization: Normalization = "softmax"
) -> Tensor:
    """The definition: the weights by their formulas above, N x M of them, times the values.

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]]), torch.tensor([[[[8.0], [4.0]]]])
    >>> attention_reference(q, k, v, normalization="l1").tolist()  # (3 * 8 + 1 * 4) / (3 + 1)
    [[[[7.0]]]]
    """
    check_normalization(normalization, NORMALIZATIONS)
    with without_autocast(q):
        q, k, v32 = widened(q), widened(k), widened(v)
        s = scale * q @ k.transpose(-2, -1)
        weights = double_normalization_reference(s) if normalization == "double" else row_weights(s, normalization)
        return (weights @ v32).to(v.dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0, normalization: Normalization = "softmax"
) -> Tensor:
    """:func:`attention_reference` without its N x M weights: fused, by associativity, or in blocks of queries.

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]]), torch.tensor([[[[8.0], [4.0]]]])
    >>> attention(q, k, v, normalization="l1").tolist()  # (3 * 8 + 1 * 4) / (3 + 1)
    [[[[7.0]]]]

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``

    Raises:
        ValueError: Shapes that do not fit, an unknown normalisation.
    """
    check_normalization(normalization, NORMALIZATIONS)
    if normalization == "softmax":
        return embedded_gaussian(q, k, v, scale=scale)
    if normalization == "none":
        return dot_product(q, k, v, scale=scale)
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"want q (B, h, N, D), k (B, h, M, D), v (B, h, M, E); got {q.shape=}, {k.shape=}, {v.shape=}")
    with without_autocast(q):
        q, k, v32 = widened(q), widened(k), widened(v)
        if normalization == "double" and _tiles.few_weights(q, *q.shape[:-1], k.shape[-2]):  # a dozen operations less
            return attention_reference(q, k, v, scale=scale, normalization=normalization)
        if normalization == "double":
            popularity = log_sum_exp(k, q, scale=scale)  # (B, h, M, 1)
            biased = torch.cat([k, -popularity], -1)
            nothing = F.pad(biased.new_full((*k.shape[:-2], 1, 1), math.log(EPS)), (k.shape[-1], 0))
            y = embedded_gaussian(
                F.pad(scale * q, (0, 1), value=1.0), torch.cat([biased, nothing], -2), F.pad(v32, (0, 0, 0, 1))
            )
        else:
            y = over_queries(_mixed, scale * q, k, v32, keys=k.shape[-2], words=[normalization])
    return y.to(v.dtype)


@whole(lambda q, k, v, *_: (*q.shape[:-1], v.shape[-1]))
def _mixed(q: Tensor, k: Tensor, v: Tensor, normalization: Normalization) -> Tensor:
    return attention_weights(q, k, normalization=normalization) @ v
