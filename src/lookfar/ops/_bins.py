"""Maps of a few bins, brought back to every position by bilinear interpolation.

On a CPU ``interpolate`` takes longer for a few bins of a plain map than a product of matrices, of bins and of what each
gives to every position; that of all scales together is one product, added to what they are added to.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import compiled_for, traced
from lookfar.ops._layout import match_format, memory_format
from lookfar.ops._precision import without_autocast

FEW = 64  # bins of a map


def enlarged(p: Tensor, like: Tensor, *, align_corners: bool) -> Tensor:
    """``(B, D, h, w) -> (B, D, H, W)``, in the size and the memory format of ``like`` (B, C, H, W).

    >>> enlarged(torch.tensor([[[[1.0, 2.0]]]]), torch.zeros(1, 1, 1, 3), align_corners=True).tolist()
    [[[[1.0, 1.5, 2.0]]]]
    """
    if _multiplied(p, like):
        with without_autocast(p):
            return (p.flatten(2) @ _shares(p, like, align_corners)).unflatten(2, like.shape[2:])
    p = match_format(p, like)  # torch reads and writes channels that lie side by side many at a time
    return match_format(F.interpolate(p, like.shape[2:], mode="bilinear", align_corners=align_corners), like)


def with_enlarged(y: Tensor, maps: Sequence[Tensor], *, align_corners: bool) -> Tensor:
    """``y`` (B, D, H, W) plus all the maps, each :func:`enlarged`."""
    if all(_multiplied(p, y) for p in maps):
        shares = torch.cat([_shares(p, y, align_corners) for p in maps])
        bins = torch.cat([p.flatten(2) for p in maps], 2)
        with without_autocast(y):
            return torch.baddbmm(y.flatten(2), bins, shares.expand(len(y), -1, -1)).view_as(y)
    for p in maps:
        y = y + enlarged(p, y, align_corners=align_corners)
    return y


def _multiplied(p: Tensor, like: Tensor) -> bool:
    if not p.is_cpu or p.dtype != like.dtype or p.dtype not in (torch.float32, torch.float64):
        return False
    if traced() and not compiled_for(*p.shape[2:], *like.shape[2:]):  # others serve maps of any size
        return False
    return memory_format(like) == torch.contiguous_format and math.prod(p.shape[2:]) <= FEW


def _shares(p: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """``(h w, H W)``: what every bin gives to every position."""
    size, bins = p.shape[2:], math.prod(p.shape[2:])
    alone = torch.eye(bins, dtype=p.dtype).view(1, bins, *size)
    with torch.no_grad():
        return F.interpolate(alone, like.shape[2:], mode="bilinear", align_corners=align_corners)[0].flatten(1)
