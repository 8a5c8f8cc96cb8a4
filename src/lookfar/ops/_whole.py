"""The tiles of :mod:`lookfar.ops._tiles` as one operation, which compiled programs call as it is.

Traced, a loop over tiles would be unrolled for one size. Exported programs do without: they are loaded where lookfar
is not installed.
"""

from typing import Any

import torch
from torch import Tensor

from lookfar.ops import _tiles
from lookfar.ops._autograd import needs_graph
from lookfar.ops._precision import widened


@torch.library.custom_op(
    "lookfar::tiles", mutates_args=(), schema="(Tensor q, Tensor? k, Tensor v, float scale) -> (Tensor, Tensor)"
)
def _attend(q: Tensor, k: Tensor | None, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``, and the log-sum-exps ``(B, h, N, 1)``.

    Without k the queries are the keys.
    """
    if _without_numbers(q, k, v):
        y, lse = _empty(q, k, v, scale)
        return y.zero_(), lse.zero_()
    return _tiles.forward(q, k, v, scale)


@_attend.register_fake
def _empty(q: Tensor, k: Tensor | None, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return v.new_empty((*q.shape[:3], v.shape[3])), widened(q.new_empty((*q.shape[:3], 1)))


def _without_numbers(*given: Tensor | None) -> bool:
    return any(t is not None and not t.numel() for t in given)


@torch.library.custom_op(
    "lookfar::tiles_backward",
    mutates_args=(),
    schema="(Tensor q, Tensor? k, Tensor v, Tensor y, Tensor lse, Tensor dy, float scale, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def _pull(
    q: Tensor, k: Tensor | None, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v; nothing, ``(0,)``, for those that are not wanted."""
    if _without_numbers(q, k, v):
        return tuple(t.zero_() for t in _empty_gradients(q, k, v, wanted))
    found = _tiles.backward(q, k, v, y, lse, dy, scale, tuple(wanted))
    return tuple(g if w and g is not None else q.new_empty(0) for g, w in zip(found, wanted))


@_pull.register_fake
def _empty_gradients(q: Tensor, k: Tensor | None, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    like = [t if t is not None and wanted else q.new_empty(0) for t, wanted in zip((q, k, v), others[-1])]
    return tuple(t.new_empty(t.shape) for t in like)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.scale = inputs[3]


def _backward_of(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, k, v, y, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if needs_graph():
        return *_tiles.twice(q, k, v, dy, ctx.scale, wanted), None
    found = _pull(q, k, v, y, lse, dy, ctx.scale, list(wanted))
    return *(g if w else None for g, w in zip(found, wanted)), None


_attend.register_autograd(_backward_of, setup_context=_keep)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention by tiles, ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``."""
    y = _attend(q, None if k is q else k, v, scale)[0]
    return y.clone() if y.requires_grad else y  # the caller may change it in place
