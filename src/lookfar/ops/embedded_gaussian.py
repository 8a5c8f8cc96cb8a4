"""Softmax attention without its N x M weights: y_i = sum_j softmax_j(scale * q_i . k_j) v_j.

Traps: on CPU ``scaled_dot_product_attention`` builds the N x M weights in silence when the widths of value and query
differ (586 MB against 30 MB at N = 8192, D = 32, E = 256) or when the last axis is not contiguous; on CUDA it does so
for float64 and, in float32, for widths that are no multiple of 4. Its fused kernels have no second derivative.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._blockwise import over_queries
from lookfar.ops._precision import widened, without_autocast


def embedded_gaussian_weights(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """``(B, h, Q, D), (B, h, M, D) -> (B, h, Q, M)``; every row sums to one."""
    with without_autocast(q):
        # half-precision logits of unscaled products overflow at 65504
        q, k = widened(q), widened(k)
        return (scale * q @ k.transpose(-2, -1)).softmax(-1)


def embedded_gaussian_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """The definition: y_i = sum_j softmax_j(scale * q_i . k_j) v_j, N x M weights and all."""
    with without_autocast(q):
        return (embedded_gaussian_weights(q, k, scale=scale) @ widened(v)).to(v.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    # fused kernels want D == E, on CUDA in multiples of 8; zero channels change no q . k
    D, E = q.shape[-1], v.shape[-1]
    width = max(D, E)
    if q.is_cuda:
        width = -(-width // 8) * 8
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t.contiguous() for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y[..., :E] if width > E else y


class _Fused(torch.autograd.Function):
    """The fused kernel, with the plain form's graph in place of its gradient where a second derivative is asked for."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        ctx.inner = _Fused.graph(ctx, q, k, v)
        return ctx.inner[0].detach()

    @staticmethod
    def graph(ctx: Any, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            q, k, v = (t.detach().requires_grad_(wanted) for t, wanted in zip(inputs, ctx.needs_input_grad))
            return _sdpa(q, k, v, ctx.scale), [q, k, v]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        twice = torch.is_grad_enabled()
        if twice:
            inputs = [t.view_as(t) for t in ctx.saved_tensors]  # three tensors, even where q is k
            y = embedded_gaussian_reference(*inputs, scale=ctx.scale)
        else:
            # the graph is used once and let go, so that its memory goes with it; a second pass makes another
            y, inputs = ctx.inner or _Fused.graph(ctx, *ctx.saved_tensors)
            ctx.inner = None
        sources = [t for t, w in zip(inputs, wanted) if w]
        found = iter(torch.autograd.grad(y, sources, grads[0].to(y.dtype), create_graph=twice))
        return *(next(found) if w else None for w in wanted), None


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    plain = (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()  # they refuse a Function of this form
        or not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))
    )
    return _sdpa(q, k, v, scale) if plain else _Fused.apply(q, k, v, scale)  # type: ignore[return-value]


def _blockwise(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return over_queries(lambda q, k, v: embedded_gaussian_reference(q, k, v, scale=scale), q, k, v, keys=k.shape[-2])


PATHS = {"fused": _fused, "blockwise": _blockwise}  # tests go through each


def embedded_gaussian(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """Softmax attention of N queries to M keys: :func:`embedded_gaussian_reference` without its N x M weights.

    Fused kernels where there are any, blocks of queries elsewhere. Second derivatives work and do hold the weights.

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``

    Raises:
        ValueError: Widths of q and k, or numbers of keys and values, differ.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"want q (B, h, N, D), k (B, h, M, D), v (B, h, M, E); got {q.shape=}, {k.shape=}, {v.shape=}")
    fused = not (q.is_cuda and q.dtype == torch.float64)  # CUDA has no fused kernel for float64
    return PATHS["fused" if fused else "blockwise"](q, k, v, scale)
