"""The tiles of :mod:`lookfar.ops._tiles` as one operation, which compiled programs call as it is.

Traced, a loop over tiles would be unrolled for one size. Exported programs do without: they are loaded where lookfar
is not installed.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from lookfar.ops import _tiles
from lookfar.ops._autograd import gradients, needs_graph


@torch.library.custom_op(
    "lookfar::tiles", mutates_args=(), schema="(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)"
)
def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``, and the log-sum-exps ``(B, h, N, 1)``."""
    if not q.numel() or not k.numel() or not v.numel():
        y, lse = _empty(q, k, v, scale)
        return y.zero_(), lse.zero_()
    y, lse = _tiles.forward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale)
    return y.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2])


@_attend.register_fake
def _empty(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty((*q.shape[:3], 1))


@torch.library.custom_op(
    "lookfar::tiles_backward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, Tensor dy, float scale, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def _pull(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, scale: float, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v; nothing, ``(0,)``, for those that are not wanted."""
    given = (q, k, v, y, lse, dy)
    if not q.numel() or not k.numel() or not v.numel():
        return tuple(t.zero_() for t in _empty_gradients(*given, scale, wanted))
    flat: Any = [t.flatten(0, 1) for t in given]
    found = _tiles.backward(*flat, scale, tuple(wanted))
    return tuple(t.new_empty(0) if g is None else g.reshape(t.shape).contiguous() for g, t in zip(found, (q, k, v)))


@_pull.register_fake
def _empty_gradients(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape if w else (0,)) for t, w in zip((q, k, v), others[-1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.scale = inputs[3]


def _backward_of(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, k, v, y, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if needs_graph():
        return *gradients(functools.partial(_definition, ctx.scale), (q, k, v), wanted, dy), None
    found = _pull(q, k, v, y, lse, dy, ctx.scale, list(wanted))
    return *(g if w else None for g, w in zip(found, wanted)), None


def _definition(scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scale * q @ k.transpose(-2, -1)).softmax(-1) @ v


_attend.register_autograd(_backward_of, setup_context=_keep)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention by tiles, ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``."""
    y = _attend(q, k, v, scale)[0]
    return y.clone() if y.requires_grad else y  # the caller may change it in place
