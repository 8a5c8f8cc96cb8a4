"""Softmax attention by positive random features (Performer): a kernel of two vectors as a product of what each gives.

y_i = sum_j s_ij v_j / (sum_j s_ij + 1e-8), s_ij = phi(q_i) . phi(k_j), phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)

The expectation of s_ij over Gaussian rows of w is exp(q_i . k_j). N (m + E) numbers are held, and no N x N.

Traps: there is no scale on the similarities, and nothing keeps the exponents small; phi of long vectors is 0 or
infinite as the formula stands. Here sums are taken of logarithms, which changes nothing else: the 1e-8 shrinks the sums
of a query that none of the features meets, as published.
"""

import math

from torch import Tensor

from lookfar.ops._precision import exp, logsumexp, softmax, widened, without_autocast, without_least

EPSILON = 1e-8
_MOST = 80.0  # exp of it is finite in float32


def random_features_reference(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The definition: all N x M weights, then the weighted sums.

    >>> import torch
    >>> q, v = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0], [3.0]]]])
    >>> random_features_reference(q, torch.zeros(1, 1, 2, 2), v, torch.ones(3, 2)).tolist()
    [[[[2.0]]]]
    """
    with without_autocast(q):
        phi_q, phi_k = (
            (widened(x) @ widened(w).T - widened(x).square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(w))
            for x in (q, k)
        )
        s = phi_q @ phi_k.transpose(-2, -1)
        return (s / (s.sum(-1, keepdim=True) + EPSILON) @ widened(v)).to(q.dtype)


def random_features(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """:func:`random_features_reference` in N (m + E) memory and time N m (D + E).

    >>> import torch
    >>> q, v = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0], [3.0]]]])
    >>> random_features(q, torch.zeros(1, 1, 2, 2), v, torch.ones(3, 2)).tolist()
    [[[[2.0]]]]

    Args:
        q: Queries ``(B, h, N, D)``.
        k: Keys ``(B, h, M, D)``.
        v: Values ``(B, h, M, E)``.
        w: Directions of the features, ``(m, D)``.

    Shape: ``(B, h, N, E)``

    Raises:
        ValueError: Shapes that do not fit.
    """
    _check(q, k, w)
    with without_autocast(q):
        over_features, over_keys = _two_steps(q, k, w)
        return (over_features @ (over_keys.transpose(-2, -1) @ widened(v))).to(q.dtype)


def random_features_weights(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Weights ``(B, h, N, M)`` of the keys, in float32 at least; they sum to one but for the 1e-8.

    >>> import torch
    >>> random_features_weights(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2), torch.ones(3, 2)).tolist()
    [[[[0.5, 0.5]]]]
    """
    _check(q, k, w)
    with without_autocast(q):
        over_features, over_keys = _two_steps(q, k, w)
        return over_features @ over_keys.transpose(-2, -1)


def _two_steps(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the features for each query, and of the keys for each feature: ``(B, h, N, m), (B, h, M, m)``."""
    at_q, at_k = (widened(x) @ widened(w).T - widened(x).square().sum(-1, keepdim=True) / 2 for x in (q, k))
    met = at_q + logsumexp(at_k, -2)  # logarithm of what all keys together give a query through a feature
    most = met.detach().amax(-1, keepdim=True)  # it cancels, and has no gradient
    features = exp(met - most)
    rest = (math.log(EPSILON * len(w)) - most).clamp_max(_MOST).exp()
    return without_least(features / (features.sum(-1, keepdim=True) + rest)), softmax(at_k, -2)


def _check(q: Tensor, k: Tensor, w: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or q.shape[-1] != k.shape[-1] or w.shape[-1] != q.shape[-1]:
        raise ValueError(f"want q (B, h, N, D), k (B, h, M, D), w (m, D); got {q.shape=}, {k.shape=}, {w.shape=}")
