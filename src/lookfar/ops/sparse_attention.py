"""Attention to near keys, to keys at distances that are multiples of r, or to both.

o_i = sum_{j seen by i} softmax_j(scale * q_i . k_j) v_j, where the keys seen are

    local           |dy|, |dx| <= k // 2 inside the map
    local_clamped   a k x k window that is pushed inward at the border
    atrous          r divides dy and dx, over the whole map
    sparse          local or atrous; a key in both counts once

Exact and without masked N x N weights: atrous is full attention inside each of the r^2 phases, local a loop over the
window's cells, sparse one softmax over the atrous part's log-sum-exp and the cells that are not in it. The other
normalisations are sums over keys and divisors, which add up.

Traps: ``atrous`` is not a dilated window; the published Keras code of ``sparse`` counts keys twice and has no near
ones.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar._options import Odd
from lookfar.ops._autograd import compiled_for, for_graphs
from lookfar.ops._blockwise import attention_with_lse
from lookfar.ops._checked import check, choice, positive
from lookfar.ops._definition import attended
from lookfar.ops._normalization import RowNormalization, check_normalization, divided, normalised, summed, terms
from lookfar.ops._precision import logsumexp, softmax, widened, without_autocast
from lookfar.ops._window import Window, similarities, size_of, weighted_sum
from lookfar.ops.embedded_gaussian import embedded_gaussian
from lookfar.ops.neighborhood import neighborhood

Pattern = Literal["local", "local_clamped", "atrous", "sparse"]
Pair = tuple[int, int]

WHY_NOT_DOUBLE = "it shares a key among all queries, of which only some see it"


@dataclass(frozen=True)
class Reach:
    """The keywords of :func:`sparse_attention`, checked: which keys a query sees and how they are weighed."""

    pattern: Pattern
    kernel_size: int = 7
    dilation: int = 4
    scale: float = 1.0
    normalization: RowNormalization = "softmax"

    def __post_init__(self) -> None:
        check_normalization(self.normalization, why=WHY_NOT_DOUBLE)
        choice("pattern", self.pattern, get_args(Pattern))
        if self.pattern != "atrous":
            check("kernel_size", self.kernel_size, Odd)
        positive("dilation", self.dilation)


def sparse_attention_weights(q: Tensor, k: Tensor, *, queries: Tensor | None = None, **options: Any) -> Tensor:
    """``(B, h, D, H, W), (B, h, D, H, W) -> (B, h, Q, N)``: rows over all keys, exactly zero for keys not seen.

    ``queries`` are flat positions ``(Q,)``, all when None; other keywords as in :func:`sparse_attention`.

    >>> q = torch.zeros(1, 1, 1, 1, 4)
    >>> sparse_attention_weights(q, q, queries=torch.tensor([0]), pattern="atrous", dilation=2).tolist()
    [[[[0.5, 0.0, 0.5, 0.0]]]]
    """
    reach = Reach(**options)
    _check(q, k, k)
    H, W = q.shape[-2:]
    j = torch.arange(H * W, device=q.device)
    i = j if queries is None else j[queries]
    y, x, row, column = i[:, None] // W, i[:, None] % W, j // W, j % W
    top, left = y - reach.kernel_size // 2, x - reach.kernel_size // 2
    if reach.pattern == "local_clamped":
        top, left = (t.clamp(max=n - reach.kernel_size).clamp(min=0) for t, n in ((top, H), (left, W)))
    local = (row >= top) & (row < top + reach.kernel_size) & (column >= left) & (column < left + reach.kernel_size)
    atrous = ((row - y) % reach.dilation == 0) & ((column - x) % reach.dilation == 0)
    seen = {"atrous": atrous, "sparse": local | atrous}.get(reach.pattern, local)
    with without_autocast(q):
        q, k = (widened(t).flatten(3).transpose(2, 3) for t in (q, k))
        return normalised(reach.scale * q[:, :, i] @ k.transpose(2, 3), reach.normalization, seen=seen)


def sparse_attention_reference(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The definition, position by position: which keys it sees, and their average.

    >>> q, v = torch.zeros(1, 1, 1, 1, 4), torch.arange(4.0).view(1, 1, 1, 1, 4)
    >>> sparse_attention_reference(q, q, v, pattern="atrous", dilation=2).flatten().tolist()  # every second value
    [1.0, 2.0, 1.0, 2.0]
    """
    reach = Reach(**options)
    (H, W), size, r = q.shape[-2:], reach.kernel_size, reach.kernel_size // 2
    places = list(itertools.product(range(H), range(W)))
    with without_autocast(q):
        q, k, values = reach.scale * widened(q), widened(k), widened(v)
        found = []
        for y, x in places:
            top, left = y - r, x - r
            if reach.pattern == "local_clamped":
                top, left = max(min(top, H - size), 0), max(min(left, W - size), 0)
            window = {(a, b) for a, b in places if 0 <= a - top < size and 0 <= b - left < size}
            phase = {(a, b) for a, b in places if (a - y) % reach.dilation == (b - x) % reach.dilation == 0}
            seen = {"atrous": phase, "sparse": window | phase}.get(reach.pattern, window)
            found.append(attended(q[..., y, x], k, values, sorted(seen), reach.normalization))
        return torch.stack(found, 3).unflatten(3, (H, W)).to(v.dtype)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern,
    kernel_size: int = 7,
    dilation: int = 4,
    scale: float = 1.0,
    normalization: RowNormalization = "softmax",
) -> Tensor:
    """:func:`sparse_attention_reference` without its N x N weights.

    >>> q, v = torch.zeros(1, 1, 1, 1, 4), torch.arange(4.0).view(1, 1, 1, 1, 4)
    >>> sparse_attention(q, q, v, pattern="atrous", dilation=2).flatten().tolist()  # every second value
    [1.0, 2.0, 1.0, 2.0]

    Args:
        q: Queries ``(B, h, D, H, W)``.
        k: Keys ``(B, h, D, H, W)``.
        v: Values ``(B, h, E, H, W)``.
        pattern: Which keys a query sees: ``local``, ``local_clamped``, ``atrous`` or ``sparse``; see the module's top.
        kernel_size: Odd extent of the near window; unused by ``atrous``.
        dilation: Distance r of the far keys; unused by the local patterns.
        scale: Factor on the similarities.
        normalization: ``softmax`` over the keys seen, ``l1`` s / sum |s|, and ``sigmoid`` and ``none`` divided by
            their number.

    Shape: ``(B, h, E, H, W)``

    Raises:
        ValueError: Shapes that do not fit, an unknown pattern or normalisation, an even kernel, a dilation below 1.
    """
    Reach(pattern, kernel_size, dilation, scale, normalization)
    _check(q, k, v)
    if pattern in ("local", "local_clamped"):
        border = "mask" if pattern == "local" else "clamped"
        return neighborhood(q, k, v, kernel_size=kernel_size, border=border, scale=scale, normalization=normalization)
    r = kernel_size // 2
    offsets = [(y, x) for y in range(-r, r + 1) for x in range(-r, r + 1)]
    far = torch.tensor([y % dilation == 0 and x % dilation == 0 for y, x in offsets], device=q.device)
    near = any(y % dilation or x % dilation for y, x in offsets)
    near = near and pattern == "sparse"
    if normalization == "softmax" and not near:
        return _atrous(q, k, v, dilation, scale)[0]
    with without_autocast(q):
        q, k, values = widened(q), widened(k), widened(v)
        y, divisor = _atrous(q, k, values, dilation, scale, normalization, with_divisor=True)
        assert divisor is not None
        if near:
            window = Window((kernel_size, kernel_size))
            seen = window.inside(*size_of(v), q.device) & ~far[:, None, None]
            logits = scale * similarities(q, k, window)
            if normalization == "softmax":
                # the far keys enter as one key: their average, with the logarithm of their denominator as logit
                weights = softmax(torch.cat([divisor, logits.masked_fill(~seen, -torch.inf)], 2), 2)
                y, weights = weights[:, :, :1] * y, weights[:, :, 1:]
            else:
                weights, parts = (torch.where(seen, t, 0) for t in terms(logits, normalization))
                divisor = divisor + parts.sum(2, keepdim=True)
            y = y + weighted_sum(weights, values, window)
    return (y if normalization == "softmax" else divided(y, divisor)).to(v.dtype)


def _atrous(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: int,
    scale: float,
    normalization: RowNormalization = "softmax",
    *,
    with_divisor: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention inside each phase, ``(B, h, E, H, W)``, and its divisor ``(B, h, 1, H, W)`` where requested.

    For softmax, averages and the logarithms of their denominators; for the others, sums still to be divided.
    """
    H, W = q.shape[-2:]
    if for_graphs() and not compiled_for(H, W):
        return _padded_atrous(q, k, v, r, scale, normalization)
    groups = [
        (W * rows[:, None, :, None] + columns[:, None, :]).flatten(2).flatten(0, 1)  # (phases, positions of one)
        for rows in _phases(H, r, q.device)
        for columns in _phases(W, r, q.device)
    ]
    found = []
    for at in groups:
        tokens = (t.flatten(3)[..., at].permute(0, 3, 1, 4, 2).flatten(0, 1).contiguous() for t in (q, k, v))
        queries, keys, values = tokens
        if normalization != "softmax":
            parts = summed(queries, keys, values, normalization, scale=scale)
        elif with_divisor:
            parts = attention_with_lse(queries, keys, values, scale=scale)
        else:
            parts = embedded_gaussian(queries, keys, values, scale=scale)  # (B phases, h, P, E)
        found.append(parts.unflatten(0, (-1, len(at)) if len(parts) else (0, len(at))).transpose(1, 2).flatten(2, 3))
    back = torch.cat([at.flatten() for at in groups]).argsort()
    y = torch.cat(found, 2)[:, :, back].transpose(2, 3).unflatten(3, (H, W))
    return (y[:, :, :-1], y[:, :, -1:]) if with_divisor else (y, None)


def _phases(n: int, r: int, device: torch.device) -> list[Tensor]:
    """Positions ``(phases, count)`` of equal remainder: those with one more position, then the others."""
    count, longer = n // r, n % r
    groups = [(0, longer, count + 1), (longer, r, count)]
    return [
        torch.arange(start, stop, device=device)[:, None] + r * torch.arange(length, device=device)
        for start, stop, length in groups
        if start < stop and length
    ]


def _padded_atrous(
    q: Tensor, k: Tensor, v: Tensor, r: int, scale: float, normalization: RowNormalization
) -> tuple[Tensor, Tensor]:
    """The same with phases of one size, padded with masked keys: for graphs with dynamic sizes. Holds N^2 / r^2."""
    B, h, _, H, W = q.shape
    a, b = H // r + 2, W // r + 2  # more than needed: a graph traced where 1 is enough would be specialised to 1

    def tokens(t: Tensor) -> Tensor:
        t = F.pad(widened(t), (0, r * b - W, 0, r * a - H)).reshape(B, h, t.shape[2], a, r, b, r)
        return t.permute(0, 4, 6, 1, 3, 5, 2).reshape(B, r * r, h, a * b, t.shape[2])

    rows, columns = (torch.arange(r * n, device=q.device).reshape(n, r).T for n in (a, b))
    there = ((rows < H)[:, None, :, None] & (columns < W)[:, None, :]).reshape(r * r, 1, 1, a * b)
    with without_autocast(q):
        logits = scale * tokens(q) @ tokens(k).transpose(-2, -1)
        if normalization == "softmax":
            logits = logits.masked_fill(~there, -1e30)  # finite: a phase of a small map may have no key at all
            weights, divisor = softmax(logits), logsumexp(logits, -1)
        else:
            weights, parts = (torch.where(there, t, 0) for t in terms(logits, normalization))
            divisor = parts.sum(-1, keepdim=True)
        y = torch.cat([weights @ tokens(v), divisor], -1)
        y = y.reshape(B, r, r, h, a, b, -1).permute(0, 3, 6, 4, 1, 5, 2).reshape(B, h, -1, a * r, b * r)[..., :H, :W]
    return y[:, :, :-1].to(v.dtype), y[:, :, -1:]


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 5 or q.shape != k.shape or q.shape[:2] != v.shape[:2] or q.shape[3:] != v.shape[3:]:
        raise ValueError(f"want q, k (B, h, D, H, W) and v (B, h, E, H, W); got {q.shape=}, {k.shape=}, {v.shape=}")
