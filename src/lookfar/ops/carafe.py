"""CARAFE's reassembly: every output pixel is a weighted sum of the window around its source pixel in the small map.

Traps: cells outside the map are left out without renormalising, so a constant map comes out smaller at the border.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar._options import Odd
from lookfar.ops._autograd import compiled_here, for_graphs, has_tangent
from lookfar.ops._checked import check, divides, positive
from lookfar.ops._layout import memory_format
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._reassembly import REASSEMBLY, Reassembly, reassembled


def carafe_reference(
    x: Tensor, masks: Tensor, *, kernel_size: int = 5, groups: int = 1, scale_factor: int = 2
) -> Tensor:
    """The definition: windows unfolded, repeated to the output's size, weighted, summed.

    >>> masks = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # windows of one cell: a weight for each output pixel
    >>> carafe_reference(torch.full((1, 1, 1, 1), 10.0), masks, kernel_size=1).tolist()
    [[[[10.0, 20.0], [30.0, 40.0]]]]
    """
    _check(x, masks, kernel_size, groups, scale_factor)
    B, C, H, W = x.shape
    with without_autocast(x):
        inside, windows = (
            F.unfold(t, kernel_size, padding=kernel_size // 2).unflatten(2, (H, W))
            for t in (torch.ones_like(widened(x)), widened(x))
        )
        inside, windows = (
            t.repeat_interleave(scale_factor, 2)
            .repeat_interleave(scale_factor, 3)
            .unflatten(1, (groups, C // groups, -1))
            for t in (inside, windows)
        )
        seen = windows * widened(masks).unflatten(1, (groups, 1, kernel_size**2))
        y = torch.where(inside == 1, seen, 0).sum(3)
        return y.flatten(1, 2).to(x.dtype)


def carafe(x: Tensor, masks: Tensor, *, kernel_size: int = 5, groups: int = 1, scale_factor: int = 2) -> Tensor:
    """:func:`carafe_reference` without unfolding, in the memory of input, masks and output.

    >>> masks = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # windows of one cell: a weight for each output pixel
    >>> carafe(torch.full((1, 1, 1, 1), 10.0), masks, kernel_size=1).tolist()
    [[[[10.0, 20.0], [30.0, 40.0]]]]

    Args:
        x: Features ``(B, C, H, W)``.
        masks: Weights ``(B, G k^2, sH, sW)`` used as they are, not normalised; groups first, then cells row by row.
        kernel_size: Odd extent k of the window in the small map.
        groups: Number G of channel groups, each with its own masks.
        scale_factor: Upsampling factor s.

    Shape: ``(B, C, sH, sW)``

    Raises:
        ValueError: Shapes that do not fit, an even kernel, groups that do not divide the channels.
    """
    _check(x, masks, kernel_size, groups, scale_factor)
    # the s^2 subpixels of one source see the same cells and are computed together; pixel_unshuffle takes no empty batch
    cells = masks.unflatten(3, (x.shape[3], scale_factor)).unflatten(2, (x.shape[2], scale_factor))
    cells = cells.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    return reassemble(x, cells.unflatten(1, (groups, kernel_size**2)), scale_factor)


def reassemble(x: Tensor, cells: Tensor, scale_factor: int) -> Tensor:
    """:func:`carafe` with the masks on the small map: ``(B, C, H, W), (B, G, k^2, s^2, H, W) -> (B, C, sH, sW)``.

    >>> cells = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4, 1, 1)
    >>> reassemble(torch.full((1, 1, 1, 1), 10.0), cells, 2).tolist()
    [[[[10.0, 20.0], [30.0, 40.0]]]]

    Raises:
        ValueError: Masks of another factor.
    """
    if cells.shape[3] != scale_factor**2:
        raise ValueError(f"want cells (B, G, k^2, {scale_factor**2}, H, W), got {tuple(cells.shape)}")
    last = memory_format(x) == torch.channels_last
    with without_autocast(x):
        if x.is_cpu and compiled_here():
            y: Tensor = REASSEMBLY((x, cells), [last])
        elif x.is_cpu and not (for_graphs() or has_tangent(x, cells)):
            y = Reassembly.apply(x, cells, last)  # type: ignore[assignment]
        else:
            return reassembled(x, cells)
    return y.permute(0, 3, 1, 2) if last else y


def _check(x: Tensor, masks: Tensor, kernel_size: int, groups: int, scale_factor: int) -> None:
    check("kernel_size", kernel_size, Odd)
    divides("groups", groups, channels=x.shape[1])
    positive("scale_factor", scale_factor)
    wanted = (x.shape[0], groups * kernel_size**2, x.shape[2] * scale_factor, x.shape[3] * scale_factor)
    if masks.shape != wanted:
        raise ValueError(f"want masks (B, G k^2, sH, sW) = {tuple(wanted)}, got {tuple(masks.shape)}")
