"""Attention of every position to its own row and column: y_i = sum_{j in cross(i)} softmax_j(q_i . k_j) v_j.

Normalisations other than softmax are sums along both lines, minus the query's own position, which lies on both.

Traps: the own position lies on both lines and counts once (here it is masked in the column); similarities are not
divided by sqrt(D). Differentiating a merge of two fused attentions is wrong where their backward ignores the gradient
of the log-sum-exp: the autograd function below calls each pass's backward with the merged output and log-sum-exp.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._definition import attended
from lookfar.ops._normalization import RowNormalization, check_normalization, divided, normalised, summed, terms
from lookfar.ops._precision import widened, without_autocast

WHY_NOT_DOUBLE = "it shares a key among all queries, and those off its row and column do not see it"


def criss_cross_weights(
    q: Tensor, k: Tensor, queries: Tensor | None = None, *, normalization: RowNormalization = "softmax"
) -> Tensor:
    """``(B, h, H, W, D), (B, h, H, W, D) -> (B, h, Q, N)``: rows of the dense map, exactly zero off the cross.

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
    H, W = q.shape[2:4]
    j = torch.arange(H * W, device=q.device)
    i = j if queries is None else j[queries]
    cross = (i[:, None] // W == j // W) | (i[:, None] % W == j % W)
    with without_autocast(q):
        q, k = widened(q).flatten(2, 3)[:, :, i], widened(k).flatten(2, 3)
        return normalised(q @ k.transpose(-2, -1), normalization, seen=cross)


def criss_cross_reference(q: Tensor, k: Tensor, v: Tensor, *, normalization: RowNormalization = "softmax") -> Tensor:
    """The definition, position by position: its row, and its column without the position itself.

    >>> q, v = torch.zeros(1, 1, 2, 2, 1), torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2, 1)
    >>> criss_cross_reference(q, q, v).flatten()  # each the mean of all but the position diagonally opposite
    tensor([1.0000, 1.3333, 1.6667, 2.0000])
    """
    H, W = q.shape[2:4]
    with without_autocast(q):
        q, k, values = (widened(t).movedim(-1, 2) for t in (q, k, v))
        found = []
        for y, x in itertools.product(range(H), range(W)):
            cross = [(y, i) for i in range(W)] + [(i, x) for i in range(H) if i != y]
            found.append(attended(q[..., y, x], k, values, cross, normalization))
        return torch.stack(found, 2).unflatten(2, (H, W)).to(v.dtype)


def _merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax over H + W logits a position, without loops: memory N (H + W). For graphs and second derivatives."""
    H, dtype = q.shape[2], v.dtype
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)
        i = torch.arange(H, device=q.device)
        column = q.transpose(2, 3) @ k.transpose(2, 3).transpose(-2, -1)  # (B, h, W, H, H)
        column = column.masked_fill(i[:, None] == i, -torch.inf).transpose(2, 3)
        row = q @ k.transpose(-2, -1)  # (B, h, H, W, W)
        weights = torch.cat([column, row], -1).softmax(-1)
        y = (weights[..., :H].transpose(2, 3) @ v.transpose(2, 3)).transpose(2, 3) + weights[..., H:] @ v
    return y.to(dtype)


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


def _lines(t: Tensor, block: tuple[slice, slice]) -> Tensor:
    return widened(t[block].flatten(0, 1))  # (lines, M, ...)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``(G, H, W, D|D|E)`` -> output ``(G, H, W, E)`` and log-sum-exp ``(G, H, W)``, in the wide type."""
    wide = torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    G, H, W, E = v.shape
    out = v.new_zeros(v.shape, dtype=wide)
    top = v.new_full((G, H, W), -torch.inf, dtype=wide)  # largest logit so far
    total = v.new_zeros((G, H, W), dtype=wide)  # sum of exp(logit - top)
    for column in (True, False):
        if column and H == 1:
            continue  # nothing but the position itself
        tensors = (q, k, v, out, top, total)
        qs, ks, vs, outs, tops, totals = (t.transpose(1, 2) if column else t for t in tensors)
        L, M = outs.shape[1:3]
        for at in _blocks(G, L, M * max(M, E), _limit(v)):
            s = torch.bmm(_lines(qs, at), _lines(ks, at).transpose(1, 2))  # (lines, M, M)
            if column:
                s.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            shape = outs[at].shape[:3]
            # finite, also where all keys of a line are masked by logits of -inf
            m = torch.maximum(tops[at], s.amax(-1).view(shape)).clamp_min_(torch.finfo(wide).min)
            s.sub_(m.reshape(-1, M, 1)).exp_()
            before = (tops[at] - m).exp_()
            totals[at] = totals[at].mul_(before).add_(s.sum(-1).view(shape))
            tops[at] = m
            y = torch.bmm(s, _lines(vs, at)).view(*shape, E)
            if column:
                outs[at] = y
            else:
                outs[at].mul_(before[..., None]).add_(y).div_(totals[at][..., None])
    return out, top.add_(total.log_())


def _backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v with the weights recomputed, block by block, from the merged log-sum-exp."""
    grad = grad.flatten(0, 1).contiguous()
    G, H, W, E = v.shape
    inner = (widened(grad) * out).sum(-1)  # (G, H, W): what softmax subtracts from every dP
    grads = tuple(torch.zeros_like(t, dtype=lse.dtype, memory_format=torch.contiguous_format) for t in (q, k, v))
    for column in (True, False):
        if column and H == 1:
            continue
        tensors = (q, k, v, lse, grad, inner, *grads)
        qs, ks, vs, lses, gs, inners, dq, dk, dv = (t.transpose(1, 2) if column else t for t in tensors)
        L, M = lses.shape[1:3]
        for at in _blocks(G, L, M * max(M, E), _limit(v)):
            qb, kb, gb = _lines(qs, at), _lines(ks, at), _lines(gs, at)
            p = torch.bmm(qb, kb.transpose(1, 2))
            if column:
                p.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            p.sub_(_lines(lses, at)[..., None]).exp_()
            shape = lses[at].shape
            dv[at] += torch.bmm(p.transpose(1, 2), gb).view(*shape, -1)
            ds = torch.bmm(gb, _lines(vs, at).transpose(1, 2)).sub_(_lines(inners, at)[..., None]).mul_(p)
            dq[at] += torch.bmm(ds, kb).view(*shape, -1)
            dk[at] += torch.bmm(ds.transpose(1, 2), qb).view(*shape, -1)
    return tuple(g.to(t.dtype) for g, t in zip(grads, (q, k, v)))


class _LineBlocks(torch.autograd.Function):
    """Columns, then rows, some lines at a time; saves q, k, v, the output and its log-sum-exp: memory N (D + E)."""

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
    dtype = v.dtype
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)
        row = summed(q, k, v, normalization)
        column = summed(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3), normalization).transpose(2, 3)
        w, d = terms((q * k).sum(-1, keepdim=True), normalization)
        y = row + column - torch.cat([w * v, d], -1)
        return divided(y[..., :-1], y[..., -1:]).to(dtype)


PATHS = {"line_blocks": _line_blocks, "merged": _merged}  # tests and benchmarks go through each of them


def criss_cross(q: Tensor, k: Tensor, v: Tensor, *, normalization: RowNormalization = "softmax") -> Tensor:
    """Attention of every position to its row and column: :func:`criss_cross_reference` in O(N) memory.

    Logits and sums are float32 where the inputs are float16 or bfloat16. Under ``torch.compile`` and ``torch.export``
    the loop-free form is used, whose memory is N (H + W).

    >>> q, v = torch.zeros(1, 1, 2, 2, 1), torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2, 1)
    >>> criss_cross(q, q, v).flatten()  # each the mean of all but the position diagonally opposite
    tensor([1.0000, 1.3333, 1.6667, 2.0000])

    Args:
        q: Queries ``(B, h, H, W, D)``.
        k: Keys ``(B, h, H, W, D)``.
        v: Values ``(B, h, H, W, E)``.
        normalization: ``softmax`` over the cross, ``l1`` s / sum |s|, and ``sigmoid`` and ``none`` divided by its
            H + W - 1 positions.

    Shape: ``(B, h, H, W, E)``

    Raises:
        ValueError: Shapes that do not fit, an unknown normalisation.
    """
    check_normalization(normalization, why=WHY_NOT_DOUBLE)
    if q.dim() != 5 or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"want q, k (B, h, H, W, D) and v (B, h, H, W, E); got {q.shape=}, {k.shape=}, {v.shape=}")
    if normalization != "softmax":
        return _line_sums(q, k, v, normalization)
    plain = for_graphs() or has_tangent(q, k, v)
    return PATHS["merged" if plain else "line_blocks"](q, k, v)
