"""Means over grids of bins, by averaging matrices: of all grids of a pyramid in two products, which read the map once.

A fused pooling reads it once a grid; products have a second derivative and a gradient as fast in every memory format.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookfar.ops._layout import match_format, memory_format
from lookfar.ops._precision import averaged, widened, without_autocast


def averages(x: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Means over each grid of bins, which overlap where they do not divide the map.

    >>> [y.tolist() for y in averages(torch.tensor([[[[1.0, 2.0, 3.0]]]]), [(1, 1), (1, 2)])]
    [[[[[2.0]]]], [[[[1.5, 2.5]]]]]

    Shape: ``(B, C, H, W) -> (B, C, b_h, b_w)`` for each grid, in float32 where ``x`` is in half precision.
    """
    with without_autocast(x):
        if list(grids) == [(1, 1)]:
            return [averaged(x, 2, 3, keepdim=True)]
        x = widened(x)
        heights, widths = zip(*grids)
        down, across = _averaging_matrix(x.shape[2], heights, x), _averaging_matrix(x.shape[3], widths, x)
        # every grid's rows with every grid's columns, of which those that belong together are kept
        if memory_format(x) == torch.channels_last:
            t = x.movedim(1, 3)  # (B, H, W, C)
            t = (down @ t.flatten(2)).unflatten(2, t.shape[2:])
            y = (across @ t).movedim(3, 1)
        else:
            y = down @ x @ across.T
        found, top, left = [], 0, 0
        for b_h, b_w in grids:
            found.append(match_format(y[:, :, top : top + b_h, left : left + b_w], x))
            top, left = top + b_h, left + b_w
        return found


def _averaging_matrix(size: int, bins: Sequence[int], like: Tensor) -> Tensor:
    """``(sum of bins, size)`` with rows that sum to one, on the device and in the type of ``like``."""
    b = torch.tensor([n for n in bins for _ in range(n)], device=like.device)[:, None]
    i = torch.tensor([i for n in bins for i in range(n)], device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    start, end = i * size // b, ((i + 1) * size + b - 1) // b
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
