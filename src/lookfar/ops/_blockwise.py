"""Attention over blocks of queries: the N x M weights are never held at once, neither forward nor backward.

For what fused kernels can't do: float64 on CUDA, other normalisations than softmax, log-sum-exps with gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import recomputed, traced
from lookfar.ops._precision import widened, without_autocast

# logits held at a time, over batch and heads: 4 MiB in float32 on a CPU; a GPU needs larger launches
BUDGET = {"cpu": 2**20}
BUDGET_ELSEWHERE = 2**25


def over_queries(f: Callable[..., Any], queries: Tensor | tuple[Tensor, ...], *others: Tensor, keys: int) -> Any:
    """``f(*queries, *others)`` for blocks of the query axis (-2), each recomputed in the backward pass.

    Memory is that of one block of logits and of the result; derivatives of every order work. Compiled and exported
    programs make a single call ``f(*queries, *others)``, since a loop over blocks would tie them to one size.

    >>> def f(q, at, k):  # depends on each query alone and on its position
    ...     return at * (q @ k.transpose(-2, -1))
    >>> at = torch.arange(3)[:, None]
    >>> over_queries(f, (torch.ones(1, 1, 3, 2), at), torch.ones(1, 1, 1, 2), keys=1).flatten()
    tensor([0., 2., 4.])

    Args:
        f: Maps queries ``(B, h, Q, D)`` and ``others`` to a tensor or a tuple of tensors with the axis Q at -2; rows
            must not depend on each other.
        queries: ``(B, h, N, D)``, or several tensors with the axis N at -2.
        others: Tensors that every query needs, such as keys and values.
        keys: Number M of logits per query, which decides the size of the blocks.
    """
    queries = (queries,) if isinstance(queries, Tensor) else queries
    q, N = queries[0], queries[0].shape[-2]
    if traced():
        return f(*queries, *others)
    budget = BUDGET.get(q.device.type, BUDGET_ELSEWHERE)
    rows = max(budget // max(keys * q.shape[:-2].numel(), 1), 1)
    if rows >= N:
        return f(*queries, *others)
    parts = [recomputed(f, *block, *others) for block in zip(*(t.split(rows, -2) for t in queries))]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, -2)
    return tuple(torch.cat(tensors, -2) for tensors in zip(*parts))


def _with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = scale * q @ k.transpose(-2, -1)
    lse = logits.logsumexp(-1, keepdim=True)
    # a query whose keys are all masked, logits -inf, has the sum 0 and the log-sum-exp -inf
    return (logits - lse.clamp_min(torch.finfo(lse.dtype).min)).exp() @ v, lse


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of its denominator, both differentiable, in blocks of queries.

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E), (B, h, N, 1)``
    """
    with without_autocast(q):
        return over_queries(
            lambda q, k, v: _with_lse(q, k, v, scale), widened(q), widened(k), widened(v), keys=k.shape[-2]
        )


def log_sum_exp(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """log sum_j exp(scale * q_i . k_j), in blocks of queries: ``(B, h, N, D), (B, h, M, D) -> (B, h, N, 1)``."""
    with without_autocast(q):
        q, k = widened(q), widened(k)
        return over_queries(
            lambda q, k: (scale * q @ k.transpose(-2, -1)).logsumexp(-1, keepdim=True), q, k, keys=k.shape[-2]
        )


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of disjoint key sets from the attention over each: ``[(y, lse), ...] -> y``.

    A query without keys in a set has the log-sum-exp -inf there.
    """
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    return sum((w * y for w, (y, _) in zip(weights[1:], parts[1:])), weights[0] * parts[0][0])
