"""Labels of an image of any size, as mmsegmentation predicts them: whole or in tiles, at several sizes, mirrored.

Logits are resized twice: to what the network saw, then to the image's own size; both with the network's corners. Tiles
are moved inside at the border, and their logits, not probabilities, are summed and divided by counts. Memory is that of
one row of tiles: rows that no further tile touches are resized, decided and let go.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._modes import modes_restored
from lookfar.networks.preprocessing import Inference, Preprocessing
from lookfar.networks.resizing import resized_bands

Size = tuple[int, int]


def predict(
    network: nn.Module,
    image: Tensor,
    *,
    tile: Size | None = None,
    stride: Size | None = None,
    whole: bool = False,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Labels of an image, at its own size.

    Args:
        network: With what surrounds it, ``preprocessing`` and ``inference``, such as :func:`create_network`,
            :func:`from_checkpoint`, :func:`from_pretrained` and ``lookfar.study.load_trial`` give it. It is used in
            eval, on its own device, and left as it was.
        image: ``(C, H, W)``, uint8, RGB.
        tile: Height and width of tiles; by default as the network has it.
        stride: From a tile to the next; by default two thirds of ``tile``.
        whole: The whole image at once, where the network has tiles.
        scales: Predict at so many times the network's size, and take the mean of the probabilities; so many class maps
            of the image's own size are kept meanwhile.
        flip: Predict the mirrored image too.

    Returns:
        ``(H, W)`` on the CPU, uint8; int32 where there are more than 256 classes.

    Raises:
        ValueError: An image of other bands or numbers, a network that gives no logits of its input's size, options that
            contradict each other.

    >>> from lookfar.networks import create_network
    >>> image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    >>> predict(create_network("cgnet_camvid"), image, tile=(32, 32)).shape
    torch.Size([50, 70])
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or not image.numel():
        raise ValueError(f"want an image (C, H, W) of uint8, got {tuple(image.shape)} of {image.dtype}")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, got {tuple(scales)}")
    plan = tiles_of(network, tile, stride, whole=whole)
    passes = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    with modes_restored(network), torch.no_grad():
        network.eval()
        if len(passes) == 1:
            return _decided(_logits(network, image, plan, *passes[0]), image.shape[1:])
        total: Tensor | None = None
        for scale, mirrored in passes:
            top = 0
            for strip in _logits(network, image, plan, scale, mirrored):
                if total is None:
                    total = strip.new_zeros(len(strip), *image.shape[1:])
                total[:, top : top + strip.shape[1]] += strip.softmax(0)
                top += strip.shape[1]
        assert total is not None
        return _decided(iter(total.split(32, 1)), image.shape[1:])


def tiles_of(network: nn.Module, tile: Size | None, stride: Size | None, *, whole: bool = False) -> Inference:
    """What is asked for, or what the network has."""
    own: Inference = getattr(network, "inference", None) or Inference()
    if whole and (tile or stride):
        raise ValueError("whole and tiles exclude each other")
    if whole:
        return Inference()
    tile = tile or own.tile
    if tile is None and stride is not None:
        raise ValueError(f"a stride of {stride} is one of tiles: give their size")
    if tile is not None and stride is None:
        stride = own.stride if tile == own.tile else (max(2 * tile[0] // 3, 1), max(2 * tile[1] // 3, 1))
    return Inference(tile, stride)


def _decided(strips: Iterator[Tensor], size: Sequence[int]) -> Tensor:
    """The class with the largest logit, strip by strip."""
    labels, top = torch.empty(0), 0
    for strip in strips:
        if not top:
            labels = torch.empty(tuple(size), dtype=torch.uint8 if len(strip) <= 256 else torch.int32)
        labels[top : top + strip.shape[1]] = strip.argmax(0).cpu()
        top += strip.shape[1]
    return labels


def _logits(network: nn.Module, image: Tensor, plan: Inference, scale: float, mirrored: bool) -> Iterator[Tensor]:
    """Logits at the image's own size, from top to bottom, ``(K, n, W)``."""
    around: Preprocessing = getattr(network, "preprocessing", None) or Preprocessing()
    seen = around.resized(image, scale)
    if mirrored:
        seen = seen.flip(-1)
    h, w = seen.shape[1:]
    bands = _tiled(network, seen, plan.tile, plan.stride) if plan.tile and plan.stride else _whole(network, seen)
    if mirrored:
        bands = (band.flip(-1) for band in bands)
    corners = bool(getattr(network, "align_corners", False))
    yield from resized_bands(bands, (h, w), tuple(image.shape[1:]), align_corners=corners)  # type: ignore[arg-type]


def _whole(network: nn.Module, seen: Tensor) -> Iterator[Tensor]:
    yield _run(network, seen)


def _tiled(network: nn.Module, seen: Tensor, tile: Size, stride: Size) -> Iterator[Tensor]:
    """Rows of tiles, without the rows that the next row of tiles touches too; each is gone when the next is wanted."""
    h, w = seen.shape[1:]
    height, width = min(tile[0], h), min(tile[1], w)
    tops, lefts = _starts(h, height, stride[0]), _starts(w, width, stride[1])
    rows, columns = _counts(tops, height, h), _counts(lefts, width, w)
    band: Tensor | None = None  # of one row of tiles; the next takes its place
    before = 0
    for top, following in pairwise([*tops, h]):
        fresh = True
        for left in lefts:
            logits = _run(network, seen[:, top : top + height, left : left + width])
            if band is None:
                band = logits.new_zeros(len(logits), height, w)
            elif fresh:
                shared = band[:, top - before :].clone()  # sums of the rows that both rows of tiles touch
                band[:, : shared.shape[1]] = shared
                band[:, shared.shape[1] :] = 0
                del shared
            fresh = False
            band[..., left : left + width] += logits
            del logits
        assert band is not None
        finished = band[:, : following - top]
        finished /= rows[top:following, None].to(band) * columns.to(band)
        yield finished
        before = top


def _starts(size: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin: the last one is moved inside."""
    count = max(size - tile + stride - 1, 0) // stride + 1
    return [min(n * stride, size - tile) for n in range(count)]


def _counts(starts: Sequence[int], tile: int, size: int) -> Tensor:
    """How many tiles cover each position."""
    counts = torch.zeros(size)
    for start in starts:
        counts[start : start + tile] += 1
    return counts


def _run(network: nn.Module, seen: Tensor) -> Tensor:
    """Logits ``(K, h, w)`` of ``(C, h, w)`` uint8."""
    around: Preprocessing = getattr(network, "preprocessing", None) or Preprocessing()
    some = next(iter(network.parameters()), torch.empty(0))
    images = around(seen.to(some.device)[None]).to(some.dtype)
    output: Any = network(images)
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:] != seen.shape[1:]:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"want a network that gives logits (1, K, {seen.shape[1]}, {seen.shape[2]}), got {got}")
    return output[0]
