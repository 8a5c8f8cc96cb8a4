"""A 1x1 convolution whose result is wanted as tokens: one product of matrices, which reads the map as it lies.

Convolved first, a map is written channel by channel and then turned around, and on a CPU oneDNN turns it once more.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lookfar.ops._autograd import compiled_here, for_graphs, has_tangent, needs_graph
from lookfar.ops._layout import split_heads, to_tokens
from lookfar.ops._precision import multiplies

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolved_tokens(layer: nn.Module | None, x: Tensor, heads: int = 1, *, viewed: bool = False) -> Tensor:
    """``to_tokens(layer(x), heads)``: ``(B, C, *S) -> (B, h, N, D/h)``; of x itself where there is no layer.

    Args:
        viewed: The tokens of a plain map may be a view of a map, which is not copied.
    """
    viewed = viewed and x.is_contiguous()
    if layer is not None and _runs_as_product(layer, x):
        apply: Any = _Product.apply if torch.is_grad_enabled() else _product
        y = apply(x.flatten(2), layer.weight.flatten(1), layer.bias, viewed)  # type: ignore[operator]
        return _viewed(y, heads) if viewed else split_heads(y, heads)
    y = x if layer is None else layer(x)
    return _viewed(y.flatten(2), heads) if viewed else to_tokens(y, heads)


def convolved_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x).flatten(2)``, ``(B, C, *S) -> (B, D, N)``, for few channels D.

    Of a compiled convolution the map would be copied into channels_last, which takes longer than the sums over C, and
    oneDNN does the same to one in bfloat16.
    """
    product = _is_full(x) if compiled_here() else multiplies(x) and not for_graphs() and not _has_tangent(layer, x)
    if product and _is_product(layer, x):
        return _product(x.flatten(2), layer.weight.flatten(1), layer.bias, True)  # type: ignore[operator]
    return layer(x).flatten(2)


def _viewed(y: Tensor, heads: int) -> Tensor:
    """``(B, D, N) -> (B, h, N, D/h)``, a view."""
    return y.unflatten(1, (heads, y.shape[1] // heads)).transpose(2, 3)


def _runs_as_product(layer: nn.Module, x: Tensor) -> bool:
    return _is_full(x) and _is_product(layer, x) and not for_graphs() and not _has_tangent(layer, x)


def _is_full(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _is_product(layer: Any, x: Tensor) -> bool:
    """Whether running a layer does nothing but multiply by its weight, on a CPU.

    Layers with hooks, of other classes or parametrized must be called.
    """
    return (
        type(layer) in _CONVS
        and x.is_cpu
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


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, as_map: bool) -> Tensor:
    """``W x + b`` of ``(B, C, N), (D, C), (D,)``, as a map ``(B, D, N)`` or as tokens ``(B, N, D)``."""
    many = weight.expand(x.shape[0], -1, -1)
    left, right = (many, x) if as_map else (x.transpose(1, 2), many.transpose(1, 2))
    if bias is None:
        return torch.bmm(left, right)
    return torch.baddbmm(bias[:, None] if as_map else bias, left, right)


class _Product(torch.autograd.Function):
    """:func:`_product`; the gradient of x lies in memory as x does.

    Its backward pass is made of ordinary operations: second derivatives are theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, as_map: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.as_map = as_map
        return _product(x, weight, bias, as_map)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dy = grads[0].transpose(1, 2) if ctx.as_map else grads[0]  # (B, N, D)
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
        return dx, dweight, dy.sum((0, 1)) if wanted[2] else None, None
