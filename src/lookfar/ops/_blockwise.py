"""Attention over blocks of queries: the N x M weights are never held at once, neither forward nor backward.

For what fused kernels can't do: float64 on CUDA, other normalisations than softmax, log-sum-exps with gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, recomputed, traced
from lookfar.ops._loops import Loop
from lookfar.ops._precision import exp, logsumexp, widened, without_autocast

# logits held at a time, over batch and heads: 8 MiB in float32 on a CPU; a GPU needs larger launches
BUDGET = {"cpu": 2**21}
BUDGET_ELSEWHERE = 2**25


def whole(shape: Callable[..., Sequence[int]]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Of a function of a module: compiled programs then call :func:`over_queries` of it as one operation.

    Args:
        shape: Of the result, from the same tensors; its type is that of the first.
    """

    def with_loop(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(given: Sequence[Tensor], sizes: Sequence[int], words: Sequence[str]) -> Tensor:
            n, keys, *sizes = sizes
            return over_queries(f, tuple(given[:n]), *given[n:], keys=keys, sizes=sizes, words=words)

        name = f"{f.__module__}.{f.__qualname__}"
        f.loop = Loop(name, forward, partial(_pull, f), forward, lambda given, _: shape(*given))  # type: ignore[attr-defined]
        return f

    return with_loop


def over_queries(
    f: Callable[..., Any],
    queries: Tensor | tuple[Tensor, ...],
    *others: Tensor,
    keys: int,
    sizes: Sequence[int] = (),
    words: Sequence[str] = (),
) -> Any:
    """``f(*queries, *others, *sizes, *words)`` for blocks of the query axis (-2), recomputed in the backward pass.

    Memory is that of one block of logits and of the result; derivatives of every order work. Compiled programs call
    the loop as it is where ``f`` is :func:`whole`. Otherwise they make a single call of ``f``, as exported ones always
    do, since a loop over blocks would tie them to one size.

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
        sizes: Further arguments of ``f``.
        words: The last ones.
    """
    queries = (queries,) if isinstance(queries, Tensor) else queries
    given = *others, *sizes, *words
    if traced():
        if hasattr(f, "loop") and compiled_here():
            return f.loop((*queries, *others), [len(queries), keys, *sizes], words)  # type: ignore[attr-defined]
        return f(*queries, *given)
    rows = _rows(queries[0], keys)
    if rows >= queries[0].shape[-2]:
        return f(*queries, *given)
    parts = [recomputed(f, *block, *given) for block in zip(*(t.split(rows, -2) for t in queries))]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, -2)
    return tuple(torch.cat(tensors, -2) for tensors in zip(*parts))


def _rows(q: Tensor, keys: int) -> int:
    """Queries of a block."""
    budget = BUDGET.get(q.device.type, BUDGET_ELSEWHERE)
    return max(budget // max(keys * q.shape[:-2].numel(), 1), 1)


def _pull(
    f: Callable[..., Tensor],
    given: Sequence[Tensor],
    sizes: Sequence[int],
    words: Sequence[str],
    dy: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of queries and others, a block of queries at a time."""
    n, keys, *sizes = sizes
    rows, N = _rows(given[0], keys), given[0].shape[-2]
    found = [torch.zeros_like(t, memory_format=torch.contiguous_format) if w else None for t, w in zip(given, wanted)]
    at = [i for i, w in enumerate(wanted) if w]
    for begin in range(0, N, rows):
        some = slice(begin, min(begin + rows, N))
        inputs = [t[..., some, :] if i < n else t for i, t in enumerate(given)]

        def of_wanted(*chosen: Tensor, inputs: Sequence[Tensor] = inputs) -> Tensor:
            known = dict(zip(at, chosen))
            return f(*(known.get(i, t) for i, t in enumerate(inputs)), *sizes, *words)

        # by a transform, since autograd is switched off within an operation
        _, pull, *_ = torch.func.vjp(of_wanted, *(inputs[i] for i in at))
        for i, g in zip(at, pull(dy[..., some, :])):
            to: Any = found[i]
            (to[..., some, :] if i < n else to).add_(g)
    return found


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """Softmax attention and, beside it, the logarithm of its denominator, both differentiable, in blocks of queries.

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E + 1)``
    """
    with without_autocast(q):
        return over_queries(_with_lse, scale * widened(q), widened(k), widened(v), keys=k.shape[-2])


@whole(lambda q, k, v: (*q.shape[:-1], v.shape[-1] + 1))
def _with_lse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1)
    lse = logsumexp(logits, -1)
    # a query whose keys are all masked, logits -inf, has the sum 0 and the log-sum-exp -inf
    return torch.cat([exp(logits - lse.clamp_min(torch.finfo(lse.dtype).min)) @ v, lse], -1)


def log_sum_exp(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """log sum_j exp(scale * q_i . k_j), in blocks of queries: ``(B, h, N, D), (B, h, M, D) -> (B, h, N, 1)``."""
    with without_autocast(q):
        return over_queries(_log_sum_exp, scale * widened(q), widened(k), keys=k.shape[-2])


@whole(lambda q, k: (*q.shape[:-1], 1))
def _log_sum_exp(q: Tensor, k: Tensor) -> Tensor:
    return logsumexp(q @ k.transpose(-2, -1), -1)


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of disjoint key sets from the attention over each: ``[(y, lse), ...] -> y``.

    A query without keys in a set has the log-sum-exp -inf there.
    """
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    return sum((w * y for w, (y, _) in zip(weights[1:], parts[1:])), weights[0] * parts[0][0])
