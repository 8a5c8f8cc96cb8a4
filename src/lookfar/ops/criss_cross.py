"""Attention of every position to its own row and column: y_i = sum_{j in cross(i)} softmax_j(q_i . k_j) v_j.

On a video the cross has three lines, the third along time: (T + H + W - 2) positions.
Normalisations other than softmax are sums along all lines, minus the query's own position, which lies on each.

Traps: the own position lies on all lines and counts once (here it is masked in all but the last, the row);
similarities are not divided by sqrt(D). Differentiating a merge of two fused attentions is wrong where their backward
ignores the gradient of the log-sum-exp: the autograd function below calls each pass's backward with the merged output
and log-sum-exp.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._definition import attended
from lookfar.ops._normalization import RowNormalization, check_normalization, divided, normalised, summed, terms
from lookfar.ops._precision import LOG2_E, powers_, wide, widened, without_autocast

WHY_NOT_DOUBLE = "it shares a key among all queries, and those off its row and column do not see it"


def criss_cross_weights(
    q: Tensor, k: Tensor, queries: Tensor | None = None, *, normalization: RowNormalization = "softmax"
) -> Tensor:
    """``(B, h, *S, D), (B, h, *S, D) -> (B, h, Q, N)``: rows of the dense map, exactly zero off the cross.

    >>> q = torch.zeros(1, 1, 2, 2, 1)
    >>> criss_cross_weights(q, q, torch.tensor([0]))  # all but the position diagonally opposite
    tensor([[[[0.3333, 0.3333, 0.3333, 0.0000]]]])

    Args:
        q: Queries.
        k: Keys.
        queries: Flat positions ``(Q,)``; all when None.
        normalization: As in :func:`criss_cross`.
    """
    check_normalization(normalization, why=WHY_NOT_DOUBLE)
    size = q.shape[2:-1]
    j = torch.arange(math.prod(size), device=q.device)
    i = j if queries is None else j[queries]
    differ, inner = [], 1
    for n in reversed(size):
        differ.append(i[:, None] // inner % n != j // inner % n)
        inner = inner * n
    cross = torch.stack(differ).sum(0) <= 1  # along one axis at most
    with without_autocast(q):
        q, k = widened(q).flatten(2, -2)[:, :, i], widened(k).flatten(2, -2)
        return normalised(q @ k.transpose(-2, -1), normalization, seen=cross)


def criss_cross_reference(q: Tensor, k: Tensor, v: Tensor, *, normalization: RowNormalization = "softmax") -> Tensor:
    """The definition, position by position: its row, and its other lines without the position itself.

    >>> q, v = torch.zeros(1, 1, 2, 2, 1), torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2, 1)
    >>> criss_cross_reference(q, q, v).flatten()  # each the mean of all but the position diagonally opposite
    tensor([1.0000, 1.3333, 1.6667, 2.0000])
    """
    size = q.shape[2:-1]
    with without_autocast(q):
        q, k, values = (widened(t).movedim(-1, 2) for t in (q, k, v))
        found = []
        for at in itertools.product(*map(range, size)):
            cross = [at]
            for axis, n in enumerate(size):
                cross += [(*at[:axis], i, *at[axis + 1 :]) for i in range(n) if i != at[axis]]
            found.append(attended(q[(..., *at)], k, values, cross, normalization))
        return torch.stack(found, 2).unflatten(2, size).to(v.dtype) if found else torch.zeros_like(v)


def _merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax over all logits of a position, without loops: memory N (H + W). For graphs and second derivatives."""
    axes, dtype = range(2, q.dim() - 1), v.dtype
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)
        logits = []
        for axis in axes:
            s = q.movedim(axis, -2) @ k.movedim(axis, -2).transpose(-2, -1)  # (B, h, .., M, M)
            if axis != axes[-1]:
                i = torch.arange(q.shape[axis], device=q.device)
                s = s.masked_fill(i[:, None] == i, -torch.inf)
            logits.append(s.movedim(-2, axis))
        weights = torch.cat(logits, -1).softmax(-1)
        sums, start = [], 0
        for axis in axes:
            end = start + q.shape[axis]
            sums.append((weights[..., start:end].movedim(axis, -2) @ v.movedim(axis, -2)).movedim(-2, axis))
            start = end
    return sum(sums[1:], sums[0]).to(dtype)


def _blocks(G: int, L: int, numbers: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of (groups, lines) whose lines, of ``numbers`` numbers each, stay below the limit together."""
    lines = max(1, limit // numbers)
    if lines < L:  # within one group the slices are views
        for g in range(G):
            for start in range(0, L, lines):
                yield slice(g, g + 1), slice(start, start + lines)
    else:
        for g in range(0, G, lines // L):
            yield slice(g, g + lines // L), slice(0, L)


def _limit(t: Tensor) -> int:
    return 1 << 24 if t.is_cuda else 1 << 18  # 1 MB of float32 stays in a CPU's cache, a GPU needs more to be busy


def _along(t: Tensor, size: Sequence[int], axis: int) -> Tensor:
    """The lines of ``t`` (G, *S, ...) along an axis: ``(groups, lines, M, ...)``, a view where strides allow it."""
    rest = t.shape[len(size) + 1 :]
    if axis == len(size) - 1:  # the rows of one plane are a group
        return t.reshape(len(t) * math.prod(size[:-2]), *size[-2:], *rest)
    before, after = math.prod(size[:axis]), math.prod(size[axis + 1 :])
    return t.reshape(len(t) * before, size[axis], after, *rest).transpose(1, 2)


def _lines(t: Tensor, block: tuple[slice, slice]) -> Tensor:
    return widened(t[block].flatten(0, 1))  # (lines, M, ...)


def _passes(size: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """The axes, and whether the own position is left out: everywhere but in the last, the row."""
    for axis, n in enumerate(size):
        last = axis == len(size) - 1
        if n > 1 or last:  # of one position nothing but itself would be left
            yield axis, not last


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``(G, *S, D|D|E)`` -> output ``(G, *S, E)`` and log-sum-exp ``(G, *S)`` to the base 2, in the wide type."""
    dtype = wide(v)
    size, E = v.shape[1:-1], v.shape[-1]
    out = v.new_zeros(v.shape, dtype=dtype)
    top = v.new_full(v.shape[:-1], -torch.inf, dtype=dtype)  # largest logit so far
    total = v.new_zeros(v.shape[:-1], dtype=dtype)  # sum of 2^(logit - top)
    for axis, elsewhere in _passes(size):
        qs, ks, vs, outs, tops, totals = (_along(t, size, axis) for t in (q, k, v, out, top, total))
        L, M = outs.shape[1:3]
        for at in _blocks(len(outs), L, M * max(M, E), _limit(v)):
            s = torch.bmm(_lines(qs, at) * LOG2_E, _lines(ks, at).transpose(1, 2))  # (lines, M, M)
            if elsewhere:
                s.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            shape = outs[at].shape[:3]
            # finite, also where all keys of a line are masked by logits of -inf
            m = torch.maximum(tops[at], s.amax(-1).view(shape)).clamp_min_(torch.finfo(dtype).min)
            powers_(s.sub_(m.reshape(-1, M, 1)))
            before = powers_(tops[at] - m)
            totals[at] = totals[at].mul_(before).add_(s.sum(-1).view(shape))
            tops[at] = m
            y = torch.bmm(s, _lines(vs, at)).view(*shape, E)
            if axis == 0:
                outs[at] = y
            else:
                outs[at].mul_(before[..., None]).add_(y)
            if not elsewhere:
                outs[at].div_(totals[at][..., None])
    return out, top.add_(total.log2_())


def _backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v with the weights recomputed, block by block, from the merged log-sum-exp."""
    grad = grad.flatten(0, 1).contiguous()
    size, E = v.shape[1:-1], v.shape[-1]
    inner = (widened(grad) * out).sum(-1)  # (G, *S): what softmax subtracts from every dP
    grads = tuple(torch.zeros_like(t, dtype=lse.dtype, memory_format=torch.contiguous_format) for t in (q, k, v))
    for axis, elsewhere in _passes(size):
        tensors = (q, k, v, lse, grad, inner, *grads)
        qs, ks, vs, lses, gs, inners, dq, dk, dv = (_along(t, size, axis) for t in tensors)
        L, M = lses.shape[1:3]
        for at in _blocks(len(lses), L, M * max(M, E), _limit(v)):
            qb, kb, gb = _lines(qs, at), _lines(ks, at), _lines(gs, at)
            p = torch.bmm(qb * LOG2_E, kb.transpose(1, 2))
            if elsewhere:
                p.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            powers_(p.sub_(_lines(lses, at)[..., None]))
            shape = lses[at].shape
            dv[at] += torch.bmm(p.transpose(1, 2), gb).view(*shape, -1)
            ds = torch.bmm(gb, _lines(vs, at).transpose(1, 2)).sub_(_lines(inners, at)[..., None]).mul_(p)
            dq[at] += torch.bmm(ds, kb).view(*shape, -1)
            dk[at] += torch.bmm(ds.transpose(1, 2), qb).view(*shape, -1)
    return tuple(g.to(t.dtype) for g, t in zip(grads, (q, k, v)))


class _LineBlocks(torch.autograd.Function):
    """Axis by axis, some lines at a time, rows last; saves q, k, v, output and log-sum-exp: memory N (D + E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with without_autocast(q):
            out, lse = _forward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        y = out.view_as(v).to(v.dtype)
        ctx.save_for_backward(q, k, v, y, lse)
        return y.clone()  # the saved output must not change with the returned one

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        if needs_graph():
            return tuple(gradients(_merged, (q, k, v), ctx.needs_input_grad, grads[0]))
        with without_autocast(q):
            found = _backward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), y.flatten(0, 1), lse, grads[0])
        return tuple(g.view_as(t) for g, t in zip(found, (q, k, v)))


def _line_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # fresh views, since q and k may be the same tensor, which the second derivative would then count twice
    return _LineBlocks.apply(q.view_as(q), k.view_as(k), v.view_as(v))


def _line_sums(q: Tensor, k: Tensor, v: Tensor, normalization: RowNormalization) -> Tensor:
    """The normalisations that are sums over keys: each line on its own, in blocks of queries."""
    axes, dtype = range(2, q.dim() - 1), v.dtype
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)
        lines = []
        for axis in axes:
            along = (t.movedim(axis, -2) for t in (q, k, v))
            lines.append(summed(*along, normalization=normalization).movedim(-2, axis))
        w, d = terms((q * k).sum(-1, keepdim=True), normalization)
        y = sum(lines[1:], lines[0]) - (len(lines) - 1) * torch.cat([w * v, d], -1)
        return divided(y[..., :-1], y[..., -1:]).to(dtype)


PATHS = {"line_blocks": _line_blocks, "merged": _merged}  # tests and benchmarks go through each of them


def criss_cross(q: Tensor, k: Tensor, v: Tensor, *, normalization: RowNormalization = "softmax") -> Tensor:
    """Attention of every position to its row and column, on a video also along time, in O(N) memory.

    Fast and exact: :func:`criss_cross_reference` is the definition.

    Logits and sums are float32 where the inputs are float16 or bfloat16. Under ``torch.compile`` and ``torch.export``
    the loop-free form is used, whose memory is N (H + W).

    >>> q, v = torch.zeros(1, 1, 2, 2, 1), torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2, 1)
    >>> criss_cross(q, q, v).flatten()  # each the mean of all but the position diagonally opposite
    tensor([1.0000, 1.3333, 1.6667, 2.0000])

    Args:
        q: Queries ``(B, h, H, W, D)`` or ``(B, h, T, H, W, D)``.
        k: Keys of the same shape.
        v: Values ``(B, h, H, W, E)`` or ``(B, h, T, H, W, E)``.
        normalization: ``softmax`` over the cross, ``l1`` s / sum |s|, and ``sigmoid`` and ``none`` divided by its
            H + W - 1 (on a video T + H + W - 2) positions.

    Shape: ``(B, h, H, W, E)`` or ``(B, h, T, H, W, E)``, as v.

    Raises:
        ValueError: Shapes that do not fit, an unknown normalisation.
    """
    check_normalization(normalization, why=WHY_NOT_DOUBLE)
    if q.dim() not in (5, 6) or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"want q, k (B, h, [T,] H, W, D) and v (B, h, [T,] H, W, E); got {q.shape=}, {k.shape=}, {v.shape=}"
        )
    if normalization != "softmax":
        return _line_sums(q, k, v, normalization)
    plain = for_graphs() or has_tangent(q, k, v)
    return PATHS["merged" if plain else "line_blocks"](q, k, v)
