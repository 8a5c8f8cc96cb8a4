"""Reading a map at chosen places: by interpolation, with gradients to the places, or as windows cut out of it.

Traps: a pixel's centre lies on -1 and 1 at the corners (``align_corners=True``), which is not torch's default and which
an identity test does not catch; windows have no gradient with respect to their place, and coarse ones average the zeros
outside the map.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import compiled_here, gradients, has_tangent, needs_graph, traced, under_transform
from lookfar.ops._checked import positive
from lookfar.ops._layout import match_format
from lookfar.ops._loops import of_function
from lookfar.ops._precision import wide, widened, without_autocast


def affine_points(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """Places (x, y) at which an affine grid of ``size`` reads, ``(B, 2, 3) -> (B, H', W', 2)``.

    >>> affine_points(torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]]), (1, 2)).tolist()  # moved to the right
    [[[[-0.5, 0.0], [1.5, 0.0]]]]
    """

    x, y = grid_points(theta, size)
    return torch.stack([x, y, torch.ones_like(x)], -1).matmul(theta.transpose(1, 2)).unflatten(1, size)


def grid_points(like: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x and y of all positions of a map of ``size``, ``(H' W',)`` each: from -1 to 1, and 0 along an axis of one.

    >>> grid_points(torch.zeros(1), (1, 3))
    (tensor([-1.,  0.,  1.]), tensor([0., 0., 0.]))
    """

    def line(n: Any) -> Tensor:  # not linspace, which freezes the size into exported programs
        end: Any = n  # which type checkers do not narrow
        if isinstance(n, Tensor):  # a size, under torch.jit.trace
            steps, last = (n - 1).clamp(min=1), (n - 1).clamp(max=1)
        else:
            # torch 2.8 cannot compile sym_max of plain numbers
            most: Any = max if isinstance(n, int) else torch.sym_max
            least: Any = min if isinstance(n, int) else torch.sym_min
            steps, last = most(n - 1, 1), least(n - 1, 1)
        return 2 * torch.arange(end, dtype=like.dtype, device=like.device) / steps - last

    rows, columns = map(line, size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.flatten(), y.flatten()


def affine_sample_reference(x: Tensor, theta: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The definition: sum_nm x_nm max(0, 1 - |p_x - m|) max(0, 1 - |p_y - n|), pixel (n, m) by pixel.

    >>> x, theta = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    >>> affine_sample_reference(x, theta).tolist()  # read half a width to the right
    [[[[2.0, 3.0, 0.0]]]]
    """
    (H, W), (h, w) = x.shape[2:], size or x.shape[2:]
    down, across = (torch.linspace(-1, 1, n, dtype=theta.dtype) if n > 1 else theta.new_zeros(1) for n in (h, w))
    t = theta[:, :, :, None, None]
    column, row = ((t[:, :, 0] * across + t[:, :, 1] * down[:, None] + t[:, :, 2] + 1) / 2).unbind(1)
    y = (x.sum((2, 3))[:, :, None, None] + (column + row)[:, None]).mul(0).nan_to_num(0, 0, 0)
    for n, m in itertools.product(range(H), range(W)):
        share = (1 - (column * (W - 1) - m).abs()).relu() * (1 - (row * (H - 1) - n).abs()).relu()
        y = y + (share[:, None] * x[:, :, n, m, None, None]).masked_fill((share == 0)[:, None], 0)
    return y


def affine_sample(x: Tensor, theta: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """A map read at the places of an affine grid: bilinear, zeros outside, gradients to map and transformation.

    >>> x, theta = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    >>> affine_sample(x, theta).tolist()  # read half a width to the right
    [[[[2.0, 3.0, 0.0]]]]

    Args:
        x: ``(B, C, H, W)``.
        theta: ``(B, 2, 3)``; its first row gives x, its second y, from the target's (x, y, 1), corners at -1 and 1.
        size: (H', W') of the result; that of ``x`` by default.

    Shape: ``(B, C, H', W')``

    Raises:
        ValueError: Shapes that do not fit.
    """
    if x.dim() != 4 or theta.shape != (x.shape[0], 2, 3):
        raise ValueError(f"want x (B, C, H, W) and theta (B, 2, 3), got {x.shape=}, {theta.shape=}")
    with without_autocast(x):
        points = affine_points(theta.to(wide(x)), (x.shape[2], x.shape[3]) if size is None else size)
        return sample_at(x, points)


def sample_at(x: Tensor, points: Tensor) -> Tensor:
    """A map read at places (x, y), ``(B, C, H, W), (B, H', W', 2) -> (B, C, H', W')``, as :func:`affine_sample`.

    >>> sample_at(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[0.5, 0.0]]]])).tolist()
    [[[[2.5]]]]
    """
    with without_autocast(x):
        wide = widened(x)  # half-precision places lose whole pixels beyond 2048
        points = points.to(wide.dtype)
        if has_tangent(wide, points) or (not traced() and under_transform()):
            y: Any = _corner_by_corner(wide, points)
        elif compiled_here() and x.is_cpu:  # what is fused would ask of every channel whether a place is lost
            y = _READ((wide, points))
        else:
            y = _grid_sample(wide, points) if traced() else _Read.apply(wide, points)
        return match_format(y.to(x.dtype), x)


def _lost(points: Tensor) -> Tensor:
    return points.isnan().any(-1)[:, None]


def _grid_sample(x: Tensor, points: Tensor) -> Tensor:
    """``grid_sample``, but NaN where a place is: it reads these at -1."""
    return F.grid_sample(x, points, align_corners=True).masked_fill(_lost(points), torch.nan)


class _Read(torch.autograd.Function):
    """``grid_sample``, whose gradient has one of its own in torch 2.8 too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(x, points)
        return _grid_sample(x, points)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
        grad = grads[0].masked_fill(_lost(saved[1]), 0)
        if needs_graph():
            return tuple(gradients(_corner_by_corner, saved, wanted, grad))
        return torch.ops.aten.grid_sampler_2d_backward(grad, *saved, 0, 0, True, wanted)  # bilinear, zeros outside


def _corner_by_corner(x: Tensor, points: Tensor) -> Tensor:
    """The same in plain operations: ``grid_sample`` has no forward-mode derivative."""
    H, W = x.shape[2:]
    column, row = (points[..., 0] + 1) / 2 * (W - 1), (points[..., 1] + 1) / 2 * (H - 1)
    left, top = column.detach().floor(), row.detach().floor()
    y: Any = 0
    for a, by_row in ((top, 1 - (row - top)), (top + 1, row - top)):
        for b, by_column in ((left, 1 - (column - left)), (left + 1, column - left)):
            there = ~((a < 0) | (a > H - 1) | (b < 0) | (b > W - 1))
            at = a.long().clamp(0, H - 1) * W + b.long().clamp(0, W - 1)
            seen = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, x.shape[1], -1))
            y = y + seen.unflatten(2, at.shape[1:]) * torch.where(there, by_row * by_column, 0)[:, None]
    return y


_READ = of_function("read", _Read, _corner_by_corner, lambda given, _: (*given[0].shape[:2], *given[1].shape[1:3]))


def glimpse_sensor_reference(
    x: Tensor, location: Tensor, *, kernel_size: int, scales: int = 1, scale_factor: int = 2
) -> Tensor:
    """The definition: pad with zeros, cut one window per sample and scale, average it down.

    >>> x, corner = torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[-1.0, -1.0]])
    >>> glimpse_sensor_reference(x, corner, kernel_size=1, scales=2, scale_factor=3).flatten()  # 0 and 8 / 9
    tensor([0.0000, 0.8889])
    """
    B, _, H, W = x.shape
    found = []
    for i in range(scales):
        step = scale_factor**i
        side = kernel_size * step
        padded = F.pad(x, (side,) * 4)
        windows = [padded[:0, :, :side, :side]]
        for b in range(B):
            place = 0.5 * (location[b] + 1) * torch.tensor([W, H])
            if place.isnan().any():
                windows.append(torch.full_like(padded[b : b + 1, :, :side, :side], torch.nan))
                continue
            left, top = (int(p.floor().clamp(-2 * side - n, 2 * side + n)) - side // 2 for p, n in zip(place, (W, H)))
            left, top = (min(max(start, -side), n) + side for start, n in ((left, W), (top, H)))
            windows.append(padded[b : b + 1, :, top : top + side, left : left + side])
        found.append(F.avg_pool2d(torch.cat(windows), step))
    return torch.cat(found, 1)


def glimpse_sensor(x: Tensor, location: Tensor, *, kernel_size: int, scales: int = 1, scale_factor: int = 2) -> Tensor:
    """Square windows around one place of each map, wider and coarser by scale, all ``kernel_size`` cells wide.

    Only the pixels of the windows are read: the cost does not depend on the size of the map.

    >>> x, corner = torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[-1.0, -1.0]])
    >>> glimpse_sensor(x, corner, kernel_size=1, scales=2, scale_factor=3).flatten()  # 0 and 8 / 9
    tensor([0.0000, 0.8889])

    Args:
        x: ``(B, C, H, W)``.
        location: (x, y) of the centre, ``(B, 2)``, (-1, -1) top left, (0, 0) the centre; no gradient flows to it.
        kernel_size: Cells g on a side; where g is even the centre is the first cell of the lower right half.
        scales: Number k of windows, finest first.
        scale_factor: Integer s: the i-th window is g s^i pixels wide and averaged over blocks of s^i.

    Shape: ``(B, k C, g, g)``, all channels of the finest scale first.

    Raises:
        ValueError: Shapes that do not fit, sizes that are not positive integers.
    """
    if x.dim() != 4 or location.shape != (x.shape[0], 2):
        raise ValueError(f"want x (B, C, H, W) and location (B, 2), got {x.shape=}, {location.shape=}")
    for name, value in (("kernel_size", kernel_size), ("scales", scales), ("scale_factor", scale_factor)):
        positive(name, value)
    B, C, H, W = x.shape
    far = kernel_size * scale_factor**scales
    sizes = torch.tensor([W, H], device=x.device)
    place = 0.5 * (widened(location.detach()) + 1) * sizes
    lost = place.isnan().any(1)[:, None, None, None]
    # (B, 2); beyond the map by more than a window is as good as infinitely far
    centre = place.floor().clamp(-far, far + max(H, W)).long()
    found = []
    for i in range(scales):
        step = scale_factor**i
        side = kernel_size * step
        at = centre[:, :, None] - side // 2 + torch.arange(side, device=x.device)  # (B, 2, side), columns and rows
        inside = (at >= 0) & (at < sizes[:, None])
        at = torch.minimum(at.clamp(min=0), sizes[:, None] - 1)
        flat = (at[:, 1, :, None] * W + at[:, 0, None, :]).flatten(1)  # (B, side^2)
        there = (inside[:, 1, :, None] & inside[:, 0, None, :])[:, None]
        window = x.flatten(2).gather(2, flat[:, None].expand(-1, C, -1)).unflatten(2, (side, side))
        window = torch.where(there, window, torch.zeros((), dtype=x.dtype, device=x.device))
        window = window.masked_fill(lost, torch.nan)
        found.append(window.unflatten(3, (kernel_size, step)).unflatten(2, (kernel_size, step)).mean((3, 5)))
    return torch.cat(found, 1)
