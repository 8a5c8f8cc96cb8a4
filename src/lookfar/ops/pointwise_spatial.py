"""Attention that each position predicts from itself, one logit per offset: y_j = sum_i softmax_i(L_ij) v_i.

    collect      L_ij = m(i - j) . a_j     where position j gathers from
    distribute   L_ij = m(j - i) . a_i     where position i gives to

m holds a vector for every offset within a mask; offsets outside it have logit 0, and so a weight like others. The
original computes all offsets of all positions, four times N^2 numbers, then selects; here some rows of targets are
paired with all sources at a time, and the products, recomputed for the gradient, are skewed into place: memory N (D +
W). On a CPU products for a softmax are those of one row of targets and some rows of sources.

Trap: the softmax runs over sources i in both directions.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops import _offset_tiles
from lookfar.ops._autograd import compiled_here, for_graphs, has_tangent, recomputed, traced
from lookfar.ops._blockwise import BUDGET, BUDGET_ELSEWHERE, merge, over_queries, whole
from lookfar.ops._checked import choice
from lookfar.ops._loops import Tiled
from lookfar.ops._precision import exp, logsumexp, widened, without_autocast

Direction = Literal["collect", "distribute"]
Normalization = Literal["softmax", "none"]


def _check(a: Tensor, m: Tensor, v: Tensor, direction: str, normalization: str) -> None:
    if a.dim() != 4 or m.dim() != 3 or m.shape[2] != a.shape[1] or v.shape[::2] != a.shape[::2]:
        raise ValueError(f"want a (B, D, H, W), m (rows, columns, D), v (B, E, H, W); got {a.shape=}, {m.shape=}, "
                         f"{v.shape=}")  # fmt: skip
    choice("direction", direction, get_args(Direction))
    choice("normalization", normalization, get_args(Normalization))


def _offsets(m: Tensor, H: int, W: int) -> Tensor:
    """The vectors of all offsets between positions of a map, ``(2H - 1, 2W - 1, D)``; zero outside the mask."""
    for axis, length in enumerate((H, W)):
        at = torch.arange(1 - length, length, device=m.device) + (m.shape[axis] - 1) // 2
        inside = (at >= 0) & (at < m.shape[axis])
        m = m.index_select(axis, at.clamp(0, m.shape[axis] - 1)) * inside.view(-1, *(1,) * (2 - axis)).to(m.dtype)
    return m


def _skewed(t: Tensor) -> Tensor:
    """``(..., n, 2n - 1) -> (..., n, n)``: out[p, q] = t[p, q - p + n - 1]."""
    n = t.shape[-2]
    flat = F.pad(t, (0, 1)).flatten(-2)
    return flat[..., n - 1 : n - 1 + n * (2 * n - 1)].unflatten(-1, (n, 2 * n - 1))[..., :n]


def _all_logits(a: Tensor, offsets: Tensor, direction: str) -> Tensor:
    """``(B, N targets, N sources)``, through the products with all offsets."""
    t = torch.einsum("bdyx,pod->byxpo", a, offsets)
    t = _skewed(t.transpose(2, 3))  # (B, y, p, x, x')
    t = _skewed(t.permute(0, 3, 4, 1, 2))  # (B, x, x', y, y')
    order = (0, 3, 1, 4, 2) if direction == "collect" else (0, 4, 2, 3, 1)
    return t.permute(order).flatten(3, 4).flatten(1, 2)


def _part(a: Tensor, offsets: Tensor, v: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
    """A row of targets and some rows of sources: ``(B, W, E)`` and the log-sum-exp ``(B, W, 1)``.

    ``a`` is the row ``(B, D, W)`` that collects or the rows ``(B, D, k, W)`` that distribute; ``offsets`` (k, 2W - 1,
    D) are of the distances between that row and each of the sources' rows, ``v`` is (B, E, k, W).
    """
    if a.dim() == 3:
        logits = _skewed(torch.einsum("bdx,kod->bkxo", a, offsets)).transpose(1, 2)  # (B, W, k, W')
    else:
        logits = _skewed(torch.einsum("bdkx,kod->bkxo", a, offsets)).permute(0, 3, 1, 2)
    logits, v = logits.flatten(2), v.flatten(2).transpose(1, 2)
    if not softmax:
        return logits @ v, logits[..., :1]
    lse = logsumexp(logits, -1)
    return exp(logits - lse) @ v, lse


def _row(a: Tensor, offsets: Tensor, v: Tensor, y: int, direction: str, normalization: str) -> Tensor:
    """The row ``y`` of targets, ``(B, W, E)``, as many rows of sources at a time as the budget lets.

    ``a`` is that row ``(B, D, W)`` where it collects, all rows ``(B, D, H, W)`` where they distribute.
    """
    B, _, H, W = v.shape
    collect, softmax = direction == "collect", normalization == "softmax"
    here = offsets[H - 1 - y : 2 * H - 1 - y] if collect else offsets[y : y + H].flip(0)
    rows = max(BUDGET.get(v.device.type, BUDGET_ELSEWHERE) // max(2 * B * W * W, 1), 1)
    parts = [
        recomputed(_part, a if collect else a[:, :, k : k + rows], here[k : k + rows], v[:, :, k : k + rows], softmax)
        for k in range(0, H, rows)
    ]
    if len(parts) == 1:
        return parts[0][0]
    return merge(parts) if softmax else torch.stack([y for y, _ in parts]).sum(0)


def _weights(logits: Tensor, normalization: str) -> Tensor:
    return logits.softmax(2) if normalization == "softmax" else logits


def pointwise_spatial_weights(
    a: Tensor,
    m: Tensor,
    *,
    direction: Direction,
    normalization: Normalization = "softmax",
    queries: Tensor | None = None,
) -> Tensor:
    """Weights of sources for the flat targets ``queries`` (Q,), all when None: ``(B, Q, N)``.

    >>> a, m = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0], [2.0], [3.0]]])  # one step left, here, one step right
    >>> pointwise_spatial_weights(a, m, direction="collect", normalization="none").tolist()
    [[[2.0, 3.0], [1.0, 2.0]]]
    """
    _check(a, m, a, direction, normalization)
    H, W = a.shape[2:]
    with without_autocast(a):
        a, offsets = widened(a), _offsets(widened(m), H, W)
        rows = []
        for j in range(H * W) if queries is None else queries.tolist():
            y, x = divmod(j, W)
            if direction == "collect":
                seen = offsets[H - 1 - y : 2 * H - 1 - y, W - 1 - x : 2 * W - 1 - x]
                rows.append(torch.einsum("yxd,bd->byx", seen, a[:, :, y, x]))
            else:
                rows.append(torch.einsum("yxd,bdyx->byx", offsets[y : y + H, x : x + W].flip(0, 1), a))
        return _weights(torch.stack(rows, 1).flatten(2), normalization)


def pointwise_spatial_reference(
    a: Tensor, m: Tensor, v: Tensor, *, direction: Direction, normalization: Normalization = "softmax"
) -> Tensor:
    """The definition: every logit by its offset, N x N of them.

    >>> a, m = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0], [2.0], [3.0]]])  # one step left, here, one step right
    >>> v = torch.tensor([[[[1.0, 10.0]]]])
    >>> pointwise_spatial_reference(a, m, v, direction="collect", normalization="none").tolist()  # 2 + 30 and 1 + 20
    [[[[32.0, 21.0]]]]
    """
    _check(a, m, v, direction, normalization)
    (H, W), (mh, mw) = a.shape[2:], m.shape[:2]
    with without_autocast(a):
        a32, m32, v32 = widened(a).flatten(2), widened(m), widened(v).flatten(2)
        logits = a32.new_zeros(a.shape[0], H * W, H * W)  # (B, i, j)
        for i in range(H * W):
            for j in range(H * W):
                source, target = divmod(i, W), divmod(j, W)
                to, at = (source, target) if direction == "collect" else (target, source)
                row, column = to[0] - at[0] + (mh - 1) // 2, to[1] - at[1] + (mw - 1) // 2
                if 0 <= row < mh and 0 <= column < mw:
                    logits[:, i, j] = a32[:, :, at[0] * W + at[1]] @ m32[row, column]
        weights = logits.softmax(1) if normalization == "softmax" else logits
        return (v32 @ weights).unflatten(2, (H, W)).to(v.dtype)


def pointwise_spatial(
    a: Tensor, m: Tensor, v: Tensor, *, direction: Direction, normalization: Normalization = "softmax"
) -> Tensor:
    """:func:`pointwise_spatial_reference` with blocks of logits, recomputed in the backward pass.

    >>> a, m = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0], [2.0], [3.0]]])  # one step left, here, one step right
    >>> v = torch.tensor([[[[1.0, 10.0]]]])
    >>> pointwise_spatial(a, m, v, direction="collect", normalization="none").tolist()  # 2 + 30 and 1 + 20
    [[[[32.0, 21.0]]]]

    Args:
        a: Features that the logits are predicted from.
        m: A vector for every offset of the mask, whose entry ((rows - 1) // 2, (columns - 1) // 2) is offset 0.
        v: Values.
        direction: See the top of this module.
        normalization: ``softmax`` over sources, or ``none``: the logits are the weights.

    Shape: ``(B, D, H, W), (rows, columns, D), (B, E, H, W) -> (B, E, H, W)``

    Raises:
        ValueError: Shapes that do not fit, an unknown choice.
    """
    _check(a, m, v, direction, normalization)
    B, _, H, W = a.shape
    with without_autocast(a):
        a, offsets, values = widened(a), _offsets(widened(m), H, W), widened(v)
        exported = traced() and not compiled_here()
        if exported or BUDGET.get(a.device.type, BUDGET_ELSEWHERE) >= 4 * B * (H * W) ** 2:
            weights = _weights(_all_logits(a, offsets, direction), normalization)
            y = (weights @ values.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (H, W))
        elif normalization == "softmax" and _tiled(a, offsets, values):
            y = _TILES((a, offsets, values), [int(direction == "collect")])
        else:
            y = _in_blocks(a, offsets, values, direction, normalization)
    return y.to(v.dtype)


def _tiled(*given: Tensor) -> bool:
    a = given[0]
    if not a.is_cpu or a.dtype not in (torch.float32, torch.float64):
        return False
    return compiled_here() or not (for_graphs() or has_tangent(*given))


def _in_blocks(a: Tensor, offsets: Tensor, v: Tensor, direction: str, normalization: str = "softmax") -> Tensor:
    _, D, H, W = a.shape
    at = torch.arange(H)[:, None]
    numbers = -(-2 * W * H * W // max(D, 1))  # logits of a row of targets, per channel of a
    return over_queries(_some, (a, at), a, offsets, v, keys=numbers, words=[direction, normalization])


@whole(lambda target, at, a, offsets, v: v.shape)
def _some(
    target: Tensor, at: Tensor, a: Tensor, offsets: Tensor, v: Tensor, direction: str, normalization: str
) -> Tensor:
    """The rows ``at`` of targets, ``(B, E, rows, W)``."""
    found = [
        _row(target[:, :, n] if direction == "collect" else a, offsets, v, y, direction, normalization)
        for n, y in enumerate(map(int, at.flatten()))  # tolist fails under torch.func on torch 2.8
    ]
    return torch.stack(found, 1).permute(0, 3, 1, 2)


_TILES = Tiled(
    "pointwise_spatial",
    _offset_tiles.forward,
    _offset_tiles.backward,
    lambda given, sizes: _in_blocks(*given, direction="collect" if sizes[0] else "distribute"),
    lambda given, _: (given[2].shape, (given[0].shape[0], *given[0].shape[2:])),
)
