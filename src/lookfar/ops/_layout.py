"""Between feature maps (B, C, *S) and tokens (B, h, N, D): the only reshapes of the library."""

import math

import torch
from torch import Tensor


def to_tokens(x: Tensor, heads: int = 1) -> Tensor:
    """``(B, C, *S) -> (B, h, N, C/h)`` with the last axis contiguous, as fused attention kernels want it.

    Head t holds the channels ``t * C/h .. (t + 1) * C/h``. A channels_last map with one head is not copied.
    """
    B, C = x.shape[:2]
    return x.flatten(2).transpose(1, 2).unflatten(2, (heads, C // heads)).transpose(1, 2).contiguous()


def to_map(t: Tensor, like: Tensor) -> Tensor:
    """``(B, h, N, E) -> (B, h*E, *S)`` in the spatial size and the memory format of ``like`` (B, C, *S)."""
    B, h, N, E = t.shape
    y = t.transpose(1, 2).reshape(B, N, h * E).transpose(1, 2).unflatten(2, like.shape[2:])
    return match_format(y, like)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, N, C) -> (B, h, N, C/h)``, the last axis contiguous; not copied where there is one head."""
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2).contiguous()


def merge_heads(t: Tensor) -> Tensor:
    """``(B, h, N, E) -> (B, N, h*E)``."""
    return t.transpose(1, 2).flatten(2)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last (or its 3-D form) where ``x`` is in it and not also in the plain format, else contiguous."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def match_format(y: Tensor, like: Tensor) -> Tensor:
    """``y`` in the memory format of ``like``."""
    return y.contiguous(memory_format=memory_format(like))


def positions(x: Tensor) -> int:
    """N, the number of positions of a map ``(B, C, *S)``."""
    return math.prod(x.shape[2:])
