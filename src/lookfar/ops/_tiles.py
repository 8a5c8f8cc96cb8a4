"""Softmax attention on a CPU, a tile of queries and keys at a time, with its own gradient.

A tile of weights stays in the processor's cache, and nothing is filled up where queries and values differ in width, as
torch's fused kernel for CPUs does. Forward keeps each query's largest logit so far and scales what was summed before
when a larger one comes, which it can spare where lengths of queries and keys say that all logits are small; backward
computes the weights again from the logarithm of their sum. Where queries are the keys, logits are symmetric: a tile
serves the queries of its rows and those of its columns.

In bfloat16, for CPUs that multiply in it, whatever is summed over tiles is float32, and so are logits: products of
widened queries and keys. Every other product is one of bfloat16 numbers, weights and their gradients rounded first.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import gradients, traced
from lookfar.ops._precision import LOG2_E, multiplies, powers_, wide, widened, without_autocast

# of a tile: 0.75 MiB of weights in float32; threads share the work of a tile
LIMITS = {"rows": 384, "keys": 512}

SMALL = 60  # of logits to the base 2: sums of their powers, and of values times these, stay in float32's range


def takes(t: Tensor) -> bool:
    """Whether tiles are for numbers such as these."""
    return t.is_cpu and (t.dtype in (torch.float32, torch.float64) or multiplies(t))


def few_weights(like: Tensor, *sizes: int) -> bool:
    """Where all weights together are no more than a tile: the definition is fastest, and its memory a constant."""
    # sizes are multiplied here: in programs for any size they must not be
    return not traced() and takes(like) and math.prod(sizes) <= math.prod(LIMITS.values())


def _blocks(q: Tensor, keys: int, times: int = 1) -> Iterator[tuple[slice, slice]]:
    """Heads and queries that are worked on together: several heads where one does not fill a tile.

    With one tile in the cache, and not two or three, it may have two times the rows.
    """
    G, N = q.shape[:2]
    most = times * LIMITS["rows"] * torch.get_num_threads()
    rows = min(N, most)
    widest = keys if q.dtype == wide(q) else max(keys, q.shape[2])  # widened queries are held, too
    heads = max(most * LIMITS["keys"] // (rows * widest), 1) if rows == N and keys <= LIMITS["keys"] else 1
    for g in range(0, G, heads):
        for i in range(0, N, rows):
            yield slice(g, min(g + heads, G)), slice(i, min(i + rows, N))


def _parts(keys: int) -> list[slice]:
    """About as long as a tile is wide, and all alike: a last part of a few keys would take as long as a whole one."""
    width = -(-keys // max(round(keys / LIMITS["keys"]), 1)) or 1
    return [slice(j, min(j + width, keys)) for j in range(0, keys, width)]


def _buffer(q: Tensor, keys: int, times: int = 1) -> Tensor:
    heads, rows = next(_blocks(q, keys, times))
    widest = min(keys, LIMITS["keys"] * 3 // 2)  # of parts of any number of keys up to this one
    return q.new_empty((heads.stop - heads.start) * (rows.stop - rows.start) * widest, dtype=wide(q))


def _tile(buffer: Tensor, some: Tensor, keys: Tensor) -> Tensor:
    """Part of the buffer for the products of ``(heads, rows, _)`` and ``(heads, keys, _)``."""
    shape = (*some.shape[:2], keys.shape[1])
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)


def _logits(buffer: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """In part of the buffer, ``(heads, rows, keys)``."""
    s = _tile(buffer, q, k)
    return torch.baddbmm(s, widened(q), widened(k).transpose(1, 2), beta=0, alpha=scale, out=s)


def _add_product(sums: Tensor, a: Tensor, b: Tensor, scale: float = 1) -> None:
    """``sums += scale a b``; where one of them is bfloat16 the other is rounded to it, the sums are not."""
    if a.dtype == b.dtype == sums.dtype:
        sums.baddbmm_(a, b, alpha=scale)
    else:
        sums.add_(_product(a.bfloat16(), b.bfloat16()), alpha=scale)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of bfloat16; torch's product of several matrices copies parts of a larger one."""
    return (a[0] @ b[0]).unsqueeze(0) if len(a) == 1 else torch.bmm(a, b)


def _largest_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """What no logit of a query is larger than in size, ``(G, N)``: the product of lengths."""
    dtype = wide(q)
    length = torch.linalg.vector_norm(k, dim=-1, dtype=dtype).amax(-1, keepdim=True)
    return torch.linalg.vector_norm(q, dim=-1, dtype=dtype).mul_(abs(scale)).mul_(length)


def _small(
    q: Tensor, k: Tensor, v: Tensor, scale: float, buffer: Tensor, y: Tensor, total: Tensor, top: Tensor
) -> None:
    """Sums of one block of queries, whose logits are small: their powers need no shift to stay in range."""
    top.zero_()
    for j in _parts(k.shape[1]):
        p = _logits(buffer, q, k[:, j], scale).exp2_().to(v.dtype)
        total.add_(p.sum(-1, keepdim=True, dtype=total.dtype))
        _add_product(y, p, v[:, j])


def _of_keys(
    q: Tensor, k: Tensor, v: Tensor, scale: float, buffer: Tensor, y: Tensor, total: Tensor, top: Tensor
) -> None:
    for j in _parts(k.shape[1]):
        _add(_logits(buffer, q, k[:, j], scale), v[:, j], y, total, top)


def _add(s: Tensor, v: Tensor, y: Tensor, total: Tensor, top: Tensor) -> None:
    """What one tile of logits adds to the sums of its queries, all below powers of their largest logit so far."""
    largest = torch.maximum(s.amax(-1, keepdim=True), top)
    shrink = (top - largest).exp2_()
    top.copy_(largest)
    p = powers_(s.sub_(largest)).to(v.dtype)  # what is summed and what weighs the values are the same numbers
    total.mul_(shrink).add_(p.sum(-1, keepdim=True, dtype=total.dtype))
    _add_product(y.mul_(shrink), p, v)


def forward(q: Tensor, k: Tensor | None, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``, and the log-sum-exps ``(B, h, N, 1)``.

    These are to the base 2, and float32 at least. Without k the queries are the keys.
    """
    images, scale = q.shape[:2], scale * LOG2_E
    q, k, v = q.flatten(0, 1), None if k is None else k.flatten(0, 1), v.flatten(0, 1)
    y, lse = v.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], 1, dtype=wide(q))
    if k is None:
        for g in _groups(q, v):
            _sum_up(y[g], lse[g], partial(_symmetric, q[g], v[g], scale))
    else:
        buffer, largest = _buffer(q, k.shape[1], 2), _largest_logits(q, k, scale)
        for at in _blocks(q, k.shape[1], 2):
            given = widened(q[at]), k[at[0]], v[at[0]], scale, buffer
            small = bool((largest[at] < SMALL).all())
            _sum_up(y[at], lse[at], partial(_small if small else _of_keys, *given))
    return y.unflatten(0, images), lse.unflatten(0, images)


def _sum_up(y: Tensor, lse: Tensor, add: Callable[[Tensor, Tensor, Tensor], None]) -> None:
    """Write what ``add`` finds for some queries: sums of values, of weights, and what their powers are lessened by."""
    sums = y.zero_() if y.dtype == lse.dtype else torch.zeros_like(y, dtype=lse.dtype)
    total = torch.zeros_like(lse)
    top = torch.full_like(total, torch.finfo(total.dtype).min)  # of logits that are all -inf there is none
    add(sums, total, top)
    sums.div_(total)
    if sums is not y:
        y.copy_(sums)
    lse.copy_(total.log2_().add_(top))


def _groups(q: Tensor, v: Tensor) -> list[slice]:
    """Heads whose sums are held at a time: those that are worked on together where sums are not what is returned."""
    G, N = q.shape[:2]
    step = G if v.dtype == wide(v) else max(math.prod(LIMITS.values()) // (N * v.shape[2]), 1)
    return [slice(g, g + step) for g in range(0, G, step)]


def _symmetric(q: Tensor, v: Tensor, scale: float, y: Tensor, total: Tensor, top: Tensor) -> None:
    logits, copied = _buffer(q, q.shape[1]), _buffer(q, q.shape[1])
    for (heads, i), j, both in _pairs(q):
        s = _logits(logits, q[heads, i], q[heads, j], scale)
        if both:
            other = _tile(copied, s, q[heads, j]).copy_(s).transpose(1, 2)
            _add(other, v[heads, i], y[heads, j], total[heads, j], top[heads, j])
        _add(s, v[heads, j], y[heads, i], total[heads, i], top[heads, i])


def _pairs(q: Tensor) -> Iterator[tuple[tuple[slice, slice], slice, bool]]:
    """Blocks of queries, keys, and whether what these are to those is not yet there: all pairs of positions once."""
    N = q.shape[1]
    for heads, i in _blocks(q, N):
        for start, stop in ((i.start, i.stop), (i.stop, N)):
            for j in _parts(stop - start):
                yield (heads, i), slice(start + j.start, start + j.stop), start == i.stop


def backward(
    q: Tensor, k: Tensor | None, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v that are wanted, from the output y and its gradient.

    With P the weights and S the logits: dv = P^T dy, dP = dy v^T, dS = P (dP - dy . y), dq = dS k, dk = dS^T q. Without
    k the queries are the keys, and dq is (dS + dS^T) q.
    """
    keys = q if k is None else k
    shapes = [t.shape for t in (q, keys, v)]
    q, keys, v, y, lse, dy = (t.flatten(0, 1) for t in (q, keys, v, y, lse, dy))
    groups: list[Any] = []
    for g in _groups(q, v):
        some = q[g], v[g], y[g], lse[g], dy[g], scale
        found = _symmetric_backward(*some) if k is None and wanted[0] else _backward_of_keys(keys[g], *some, wanted)
        groups.append([None if t is None else t.to(like.dtype) for t, like in zip(found, (q, keys, v))])
    return tuple(
        None if some[0] is None else (some[0] if len(some) == 1 else torch.cat(some)).view(shape)
        for some, shape in zip(zip(*groups), shapes)
    )


def _with_means(y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    """The output's gradient, and dy . y, which dP = dy v^T is to be lessened by.

    In bfloat16 the product does that, before it rounds: the gradient has it as two channels, the values have -1 there.
    """
    mean = widened(dy).mul(widened(y)).sum(-1, keepdim=True)
    if dy.dtype == mean.dtype:
        return dy.contiguous(), mean
    most = mean.to(dy.dtype)
    return torch.cat([dy, most, (mean - most).to(dy.dtype)], -1), None


def _for_means(v: Tensor) -> Tensor:
    return F.pad(v, (0, 2), value=-1) if v.dtype == torch.bfloat16 else v


def _lessened(out: Tensor, a: Tensor, b: Tensor, mean: Tensor | None) -> Tensor:
    """dP - dy . y of a tile, or its transpose."""
    if mean is None:
        return _product(a, b.transpose(1, 2))
    return torch.bmm(a, b.transpose(1, 2), out=out).sub_(mean)


def _backward_of_keys(
    k: Tensor, q: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    M, E = k.shape[1], v.shape[2]
    dq, dk, dv = (torch.zeros_like(t, dtype=wide(t)) if w else None for t, w in zip((q, k, v), wanted))
    v, times = _for_means(v), 1 if v.dtype == lse.dtype else 2
    weights, others = _buffer(q, M, times), _buffer(q, M, times)
    for at in _blocks(q, M, times):
        some, shift = widened(q[at]), lse[at].neg()
        grad, mean = _with_means(y[at], dy[at])
        for j in _parts(M):
            here = (at[0], j)
            keys = k[here]
            p = _tile(weights, some, keys)
            torch.baddbmm(shift, some, widened(keys).transpose(1, 2), alpha=scale * LOG2_E, out=p)
            p = powers_(p).to(v.dtype)
            if dv is not None:
                _add_product(dv[here], p.transpose(1, 2), grad[..., :E])
            if dq is None and dk is None:
                continue
            ds = _lessened(_tile(others, some, keys), grad, v[here], mean).mul_(p)
            if dq is not None:
                _add_product(dq[at], ds, keys, scale)
            if dk is not None:
                _add_product(dk[here], ds.transpose(1, 2), q[at], scale)
    return dq, dk, dv


def _symmetric_backward(
    q: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float
) -> tuple[Tensor | None, ...]:
    E, shift = v.shape[2], lse.neg()
    dq, dv = (torch.zeros_like(t, dtype=wide(t)) for t in (q, v))
    v, (dy, mean) = _for_means(v), _with_means(y, dy)
    buffers = [_buffer(q, q.shape[1]) for _ in range(3)]
    for (heads, i), j, both in _pairs(q):
        rows, columns = (heads, i), (heads, j)
        p = _logits(buffers[0], q[rows], q[columns], scale * LOG2_E)
        ds, back = (_tile(buffer, q[rows], q[columns]) for buffer in buffers[1:])
        if both:  # the weights of the columns' queries, transposed
            back = powers_(torch.add(p, shift[columns].transpose(1, 2), out=back)).to(v.dtype)
            _add_product(dv[rows], back, dy[columns][..., :E])
        weights = powers_(p.add_(shift[rows])).to(v.dtype)
        _add_product(dv[columns], weights.transpose(1, 2), dy[rows][..., :E])
        ds = _lessened(ds, dy[rows], v[columns], None if mean is None else mean[rows]).mul_(weights)
        if both:
            of_columns = None if mean is None else mean[columns].transpose(1, 2)
            ds.addcmul_(_lessened(p, v[rows], dy[columns], of_columns), back)
        _add_product(dq[rows], ds, q[columns], scale)
        _add_product(dq[columns], ds.transpose(1, 2), q[rows], scale)
    return dq, None, dv


def twice(
    q: Tensor, k: Tensor | None, v: Tensor, dy: Tensor, scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients by operations that can be differentiated again, with all weights."""

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with without_autocast(q):
            q, k = widened(q), widened(k)
            return ((scale * q @ k.transpose(-2, -1)).softmax(-1) @ widened(v)).to(v.dtype)

    if k is None:
        dq, dv = gradients(lambda q, v: definition(q, q, v), (q, v), wanted[::2], dy)
        return dq, None, dv
    return tuple(gradients(definition, (q, k, v), wanted, dy))
