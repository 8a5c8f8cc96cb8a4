"""What a network sees of an image that has one label: a random crop in training, its middle in validation.

Images keep the shape of their files until here. A box of an image is resized as if the whole image had been and the box
were cut out of it, as torchvision's ``Resize`` and ``CenterCrop`` do one after the other, but at the cost of the box.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lookfar.data._base import Sample

USUAL = 224  # pixels a side: what backbones are trained with, and what larger images are seen at
CROP = 0.875  # of the shorter side, seen in validation where the host does not say it
KEPT = 2  # times the size: what is kept in memory of a larger image, enough for the smallest crop
AREA, AREA_OF_SMALL = (
    0.35,
    0.7,
)  # the smallest crop; where all images have the size of the network there is less to spare

Box = tuple[float, float, float, float]  # top, left, height, width, in pixels


def resize_box(image: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """A box of an image ``(C, h, w)``, uint8, at ``size``, antialiased: ``(C, H, W)``."""
    top, left, height, width = box
    if box == (0, 0, *image.shape[-2:]) and size == tuple(image.shape[-2:]):
        return image
    corners = (left, top, min(left + width, image.shape[2]), min(top + height, image.shape[1]))
    pixels = image.permute(1, 2, 0).numpy()
    bands = [pixels] if pixels.shape[-1] == 3 else [pixels[..., band] for band in range(pixels.shape[-1])]
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(band)).resize((size[1], size[0]), Image.Resampling.BILINEAR, corners)
        )
        for band in bands
    ]
    found = np.stack(resized, -1) if len(resized) > 1 or resized[0].ndim == 2 else resized[0].copy()
    return torch.from_numpy(found).permute(2, 0, 1)


def middle(image: Tensor, size: tuple[int, int], share: float = 1.0) -> Tensor:
    """The middle of an image ``(C, h, w)`` at ``size``: ``share`` of its height or width, whichever is the narrower."""
    h, w = image.shape[-2:]
    scale = min(h / size[0], w / size[1]) * share
    height, width = scale * size[0], scale * size[1]
    return resize_box(image, ((h - height) / 2, (w - width) / 2, height, width), size)


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image of which height or width is ``size``, and the other more; smaller images as they are."""
    h, w = image.shape[-2:]
    factor = min(h / size[0], w / size[1])
    if factor <= 1:
        return image
    return resize_box(image, (0, 0, h, w), (round(h / factor), round(w / factor)))


@dataclass(frozen=True)
class RandomCrop:
    """A random part of an image at the size that the network sees, mirrored or not.

    Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6, with less taken away, since studies are short.
    Parts that would stick out of a long image are cut off where it ends.

    Attributes:
        size: Height and width of the result.
        area: The smallest part, as a share of the image.
        stretch: Height and width of a part change by up to this factor against each other.
        flip: Probability of a horizontal flip.
    """

    size: tuple[int, int]
    area: float = 0.35
    stretch: float = 4 / 3
    flip: float = 0.5

    def __call__(self, image: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Sample:
        part, ratio, top, left, flip = torch.rand(5, generator=generator).tolist()
        h, w = image.shape[-2:]
        part = self.area + part * (1 - self.area)
        ratio = math.exp((2 * ratio - 1) * math.log(self.stretch)) * self.size[0] / self.size[1]
        height, width = min(math.sqrt(part * h * w * ratio), h), min(math.sqrt(part * h * w / ratio), w)
        view = resize_box(image, (top * (h - height), left * (w - width), height, width), self.size)
        return (view.flip(-1) if flip < self.flip else view), target


@dataclass(frozen=True)
class Views:
    """What is seen of the images of a data set.

    Attributes:
        size: Height and width.
        train: Of what is kept of an image.
        kept: What is kept of an image for training.
        val: Of an image in validation.
        lines: The same in words.
    """

    size: tuple[int, int]
    train: RandomCrop
    kept: Callable[[Tensor], Tensor]
    val: Callable[[Tensor], Tensor]
    lines: list[str]


def choose_views(
    sizes: Collection[tuple[int, int]], size: tuple[int, int] | None, crop: float | None, flip: bool
) -> Views:
    """What is seen of images of these sizes.

    Args:
        sizes: Heights and widths, upright.
        size: What the network sees; by default the one that all images have, as far as :data:`USUAL`, else a square of
            their median shorter side, 32 to :data:`USUAL`.
        crop: Share of the shorter side that validation sees of images of another size.
        flip: Whether training sees mirror images too.
    """
    distinct, note = set(sizes), ""
    if size is None and len(distinct) == 1 and max(max(distinct)) <= USUAL:
        (size,) = distinct
    elif size is None:
        side = min(max(32, round(median(map(min, sizes)) / 32) * 32), USUAL)
        size, note = (side, side), " (--size changes it)"
    whole = distinct == {size}
    share = 1.0 if whole else CROP if crop is None else crop
    area, mirrored = AREA_OF_SMALL if whole else AREA, " and mirror images" if flip else ""
    lines = [f"training sees random crops, {area:.0%} to 100% of the area{mirrored}.".replace("%", " %")]
    if not whole:
        (low, high) = min(distinct, key=math.prod), max(distinct, key=math.prod)
        before = f"{low[0]}×{low[1]}" + ("" if low == high else f" to {high[0]}×{high[1]}")
        lines.insert(
            0,
            f"images of {before} are seen at {size[0]}×{size[1]}{note}, in validation their middle, "
            f"{100 * share:.3g} % of the shorter side.",
        )
    train = RandomCrop(size, area, 1.0 if whole else 4 / 3, 0.5 if flip else 0.0)
    kept = partial(shrunk, size=(KEPT * size[0], KEPT * size[1]))
    return Views(size, train, kept, partial(middle, size=size, share=share), lines)
