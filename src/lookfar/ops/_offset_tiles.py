"""Point-wise spatial attention by softmax on a CPU: a row of targets and some rows of sources at a time.

Products of positions with the vectors of all offsets in columns are read along diagonals: logits are a view of them,
and gradients are written into such a view of zeros. Both directions are one loop; in one the position that predicts is
the target (collect), in the other the source (distribute), where offsets in rows run backwards and a tile lies the
other way round, sources first.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookfar.ops._precision import LOG2_E, powers_

LIMIT = {"products": 2**17}  # of a tile, half a MiB in float32; half of them are logits


class _Tile(NamedTuple):
    """A row of targets and some rows of sources.

    Attributes:
        rows: Of the sources.
        offsets: Their rows in the table of offsets.
        sources: Their flat positions.
        products: ``(W, rows (2W - 1))`` of targets, or ``(rows, W, 2W - 1)`` of sources.
    """

    rows: slice
    offsets: slice
    sources: slice
    products: Tensor


def _tiles(a: Tensor, offsets: Tensor, row: int, collect: bool) -> Iterator[_Tile]:
    """Of ``(H, W, D)`` and the table ``(2H - 1, 2W - 1, D)``."""
    H, W, _ = a.shape
    step = max(LIMIT["products"] // (W * (2 * W - 1)), 1)
    for k in range(0, H, step):
        rows, first = slice(k, min(k + step, H)), H - 1 - row
        lines = slice(first + rows.start, first + rows.stop)
        if collect:
            products = a[row] @ offsets[lines].flatten(0, 1).T
        else:
            products = torch.bmm(a[rows], offsets[lines].transpose(1, 2))
        yield _Tile(rows, lines, slice(W * rows.start, W * rows.stop), products)


def _logits(products: Tensor, W: int) -> Tensor:
    """A view: ``(W, rows, W)``, targets first, or ``(rows, W, W)``, sources first."""
    n = 2 * W - 1
    if products.dim() == 2:
        rows = products.shape[1] // n
        return products.as_strided((W, rows, W), (rows * n - 1, n, 1), W - 1)
    return products.as_strided((len(products), W, W), (W * n, n - 1, 1), W - 1)


def _scaled(products: Tensor, W: int) -> Tensor:
    """Logits to the base 2 as a matrix of targets and sources, or of sources and targets."""
    logits = _logits(products, W) * LOG2_E
    return logits.flatten(1) if products.dim() == 2 else logits.flatten(0, 1)


def forward(given: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``(B, D, H, W), (2H - 1, 2W - 1, D), (B, E, H, W) -> (B, E, H, W)``, and log-sum-exps ``(B, H, W)``, base 2."""
    (a, offsets, v), collect = given, bool(sizes[0])
    offsets, sources = offsets if collect else offsets.flip(0), 1 if collect else 0
    y, lse = v.new_empty(v.shape), a.new_empty(len(a), *a.shape[2:])
    for image in range(len(a)):
        positions, values = _last(a[image]), _last(v[image]).flatten(0, 1)
        for row in range(a.shape[2]):
            total = a.new_zeros(a.shape[3])
            sums, top = v.new_zeros(len(total), len(v[0])), torch.full_like(total, torch.finfo(total.dtype).min)
            for tile in _tiles(positions, offsets, row, collect):
                s = _scaled(tile.products, len(total))
                largest = torch.maximum(s.amax(sources), top)
                shrink, top = (top - largest).exp2_(), largest
                p = powers_(s.sub_(largest.unsqueeze(sources)))
                total.mul_(shrink).add_(p.sum(sources))
                sums.mul_(shrink[:, None]).addmm_(p if collect else p.T, values[tile.sources])
            y[image, :, row] = sums.div_(total[:, None]).T
            lse[image, row] = total.log2_().add_(top)
    return y, lse


def backward(
    given: Sequence[Tensor], sizes: Sequence[int], y: Tensor, lse: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what :func:`forward` is given."""
    (a, offsets, v), collect = given, bool(sizes[0])
    offsets, sources, W = offsets if collect else offsets.flip(0), 1 if collect else 0, a.shape[3]
    da, doffsets, dv = a.new_empty(a.shape), offsets.new_zeros(offsets.shape), v.new_empty(v.shape)
    for image in range(len(a)):
        positions, values = _last(a[image]), _last(v[image]).flatten(0, 1)
        dpositions, dvalues = torch.zeros_like(positions), torch.zeros_like(values)
        for row in range(a.shape[2]):
            grad, shift = dy[image, :, row].T.contiguous(), lse[image, row].unsqueeze(sources)
            mean = (grad * y[image, :, row].T).sum(1).unsqueeze(sources)
            for tile in _tiles(positions, offsets, row, collect):
                some, lines = values[tile.sources], doffsets[tile.offsets]
                p = powers_(_scaled(tile.products, W).sub_(shift))
                dvalues[tile.sources].addmm_(p.T if collect else p, grad)
                ds = (grad @ some.T if collect else some @ grad.T).sub_(mean).mul_(p)
                products = torch.zeros_like(tile.products)
                logits = _logits(products, W)
                logits.copy_(ds.view(logits.shape))
                if collect:
                    dpositions[row].addmm_(products, offsets[tile.offsets].flatten(0, 1))
                    lines.flatten(0, 1).addmm_(products.T, positions[row])
                else:
                    dpositions[tile.rows].baddbmm_(products, offsets[tile.offsets])
                    lines.baddbmm_(products.transpose(1, 2), positions[tile.rows])
        da[image], dv[image] = dpositions.permute(2, 0, 1), dvalues.T.view_as(v[image])
    return da, doffsets if collect else doffsets.flip(0), dv


def _last(x: Tensor) -> Tensor:
    """``(D, H, W) -> (H, W, D)``."""
    return x.permute(1, 2, 0).contiguous()
