"""Softmax attention on a CPU, a tile of queries and keys at a time, with its own gradient.

A tile of weights stays in the processor's cache, and nothing is filled up where queries and values differ in width, as
torch's fused kernel for CPUs does. Forward keeps each query's largest logit so far and scales what was summed before
when a larger one comes, which it can spare where lengths of queries and keys say that all logits are small; backward
computes the weights again from the logarithm of their sum. Where queries are the keys, logits are symmetric: a tile
serves the queries of its rows and those of its columns.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lookfar.ops._autograd import gradients, traced
from lookfar.ops._precision import without_autocast

LOG2_E = math.log2(math.e)  # powers of 2 take a third of the time of exp, and a tenth where they vanish

# of a tile: 0.75 MiB of weights in float32; threads share the work of a tile
LIMITS = {"rows": 384, "keys": 512}

SMALL = 60  # of logits to the base 2: sums of their powers, and of values times these, stay in float32's range


def few_weights(like: Tensor, *sizes: int) -> bool:
    """Where all weights together are no more than a tile: the definition is fastest, and its memory a constant."""
    # sizes are multiplied here: in programs for any size they must not be
    known = not traced() and like.is_cpu and like.dtype in (torch.float32, torch.float64)
    return known and math.prod(sizes) <= math.prod(LIMITS.values())


def _blocks(q: Tensor, keys: int, times: int = 1) -> Iterator[tuple[slice, slice]]:
    """Heads and queries that are worked on together: several heads where one does not fill a tile.

    With one tile in the cache, and not two or three, it may have two times the rows.
    """
    G, N = q.shape[:2]
    most = times * LIMITS["rows"] * torch.get_num_threads()
    rows = min(N, most)
    heads = max(most * LIMITS["keys"] // (rows * keys), 1) if rows == N and keys <= LIMITS["keys"] else 1
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
    return q.new_empty((heads.stop - heads.start) * (rows.stop - rows.start) * widest)


def _tile(buffer: Tensor, some: Tensor, keys: Tensor) -> Tensor:
    """Part of the buffer for the products of ``(heads, rows, _)`` and ``(heads, keys, _)``."""
    shape = (*some.shape[:2], keys.shape[1])
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)


def _logits(buffer: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """In part of the buffer, ``(heads, rows, keys)``."""
    s = _tile(buffer, q, k)
    return torch.baddbmm(s, q, k.transpose(1, 2), beta=0, alpha=scale, out=s)


def _largest_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """What no logit of a query is larger than in size, ``(G, N)``: the product of lengths."""
    length = torch.linalg.vector_norm(k, dim=-1).amax(-1, keepdim=True)
    return torch.linalg.vector_norm(q, dim=-1).mul_(abs(scale)).mul_(length)


def _small(q: Tensor, k: Tensor, v: Tensor, scale: float, buffer: Tensor, y: Tensor, total: Tensor) -> None:
    """Sums of one block of queries, whose logits are small: their powers need no shift to stay in range."""
    for j in _parts(k.shape[1]):
        s = _logits(buffer, q, k[:, j], scale).exp2_()
        total.add_(s.sum(-1, keepdim=True))
        y.baddbmm_(s, v[:, j])


def _add(s: Tensor, v: Tensor, y: Tensor, total: Tensor, top: Tensor) -> None:
    """What one tile of logits adds to the sums of its queries, all below powers of their largest logit so far."""
    largest = torch.maximum(s.amax(-1, keepdim=True), top)
    shrink = (top - largest).exp2_()
    top.copy_(largest)
    total.mul_(shrink).add_(s.sub_(largest).exp2_().sum(-1, keepdim=True))
    y.mul_(shrink).baddbmm_(s, v)


def forward(q: Tensor, k: Tensor | None, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``, and the log-sum-exps ``(B, h, N, 1)``.

    These are to the base 2. Without k the queries are the keys.
    """
    images, scale = q.shape[:2], scale * LOG2_E
    q, k, v = q.flatten(0, 1), None if k is None else k.flatten(0, 1), v.flatten(0, 1)
    y, total = q.new_zeros(*q.shape[:2], v.shape[2]), q.new_zeros(*q.shape[:2], 1)
    top = torch.full_like(total, torch.finfo(q.dtype).min)  # of logits that are all -inf there is none
    if k is None:
        _symmetric(q, v, scale, y, total, top)
    else:
        _of_keys(q, k, v, scale, y, total, top)
    return y.div_(total).unflatten(0, images), total.log2_().add_(top).unflatten(0, images)


def _of_keys(q: Tensor, k: Tensor, v: Tensor, scale: float, y: Tensor, total: Tensor, top: Tensor) -> None:
    M = k.shape[1]
    buffer, largest = _buffer(q, M, 2), _largest_logits(q, k, scale)
    for at in _blocks(q, M, 2):
        if bool((largest[at] < SMALL).all()):
            top[at] = 0
            _small(q[at], k[at[0]], v[at[0]], scale, buffer, y[at], total[at])
            continue
        for j in _parts(M):
            _add(_logits(buffer, q[at], k[at[0], j], scale), v[at[0], j], y[at], total[at], top[at])


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
    shapes = [q.shape, q.shape if k is None else k.shape, v.shape]
    q, v, y, lse, dy = (t.flatten(0, 1) for t in (q, v, y, lse, dy))
    if k is None and wanted[0]:
        found = _symmetric_backward(q, v, y, lse, dy, scale)
    else:
        found = _backward_of_keys(q, q if k is None else k.flatten(0, 1), v, y, lse, dy, scale, wanted)
    return tuple(None if g is None else g.view(shape) for g, shape in zip(found, shapes))


def _backward_of_keys(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    M = k.shape[1]
    dq, dk, dv = (torch.zeros_like(t) if w else None for t, w in zip((q, k, v), wanted))
    weights, others = _buffer(q, M), _buffer(q, M)
    for at in _blocks(q, M):
        some, grad = q[at], dy[at].contiguous()
        mean = (grad * y[at]).sum(-1, keepdim=True)
        shift = lse[at].neg()
        for j in _parts(M):
            here = (at[0], j)
            keys = k[here]
            p = _tile(weights, some, keys)
            torch.baddbmm(shift, some, keys.transpose(1, 2), alpha=scale * LOG2_E, out=p).exp2_()
            if dv is not None:
                dv[here].baddbmm_(p.transpose(1, 2), grad)
            if dq is None and dk is None:
                continue
            ds = _tile(others, some, keys)
            torch.bmm(grad, v[here].transpose(1, 2), out=ds).sub_(mean).mul_(p)
            if dq is not None:
                dq[at].baddbmm_(ds, keys, alpha=scale)
            if dk is not None:
                dk[here].baddbmm_(ds.transpose(1, 2), some, alpha=scale)
    return dq, dk, dv


def _symmetric_backward(
    q: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float
) -> tuple[Tensor | None, ...]:
    dq, dv, dy = torch.zeros_like(q), torch.zeros_like(v), dy.contiguous()
    mean, shift = (dy * y).sum(-1, keepdim=True), lse.neg()
    buffers = [_buffer(q, q.shape[1]) for _ in range(3)]
    for (heads, i), j, both in _pairs(q):
        rows, columns = (heads, i), (heads, j)
        p = _logits(buffers[0], q[rows], q[columns], scale * LOG2_E)
        ds, back = (_tile(buffer, q[rows], q[columns]) for buffer in buffers[1:])
        if both:  # the weights of the columns' queries, transposed
            torch.add(p, shift[columns].transpose(1, 2), out=back).exp2_()
            dv[rows].baddbmm_(back, dy[columns])
        p.add_(shift[rows]).exp2_()
        dv[columns].baddbmm_(p.transpose(1, 2), dy[rows])
        torch.bmm(dy[rows], v[columns].transpose(1, 2), out=ds).sub_(mean[rows]).mul_(p)
        if both:
            torch.bmm(v[rows], dy[columns].transpose(1, 2), out=p).sub_(mean[columns].transpose(1, 2))
            ds.addcmul_(p, back)
        dq[rows].baddbmm_(ds, q[columns], alpha=scale)
        dq[columns].baddbmm_(ds.transpose(1, 2), q[rows], alpha=scale)
    return dq, None, dv


def twice(
    q: Tensor, k: Tensor | None, v: Tensor, dy: Tensor, scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients by operations that can be differentiated again, with all weights."""

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with without_autocast(q):
            return (scale * q @ k.transpose(-2, -1)).softmax(-1) @ v

    if k is None:
        dq, dv = gradients(lambda q, v: definition(q, q, v), (q, v), wanted[::2], dy)
        return dq, None, dv
    return tuple(gradients(definition, (q, k, v), wanted, dy))
