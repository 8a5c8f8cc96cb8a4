"""Images and logits at another size, as mmsegmentation has them resized.

Images: OpenCV's ``INTER_LINEAR`` on bytes, without antialiasing, bit for bit. Weights are multiples of 1/2048, and bits
are dropped on the way; exactly half the size is the mean of four. Tried against OpenCV 4.11 and 5.0.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 32  # of an image, or of logits, at a time


def fitted(size: tuple[int, int], longer: int, shorter: int) -> tuple[int, int]:
    """Height and width within a longer and a shorter side, their ratio kept, rounded as mmcv's ``imrescale`` rounds.

    >>> fitted((360, 480), 2048, 512), fitted((1024, 2048), 1025, 2049)
    ((512, 683), (1025, 2049))
    """
    longer, shorter = max(longer, shorter), min(longer, shorter)
    factor = min(longer / max(size), shorter / min(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def resize_bytes(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``(C, H, W)`` uint8 at another size, equal to ``cv2.resize(..., interpolation=cv2.INTER_LINEAR)``.

    >>> resize_bytes(torch.tensor([[[0, 100, 200]]], dtype=torch.uint8), (1, 6))
    tensor([[[  0,  25,  75, 125, 175, 200]]], dtype=torch.uint8)
    """
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"want an image (C, H, W) of uint8, got {tuple(image.shape)} of {image.dtype}")
    H, W = image.shape[1:]
    if size == (H, W):
        return image
    pixels = image.cpu().numpy()
    if tuple(2 * side for side in size) == (H, W):
        fours = np.stack([pixels[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
        return torch.from_numpy(((fours.sum(0, dtype=np.uint16) + 2) >> 2).astype(np.uint8))
    left, right, of_left, of_right = _bytes_between(W, size[1], at_edges=True)
    above, below, of_above, of_below = (part[:, None] for part in _bytes_between(H, size[0], at_edges=False))
    out = np.empty((len(pixels), *size), np.uint8)
    for top in range(0, size[0], _ROWS):
        some = slice(top, top + _ROWS)
        first, last = int(above[some].min()), int(below[some].max()) + 1
        source = pixels[:, first:last].astype(np.int32)
        rows = (source[..., left] * of_left + source[..., right] * of_right) >> 4
        upper, lower = (rows[:, part[some, 0] - first] for part in (above, below))
        out[:, some] = (((upper * of_above[some]) >> 16) + ((lower * of_below[some]) >> 16) + 2) >> 2
    return torch.from_numpy(out)


def _bytes_between(size: int, wanted: int, *, at_edges: bool) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """For each of the wanted positions its two neighbours and their weights, of 2048 together.

    Beyond the edge OpenCV sets the weights of columns (``at_edges``), and for rows takes the outermost one twice.
    """
    at = ((np.arange(wanted) + 0.5) * (1.0 / (wanted / size)) - 0.5).astype(np.float32)
    before = np.floor(at)
    share = at - before
    before = before.astype(np.int64)
    if at_edges:
        share[(before < 0) | (before >= size - 1)] = 0
        before = before.clip(0, size - 1)
    weights = [np.rint(part * np.float32(2048)).astype(np.int32) for part in (np.float32(1) - share, share)]
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), weights[0], weights[1]


class _Between(NamedTuple):
    before: Tensor
    after: Tensor
    share: Tensor


def between(size: int, wanted: int, align_corners: bool, like: Tensor) -> _Between:
    """For each of the wanted positions the one before it, the one after it, and how far it is on the way."""
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    if align_corners:
        at = torch.arange(wanted, **options) * ((size - 1) / (wanted - 1) if wanted > 1 else 0.0)
    else:
        at = ((torch.arange(wanted, **options) + 0.5) * (size / wanted) - 0.5).clamp(min=0)
    at = at.clamp(max=size - 1)
    before = at.long()
    return _Between(before, (before + 1).clamp(max=size - 1), at - before)


def resized_bands(
    bands: Iterable[Tensor], size: tuple[int, int], wanted: tuple[int, int], *, align_corners: bool
) -> Iterator[Tensor]:
    """Logits that come in bands of rows, resized bilinearly, in bands of few rows: as ``F.interpolate`` of the whole.

    Args:
        bands: ``(K, n, w)``, from top to bottom, h rows together.
        size: h and w.
        wanted: H and W.
        align_corners: As ``F.interpolate`` has it.

    Yields:
        ``(K, m, W)``, from top to bottom, H rows together.

    >>> logits = torch.randn(4, 9, 7)
    >>> whole = torch.nn.functional.interpolate(logits[None], (20, 15), mode="bilinear")[0]
    >>> found = torch.cat(list(resized_bands(logits.split(2, 1), (9, 7), (20, 15), align_corners=False)), 1)
    >>> torch.allclose(found, whole, atol=1e-5)
    True
    """
    parts = (part for band in bands for part in band.split(_ROWS, 1))
    if size == wanted:
        yield from parts
        return
    first_part = next(parts)
    rows, columns = (between(n, m, align_corners, first_part) for n, m in zip(size, wanted))
    held, start, done = first_part[:, :0], 0, 0  # rows that are still needed, and which ones they are
    for part in chain([first_part], parts):
        held = torch.cat([held, part], 1)
        end = start + held.shape[1]
        ready = int((rows.after < end).sum())
        for some in torch.arange(done, ready, device=part.device).split(_ROWS):
            strip = held[:, rows.before[some] - start].lerp(held[:, rows.after[some] - start], rows.share[some, None])
            yield strip[..., columns.before].lerp(strip[..., columns.after], columns.share)
        done = ready
        first = min(int(rows.before[done]), end) if done < wanted[0] else end  # which may be further below
        held, start = held[:, first - start :].clone(), first
