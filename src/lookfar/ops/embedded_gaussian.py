"""Softmax attention without its N x M weights: y_i = sum_j softmax_j(scale * q_i . k_j) v_j.

Traps: on CPU ``scaled_dot_product_attention`` silently builds the N x M weights when the widths of value and query
differ (586 MB against 30 MB at N = 8192, D = 32, E = 256) or when the last axis is not contiguous; on CUDA it does so
for float64 and, in float32, for widths that are not multiples of 4. Its fused kernels have no second derivative. With
fewer keys than the processor's vectors have lanes the one for CPUs gives 0 where all logits of a query are NaN.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops import _tiles, _whole
from lookfar.ops._autograd import compiled_here, gradients, has_tangent, needs_graph, traced, under_transform
from lookfar.ops._blockwise import over_queries
from lookfar.ops._layout import mixed
from lookfar.ops._precision import factor, softmax, wide, widened, without_autocast

_LANES = 16  # of the widest vectors, in float32


def embedded_gaussian_weights(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """``(B, h, Q, D), (B, h, M, D) -> (B, h, Q, M)``; every row sums to one.

    >>> embedded_gaussian_weights(torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]]).log())
    tensor([[[[0.7500, 0.2500]]]])
    """
    with without_autocast(q):
        # half-precision logits of unscaled products overflow at 65504
        q, k = widened(q), widened(k)
        return (scale * q @ k.transpose(-2, -1)).softmax(-1)


def embedded_gaussian_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """The definition: y_i = sum_j softmax_j(scale * q_i . k_j) v_j, with all N x M weights.

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]]).log(), torch.tensor([[[[1.0], [0.0]]]])
    >>> embedded_gaussian_reference(q, k, v)
    tensor([[[[0.7500]]]])
    """
    with without_autocast(q):
        return (embedded_gaussian_weights(q, k, scale=scale) @ widened(v)).to(v.dtype)


def _direct(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition, without a copy of scaled queries, its output laid in memory as the values are."""
    with without_autocast(q):
        weights = widened(q) @ widened(k).transpose(-2, -1)
        weights = softmax(weights if scale == 1 else weights.mul_(scale))  # the logits are let go
        values = factor(v)
        return mixed(weights.to(values.dtype), values).to(v.dtype)


def _padded(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Padded to one width for fused kernels, on CUDA to a multiple of 8; zero channels leave q . k unchanged."""
    width = max(q.shape[-1], v.shape[-1])
    width = -(-width // 8) * 8 if q.is_cuda else width
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t.contiguous() for t in (q, k, v))
    return q, k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    E = v.shape[-1]
    q, k, v = _padded(q, k, v)
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y[..., :E] if y.shape[-1] > E else y


class _Before(torch.autograd.Function):
    """Passes q, k, v on to the fused kernel, beside a placeholder for the kernel's output.

    The fused kernels have no second derivative. A backward pass that is itself differentiated therefore bypasses
    them: :class:`_After` sends the output's gradient through the placeholder, and the plain form gives the gradients
    here. All tensors are saved by ``save_for_backward``, where hooks such as activation checkpointing see them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return q.view_as(q), k.view_as(k), v.view_as(v), q.new_empty(()).expand_as(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        around = grads[3]
        if around is None:
            return *grads[:3], None
        f = functools.partial(embedded_gaussian_reference, scale=ctx.scale)
        return *gradients(f, ctx.saved_tensors, ctx.needs_input_grad[:3], around), None


class _After(torch.autograd.Function):
    """A copy of the fused kernel's output: the kernel saves its own, which must not be modified in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, placeholder: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, grads[0]) if needs_graph() else (grads[0], None)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    if traced():
        return _sdpa(q, k, v, scale)
    swallows = q.is_cpu and k.shape[-2] < _LANES
    if swallows or under_transform() or has_tangent(q, k, v):
        return embedded_gaussian_reference(q, k, v, scale=scale)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (q, k, v)):
        return _sdpa(q, k, v, scale)
    # three distinct tensors, even where q is k
    *inputs, placeholder = _Before.apply(*_padded(q.view_as(q), k.view_as(k), v.view_as(v)), scale)  # type: ignore[misc]
    y, E = F.scaled_dot_product_attention(*inputs, scale=scale), v.shape[-1]
    return _After.apply(y[..., :E], placeholder[..., :E])  # type: ignore[return-value]


class _Tiled(torch.autograd.Function):
    """:mod:`lookfar.ops._tiles` as one operation; a backward pass that is itself differentiated is the plain one's.

    Without keys the queries are the keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, v: Tensor, scale: float) -> Tensor:
        y, lse = _tiles.forward(q, k, v, scale)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.scale = scale
        return y.clone()  # the caller may change it in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, y, lse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if needs_graph():
            return *_tiles.twice(q, k, v, grads[0], ctx.scale, wanted), None
        return *_tiles.backward(q, k, v, y, lse, grads[0], ctx.scale, wanted), None


def _tiled(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    if traced():
        return _whole.attend(q, k, v, scale) if compiled_here() else _sdpa(q, k, v, scale)
    if under_transform() or has_tangent(q, k, v) or not q.numel() or not k.numel() or not v.numel():
        return embedded_gaussian_reference(q, k, v, scale=scale)
    keys = None if k is q else k
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _Tiled.apply(q, keys, v, scale)  # type: ignore[return-value]
    return _tiles.forward(q, keys, v, scale)[0]


def _tiles_are_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Where the fused kernel, which fills up the narrower of queries and values, takes longer: as measured."""
    if not _tiles.takes(q):
        return False
    if q.dtype != v.dtype:  # which the fused kernel does not take
        return True
    D, E = q.shape[-1], v.shape[-1]
    return (q is k and max(D, E) >= 64) or 1.85 * max(D, E) > D + E + 8


def _blockwise(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return over_queries(lambda q, k, v: embedded_gaussian_reference(q, k, v, scale=scale), q, k, v, keys=k.shape[-2])


PATHS = {"direct": _direct, "fused": _fused, "tiles": _tiled, "blockwise": _blockwise}  # tests go through each


def embedded_gaussian(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """Softmax attention of N queries to M keys: :func:`embedded_gaussian_reference` without its N x M weights.

    Fused kernels where there are any, blocks of queries elsewhere, and on a CPU tiles of queries and keys where widths
    differ or q and k are one tensor, whose logits are symmetric: half of them are enough. Second derivatives work, but
    hold the weights.

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.0], [1.0]]]]).log(), torch.tensor([[[[1.0], [0.0]]]])
    >>> embedded_gaussian(q, k, v)
    tensor([[[[0.7500]]]])

    Either queries and keys or values may be float32 where the others are in half precision.

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``

    Raises:
        ValueError: Widths of q and k, or numbers of keys and values, differ.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"want q (B, h, N, D), k (B, h, M, D), v (B, h, M, E); got {q.shape=}, {k.shape=}, {v.shape=}")
    if q.dtype != v.dtype:
        q, k = widened(q), widened(k)
        if wide(v) != v.dtype and (traced() or not _tiles.takes(v)):
            return embedded_gaussian(q, k, widened(v), scale=scale).to(v.dtype)
    if q.is_cuda and q.dtype == torch.float64:  # CUDA has no fused kernel for it
        return PATHS["blockwise"](q, k, v, scale)
    if _tiles.few_weights(v, *q.shape[:-1], k.shape[-2]):
        return PATHS["direct"](q, k, v, scale)
    return PATHS["tiles" if _tiles_are_faster(q, k, v) else "fused"](q, k, v, scale)
