"""A 1x1 convolution whose result is wanted as tokens: one product of matrices, which reads the map as it lies.

Convolved first, a map is written channel by channel and then turned around, and on a CPU oneDNN turns it once more.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lookfar.ops._autograd import has_tangent, needs_graph, traced, under_transform
from lookfar.ops._layout import split_heads, to_tokens

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolved_tokens(layer: nn.Module | None, x: Tensor, heads: int = 1) -> Tensor:
    """``to_tokens(layer(x), heads)``: ``(B, C, *S) -> (B, h, N, D/h)``; of x itself where there is no layer."""
    if layer is None:
        return to_tokens(x, heads)
    if traced() or not _is_product(layer, x) or under_transform() or _has_tangent(layer, x):
        return to_tokens(layer(x), heads)
    apply: Any = _Tokens.apply if torch.is_grad_enabled() else _product
    y = apply(x.flatten(2), layer.weight.flatten(1), layer.bias)  # type: ignore[operator]
    return split_heads(y, heads)


def _is_product(layer: Any, x: Tensor) -> bool:
    """Whether running a layer does nothing but multiply by its weight, on a CPU and in full precision.

    Layers with hooks, of other classes or parametrized must be called.
    """
    return (
        type(layer) in _CONVS
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == layer.weight.dtype
        and x.dim() == layer.weight.dim()
        and x.shape[1] == layer.in_channels
        and x.numel() > 0
        and layer.groups == 1
        and {*layer.kernel_size, *layer.stride} == {1}
        and layer.padding in ((0,), (0, 0), (0, 0, 0))
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and not torch.is_autocast_enabled("cpu")
    )


def _has_tangent(layer: Any, x: Tensor) -> bool:
    return has_tangent(x, layer.weight, *(() if layer.bias is None else (layer.bias,)))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x^T W^T + b``: ``(B, C, N), (D, C), (D,) -> (B, N, D)``."""
    many = weight.T.expand(x.shape[0], -1, -1)
    x = x.transpose(1, 2)
    return torch.bmm(x, many) if bias is None else torch.baddbmm(bias, x, many)


class _Tokens(torch.autograd.Function):
    """:func:`_product`; the gradient of x lies in memory as x does.

    Its backward pass is made of ordinary operations: second derivatives are theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (dy,), wanted = grads, ctx.needs_input_grad
        dx = dweight = None
        if wanted[0]:
            many = weight.expand(len(x), -1, -1)
            last = x.stride(1) == 1  # channels_last
            dx = (dy @ many).transpose(1, 2) if last else many.transpose(1, 2) @ dy.transpose(1, 2)
        if wanted[1] and needs_graph():
            dweight = (dy.transpose(1, 2) @ x.transpose(1, 2)).sum(0)
        elif wanted[1]:  # a product an image would take the memory of as many weights
            dweight = dy[0].T @ x[0].T
            for one, of in zip(dy[1:], x[1:]):
                dweight.addmm_(one.T, of.T)
        return dx, dweight, dy.sum((0, 1)) if wanted[2] else None
