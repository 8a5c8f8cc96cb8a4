"""Layers that a block does not call: it reads their weights, as a part of a larger product.

What is linear may act on a few descriptors instead of on N positions, or be multiplied with what stands beside it. But
a weight is not all there is to every layer: adapters (LoRA) and quantisation in training put another module in a
layer's place, pruning and spectral norm make its weight anew whenever it is called. Such a layer is called too, on
impulses.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lookfar.blocks._layers import CONVOLVE, ConvNorm
from lookfar.ops._precision import widened, without_autocast

_AT_ONCE = 2**22  # numbers of impulses that a layer is asked with at a time


class ReadLinear(nn.Linear):
    """A linear layer whose weight a block reads, as a part of a larger product.

    A class of its own, so that what exchanges layers by their type (torch's dynamic quantization) leaves it as it is.
    """


_READ = (nn.Linear, ReadLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weights_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """What a linear layer or a convolution of stride 1 multiplies by, in the form of its weight, and what it adds.

    >>> layer = nn.utils.spectral_norm(nn.Linear(3, 2)).eval()
    >>> weight, bias = weights_of(layer)
    >>> torch.allclose(weight, layer.weight_orig / (layer.weight_u @ layer.weight_orig @ layer.weight_v), rtol=1e-3)
    True
    """
    return (layer.weight, layer.bias) if is_plain(layer) else _asked(layer)


def is_plain(layer: Any) -> bool:
    """Whether a layer's weight and bias are all there is to it."""
    if type(layer) in _READ:
        return "weight" in layer._parameters  # hooks that make it anew keep another there
    return parametrize.is_parametrized(layer) and type(layer).__bases__[0] in _READ


def _asked(layer: Any) -> tuple[Tensor, Tensor]:
    """From what a layer gives for an impulse in each channel, at the place where the answer has every tap."""
    inside: Any = next((m for m in layer.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    like: Tensor = layer.weight
    _, C, *taps = like.shape
    groups, dilation, padding = 1, (1,) * len(taps), (0,) * len(taps)
    if inside is not None:
        groups, dilation, padding = inside.groups, inside.dilation, inside.padding
    at = [max(d * (k - 1) - p, 0) for d, k, p in zip(dilation, taps, padding)]
    size = [2 * a + 1 for a in at]
    # an impulse for each channel, and nothing, for what is added
    units = torch.eye(C * groups + 1, C * groups, dtype=like.dtype, device=like.device)
    answers = []
    with without_autocast(like):
        for some in units.split(max(_AT_ONCE // max(C * groups * torch.Size(size).numel(), 1), 1)):
            impulses = like.new_zeros(*some.shape, *size)
            impulses[(..., *at)] = some
            y = layer(impulses)
            for axis, (a, d, k, p) in enumerate(zip(at, dilation, taps, padding), 2):
                y = y.index_select(axis, a + p - d * torch.arange(k, device=y.device))
            answers.append(y)
    y = torch.cat(answers)
    bias = y[(-1, slice(None), *(0,) * len(taps))]
    full = (y[:-1] - y[-1:]).transpose(0, 1)  # (O, C groups, *taps)
    if groups > 1:
        of = full.unflatten(0, (groups, -1)).unflatten(2, (groups, C))
        full = torch.cat([of[g, :, g] for g in range(groups)])
    return full, bias


def wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution ``(B, C, *S) -> (B, E, *S)`` by ``weight`` (E, C[, 1, ..]), in float32 at least."""
    dims = x.dim() - 2
    with without_autocast(x):
        weight = widened(weight).reshape(*weight.shape[:2], *(1,) * dims)
        return CONVOLVE[dims](widened(x), weight, None if bias is None else widened(bias))


def pointwise(conv: nn.Module, t: Tensor) -> Tensor:
    """A 1x1 convolution (or a linear layer) as a matrix on ``(B, C, K)``, in the precision of ``t``.

    What is linear may act on K gathered descriptors instead of on N positions.
    """
    weight, bias = weights_of(conv)
    y = weight.flatten(1).to(t.dtype) @ t
    return y if bias is None else y + bias.to(t.dtype)[:, None]


def in_heads(layer: nn.Module, t: Tensor, sums: Tensor, heads: int) -> Tensor:
    """Each head's share of what ``layer`` gives for its share of K sums, ``(B, C, K) -> (B, h, D/h, K/h)``.

    In the precision of ``t``. They are weighted sums of features, and ``sums`` ``(B, K)`` are the sums of the weights.
    """
    weight, bias = (None if p is None else p.to(t.dtype).unflatten(0, (heads, -1)) for p in weights_of(layer))
    assert weight is not None
    y = torch.einsum("hdc,bchk->bhdk", weight.flatten(2), t.unflatten(2, (heads, -1)))
    return y if bias is None else y + bias[:, :, None] * sums.unflatten(1, (heads, 1, -1))


def out_of_heads(weight: Tensor, t: Tensor) -> Tensor:
    """What a layer of this weight gives for each head's descriptors: ``(B, h, D/h, K/h) -> (B, C, K)``."""
    weight = weight.flatten(1).to(t.dtype).unflatten(1, (t.shape[1], -1))
    return torch.einsum("chd,bhdk->bchk", weight, t).flatten(2)


def on_descriptors(layer: ConvNorm, weights: Tensor, descriptors: Tensor, size: tuple[int, ...]) -> Tensor:
    """A 1x1 :class:`ConvNorm` of mixtures of a few descriptors, ``(B, N, K), (B, K, E) -> (B, O, *size)``.

    The convolution acts on the K descriptors, exactly, before they are mixed for N positions.
    """
    weight, bias = weights_of(layer.conv)
    mixed = weight.flatten(1).to(descriptors.dtype) @ descriptors.transpose(1, 2) @ weights.transpose(1, 2)
    if bias is not None:
        mixed = mixed + bias.to(mixed.dtype)[:, None]  # the weights of a position need not sum to one
    return layer.after(mixed.unflatten(2, size).to(weight.dtype))
