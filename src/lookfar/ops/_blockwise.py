"""Attention over blocks of queries: the N x M weights are never held at once, neither forward nor backward.

For what fused kernels can't do: float64 on CUDA, other normalisations than softmax, log-sum-exps with gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, gradients, needs_graph, recomputed, traced
from lookfar.ops._precision import widened, without_autocast

# logits held at a time, over batch and heads: 4 MiB in float32 on a CPU; a GPU needs larger launches
BUDGET = {"cpu": 2**20}
BUDGET_ELSEWHERE = 2**25

Shape = Callable[..., Sequence[int]]
_WHOLE: dict[str, tuple[Callable[..., Tensor], Shape]] = {}


def whole(shape: Shape) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A function of a module for :func:`over_queries`, whose loop compiled programs call as one operation.

    Traced, it would be unrolled for one size. Exported programs do without: they are loaded where lookfar is not
    installed.

    Args:
        shape: Of the result, from the same tensors; its type is that of the first.
    """

    def named(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        f.whole = f"{f.__module__}.{f.__qualname__}"  # type: ignore[attr-defined]
        _WHOLE[f.whole] = f, shape  # type: ignore[attr-defined]
        return f

    return named


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
        if hasattr(f, "whole") and compiled_here():
            return _loop(f.whole, queries, others, keys, sizes, words)
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


@torch.library.custom_op(
    "lookfar::over_queries",
    mutates_args=(),
    schema="(str name, Tensor[] queries, Tensor[] others, SymInt keys, SymInt[] sizes, str[] words) -> Tensor",
)
def _loop(
    name: str, queries: Sequence[Tensor], others: Sequence[Tensor], keys: int, sizes: Sequence[int],
    words: Sequence[str],
) -> Tensor:  # fmt: skip
    """:func:`over_queries`, of a function's name."""
    with without_autocast(queries[0]):
        y = over_queries(_WHOLE[name][0], tuple(queries), *others, keys=keys, sizes=sizes, words=words)
    return y.contiguous()  # as :func:`_empty` has it


@_loop.register_fake
def _empty(name: str, queries: Sequence[Tensor], others: Sequence[Tensor], *_: Any) -> Tensor:
    return queries[0].new_empty(tuple(_WHOLE[name][1](*queries, *others)))


@torch.library.custom_op(
    "lookfar::over_queries_backward",
    mutates_args=(),
    schema="(str name, Tensor[] queries, Tensor[] others, SymInt keys, SymInt[] sizes, str[] words, Tensor dy,"
    " bool[] wanted) -> Tensor[]",
)
def _pull(
    name: str, queries: Sequence[Tensor], others: Sequence[Tensor], keys: int, sizes: Sequence[int],
    words: Sequence[str], dy: Tensor, wanted: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of queries and others, a block at a time; nothing, ``(0,)``, for those that are not wanted."""
    f = _WHOLE[name][0]
    found = _empty_gradients(name, queries, others, keys, sizes, words, dy, wanted)
    n, rows = len(queries), _rows(queries[0], keys)
    for g in found[n:]:
        g.zero_()
    at = [i for i, w in enumerate(wanted) if w]
    with without_autocast(queries[0]):
        for begin in range(0, queries[0].shape[-2], rows):
            block = [t.narrow(-2, begin, min(rows, t.shape[-2] - begin)) for t in queries]
            inputs = [*block, *others]

            def of_wanted(*given: Tensor, inputs: Sequence[Tensor] = inputs) -> Tensor:
                chosen = dict(zip(at, given))
                return f(*(chosen.get(i, t) for i, t in enumerate(inputs)), *sizes, *words)

            _, pull = torch.func.vjp(of_wanted, *(inputs[i] for i in at))  # autograd is switched off in here
            for i, g in zip(at, pull(dy.narrow(-2, begin, block[0].shape[-2]))):
                if i < n:
                    found[i].narrow(-2, begin, block[0].shape[-2]).copy_(g)
                else:
                    found[i].add_(g)
    return found


@_pull.register_fake
def _empty_gradients(name: str, queries: Sequence[Tensor], others: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [t.new_empty(t.shape if w else (0,)) for t, w in zip((*queries, *others), rest[-1])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, queries, others, *ctx.rest = inputs
    ctx.n = len(queries)
    ctx.save_for_backward(*queries, *others)


def _backward_of(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    queries, others = ctx.saved_tensors[: ctx.n], ctx.saved_tensors[ctx.n :]
    wanted = [*ctx.needs_input_grad[1], *ctx.needs_input_grad[2]]
    if needs_graph():
        keys, sizes, words = ctx.rest
        f = _WHOLE[ctx.name][0]

        def again(*given: Tensor) -> Tensor:
            return over_queries(f, given[: ctx.n], *given[ctx.n :], keys=keys, sizes=sizes, words=words)

        found = gradients(again, [*queries, *others], wanted, dy)
    else:
        found = _pull(ctx.name, queries, others, *ctx.rest, dy.contiguous(), wanted)
        found = [g if w else None for g, w in zip(found, wanted)]
    none = [None if listed else [] for listed in ctx.rest[1:]]  # torch takes an empty list for one of tensors
    return None, found[: ctx.n], found[ctx.n :], None, *none


_loop.register_autograd(_backward_of, setup_context=_keep)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """Softmax attention and, beside it, the logarithm of its denominator, both differentiable, in blocks of queries.

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E + 1)``
    """
    with without_autocast(q):
        return over_queries(_with_lse, scale * widened(q), widened(k), widened(v), keys=k.shape[-2])


@whole(lambda q, k, v: (*q.shape[:-1], v.shape[-1] + 1))
def _with_lse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1)
    lse = logits.logsumexp(-1, keepdim=True)
    # a query whose keys are all masked, logits -inf, has the sum 0 and the log-sum-exp -inf
    return torch.cat([(logits - lse.clamp_min(torch.finfo(lse.dtype).min)).exp() @ v, lse], -1)


def log_sum_exp(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """log sum_j exp(scale * q_i . k_j), in blocks of queries: ``(B, h, N, D), (B, h, M, D) -> (B, h, N, 1)``."""
    with without_autocast(q):
        return over_queries(_log_sum_exp, scale * widened(q), widened(k), keys=k.shape[-2])


@whole(lambda q, k: (*q.shape[:-1], 1))
def _log_sum_exp(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).logsumexp(-1, keepdim=True)


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of disjoint key sets from the attention over each: ``[(y, lse), ...] -> y``.

    A query without keys in a set has the log-sum-exp -inf there.
    """
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    return sum((w * y for w, (y, _) in zip(weights[1:], parts[1:])), weights[0] * parts[0][0])
