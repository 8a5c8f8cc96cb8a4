"""Conversions between feature maps (B, C, *S) and tokens (B, h, N, D): the only reshapes of the library."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, traced, under_transform


def to_tokens(x: Tensor, heads: int = 1) -> Tensor:
    """``(B, C, *S) -> (B, h, N, C/h)`` with the last axis contiguous, as fused attention kernels need it.

    Head t holds the channels ``t * C/h .. (t + 1) * C/h``. A channels_last map with one head is not copied.
    """
    return split_heads(x.flatten(2).transpose(1, 2), heads)


def to_map(t: Tensor, like: Tensor) -> Tensor:
    """``(B, h, N, E) -> (B, h*E, *S)`` in the spatial size and the memory format of ``like`` (B, C, *S)."""
    B, h, N, E = t.shape
    y = t.squeeze(1) if h == 1 else t.transpose(1, 2).reshape(B, N, h * E)
    return match_format(y.transpose(1, 2).unflatten(2, like.shape[2:]), like)


def mixed(weights: Tensor, v: Tensor) -> Tensor:
    """``weights @ v``, laid in memory as the values are: as tokens, or as the map that they are a view of."""
    if v.stride(-2) == 1 < v.stride(-1):
        return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)
    return weights @ v


def to_blocks(x: Tensor, block: tuple[int, int], heads: int = 1, *, far: bool = False) -> Tensor:
    """Groups of one block, or (far) of one phase in every block: ``(B, C, H, W) -> (B h groups, 1, P, C/h)``."""
    B, C, H, W = x.shape
    dh, dw = block
    x = x.reshape(B * heads, C // heads, H // dh, dh, W // dw, dw)
    groups, inside = ((0, 3, 5), (2, 4)) if far else ((0, 2, 4), (3, 5))
    return x.permute(*groups, *inside, 1).flatten(0, 2).flatten(1, 2)[:, None].contiguous()


def from_blocks(t: Tensor, size: Sequence[int], block: tuple[int, int], heads: int = 1, *, far: bool = False) -> Tensor:
    """The inverse of :func:`to_blocks` for a map of this size."""
    (H, W), (dh, dw) = size, block
    if far:
        t = t[:, 0].unflatten(1, (H // dh, W // dw)).unflatten(0, (-1, dh, dw))  # (B h, dh, dw, a, b, C/h)
        t = t.permute(0, 5, 3, 1, 4, 2)
    else:
        t = t[:, 0].unflatten(1, (dh, dw)).unflatten(0, (-1, H // dh, W // dw))  # (B h, a, b, dh, dw, C/h)
        t = t.permute(0, 5, 1, 3, 2, 4)
    return t.reshape(t.shape[0] // heads, heads * t.shape[1], H, W)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, N, C) -> (B, h, N, C/h)``, the last axis contiguous; not copied where there is one head."""
    if heads == 1:
        return x.unsqueeze(1).contiguous()
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2).contiguous()


def merge_heads(t: Tensor) -> Tensor:
    """``(B, h, N, E) -> (B, N, h*E)``."""
    return t.transpose(1, 2).flatten(2)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last (or its 3-D form) where ``x`` is in it and not also in the plain format, else contiguous.

    Under the transforms of ``torch.func`` always contiguous: a tensor's strides are not known there.
    """
    if not x.is_contiguous() and (traced() or not under_transform()):
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def match_format(y: Tensor, like: Tensor) -> Tensor:
    """``y`` in the memory format of ``like``."""
    return y.contiguous(memory_format=memory_format(like))


def plain(t: Tensor) -> Tensor:
    """``t.contiguous()``, also in compiled programs, which read what is read often where and as it lies.

    On a CPU convolutions give them channels_last maps: a loop over windows in one took four times as long.
    """
    return _copied(t) if compiled_here() and t.is_cpu else t.contiguous()


@torch.library.custom_op("lookfar::plain", mutates_args=(), schema="(Tensor t) -> Tensor")
def _copied(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


@_copied.register_fake
def _like(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


_copied.register_autograd(lambda _, grad: grad)


def positions(x: Tensor) -> int:
    """N, the number of positions of a map ``(B, C, *S)``."""
    return math.prod(x.shape[2:])
