"""Attention between channels: z_c = sum_d softmax_d(scale x_c . x_d) x_d.

The authors' scale of -1 gives most weight to the least similar channels.

Traps: the authors write softmax(rowmax(E) - E), which is softmax(-E), since the row's maximum cancels; softmax(E) is
another function. Similarities are sums over all N positions and reach 1e5: in half precision another channel wins, so
they are always float32.
"""

from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._precision import factor, multiplies, softmax, widened, without_autocast

PART, ROWS = 2048, 128  # positions that are widened at a time, and channels whose products with all others are taken


def channel_attention_weights(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """``(B, C, N) -> (B, C, C)``; every row sums to one.

    >>> channel_attention_weights(100 * torch.eye(2)[None]).tolist()  # each channel looks at the one that differs
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    with without_autocast(x):
        return _softmax(x, scale)


def channel_attention_reference(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """The definition as the authors compute it: energies subtracted from their row's largest, softmax, weighted sum.

    >>> channel_attention_reference(100 * torch.eye(2)[None]).tolist()  # each channel takes the one that differs
    [[[0.0, 100.0], [100.0, 0.0]]]
    """
    with without_autocast(x):
        wide = widened(x)
        energy = -scale * (wide @ wide.transpose(-2, -1))
        weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return (weights @ wide).to(x.dtype)


def channel_attention(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """Softmax attention between the C channels of ``x``, without parameters.

    >>> channel_attention(100 * torch.eye(2)[None]).tolist()  # each channel takes the one that differs
    [[[0.0, 100.0], [100.0, 0.0]]]

    Args:
        x: Channels as rows.
        scale: Factor on their products; a negative one, as the authors use, gives most weight to the least similar.

    Shape: ``(B, C, N) -> (B, C, N)``

    Raises:
        ValueError: ``x`` does not have three axes.
    """
    if x.dim() != 3:
        raise ValueError(f"want x (B, C, N), a map is flattened by x.flatten(2); got {x.shape=}")
    with without_autocast(x):
        channels = factor(x)
        learns, plainly = torch.is_grad_enabled() and x.requires_grad, for_graphs() and not compiled_here()
        if learns and not plainly and not has_tangent(channels):  # compiled programs trace the gradient, too
            y: Any = _Mixed.apply(channels, scale)
        else:
            y = _mixed(channels, scale)
        return y.to(x.dtype)


def _mixed(x: Tensor, scale: float) -> Tensor:
    return _softmax(x, scale).to(x.dtype) @ x


def _softmax(x: Tensor, scale: float) -> Tensor:
    products = _products(x)  # scaled are these, not the map
    return softmax(scale * products if products.requires_grad or for_graphs() else products.mul_(scale))


def _products(x: Tensor) -> Tensor:
    """Of all pairs of channels, ``(B, C, N) -> (B, C, C)``, in float32 at least.

    Without a graph bfloat16 is widened a part of the map at a time, and products of two channels are taken once.
    """
    if not multiplies(x) or for_graphs() or (torch.is_grad_enabled() and x.requires_grad):
        x = widened(x)
        return x @ x.transpose(-2, -1)
    C = x.shape[1]
    found = x.new_zeros(len(x), C, C, dtype=torch.float32)
    for part in x.split(PART, 2):
        wide = part.float()
        for c in range(0, C, ROWS):
            found[:, c : c + ROWS, c:].baddbmm_(wide[:, c : c + ROWS], wide[:, c:].transpose(1, 2))
    for c in range(ROWS, C, ROWS):
        found[:, c:, c - ROWS : c] = found[:, c - ROWS : c, c:].transpose(1, 2)
    return found


class _Mixed(torch.autograd.Function):
    """The same with a gradient of three products instead of four, added up in place.

    With P the weights, dS = scale P (dP - sum(dP P)) and dP = dy x^T: dx = P^T dy + (dS + dS^T) x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        weights = _softmax(x, scale).to(x.dtype)
        ctx.save_for_backward(x, weights)
        ctx.scale = scale
        return weights @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weights = ctx.saved_tensors
        if needs_graph():
            return gradients(lambda x: _mixed(x, ctx.scale), [x], [True], grads[0])[0], None
        ds = widened(grads[0] @ x.transpose(1, 2))
        ds = ds.sub_((ds * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scale)
        dx = weights.transpose(1, 2) @ grads[0]
        return dx.baddbmm_((ds + ds.transpose(1, 2)).to(x.dtype), x), None
