"""Random changes of training samples, drawn from a generator and applied by torchvision's transforms v2."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from lookfar.data._base import IGNORE, Sample

# by pixel centres, as the image: NEAREST, which transforms v2 takes for masks of itself, is off by up to half a pixel
EXACT = v2.InterpolationMode.NEAREST_EXACT


def resize(image: Tensor, mask: Tensor, size: tuple[int, int]) -> Sample:
    """Image antialiased, mask by its nearest pixel."""
    image = v2.functional.resize(image, list(size), antialias=True)
    return image, v2.functional.resize(mask[None], list(size), interpolation=EXACT)[0]


@dataclass(frozen=True)
class RandomView:
    """A random crop scaled back to full size, a flip, and for colour images a light change of colours.

    Attributes:
        scale: The largest magnification; 1 crops nothing.
        flip: Probability of a horizontal flip.
        jitter: Brightness, contrast and saturation change by a factor in ``[1 - jitter, 1 + jitter]`` (RGB only).
    """

    scale: float = 1.5
    flip: float = 0.5
    jitter: float = 0.2

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Sample:
        zoom, top, left, flip, *colour = torch.rand(7, generator=generator).tolist()
        H, W = image.shape[-2:]
        zoom = 1 + zoom * (self.scale - 1)
        height, width = max(round(H / zoom), 1), max(round(W / zoom), 1)
        top, left = round(top * (H - height)), round(left * (W - width))
        view, labels = (t[..., top : top + height, left : left + width] for t in (image, mask))
        view, labels = resize(view, labels, (H, W))
        if flip < self.flip:
            view, labels = v2.functional.horizontal_flip(view), v2.functional.horizontal_flip(labels)
        if self.jitter and len(image) == 3:
            changes = (v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation)
            for change, u in zip(changes, colour):
                view = change(view, 1 + self.jitter * (2 * u - 1))
        return view, labels


@dataclass(frozen=True)
class ScaledCrop:
    """What mmsegmentation does to training images: scale, crop, flip, photometric distortion.

    Of up to eleven crops the first is taken in which no class has more than ``most`` of the labelled pixels and two are
    there; what a small image lacks is mean grey and void. Colours are distorted as SSD does it: brightness by up to 32
    levels, contrast and saturation by half to one and a half, hue by up to a tenth of the circle, each by chance.

    Attributes:
        size: Height and width of the crop.
        scale: Smallest and largest magnification of the image.
        most: Largest share of one class.
        flip: Probability of a horizontal flip.
        distort: Whether colours are distorted (RGB only).
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    most: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Sample:
        def drawn() -> float:
            return float(torch.rand((), generator=generator))

        magnified = self.scale[0] + drawn() * (self.scale[1] - self.scale[0])
        height, width = (max(int(side * magnified + 0.5), 1) for side in mask.shape)
        image = v2.functional.resize(image, [height, width], antialias=False)
        mask = v2.functional.resize(mask[None], [height, width], interpolation=EXACT)[0]
        top = left = 0
        labels = mask
        for _ in range(11):
            top = int(drawn() * (max(height - self.size[0], 0) + 1))
            left = int(drawn() * (max(width - self.size[1], 0) + 1))
            labels = mask[top : top + self.size[0], left : left + self.size[1]]
            counts = torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:IGNORE]
            if (counts > 0).sum() > 1 and counts.max() < self.most * counts.sum():
                break
        view = image[:, top : top + self.size[0], left : left + self.size[1]]
        if drawn() < self.flip:
            view, labels = view.flip(-1), labels.flip(-1)
        if self.distort and len(view) == 3:
            view = _distorted(view, drawn)
        return _padded(view, labels, self.size)


def _padded(image: Tensor, mask: Tensor, size: tuple[int, int]) -> Sample:
    """At the right and below, with what is nearly zero once it is normalised, and void."""
    if mask.shape == size:
        return image.contiguous(), mask.contiguous()
    grey = torch.tensor([124, 116, 104] if len(image) == 3 else [114] * len(image), dtype=image.dtype)
    whole = grey[:, None, None].repeat(1, *size)
    void = torch.full(size, IGNORE, dtype=mask.dtype)
    whole[:, : mask.shape[0], : mask.shape[1]], void[: mask.shape[0], : mask.shape[1]] = image, mask
    return whole, void


def _distorted(image: Tensor, drawn: Callable[[], float]) -> Tensor:
    """Brightness, contrast, saturation, hue, in SSD's order; contrast comes second or last."""
    pixels = image.float()
    brightness, contrast, saturation, hue = (drawn() < 0.5 for _ in range(4))
    last = drawn() < 0.5
    factor = 0.5 + drawn()
    if brightness:
        pixels = (pixels + 64 * drawn() - 32).clamp(0, 255)
    if contrast and not last:
        pixels = (pixels * factor).clamp(0, 255)
    if saturation:  # of the colour solid HSV: its value stays
        value, least = pixels.amax(0), pixels.amin(0)
        most = value / (value - least).clamp(min=1e-6)
        pixels = value - (value - pixels) * (torch.tensor(0.5 + drawn())).minimum(most)
    if hue:
        pixels = 255 * v2.functional.adjust_hue(pixels / 255, 0.2 * drawn() - 0.1)
    if contrast and last:
        pixels = (pixels * factor).clamp(0, 255)
    return pixels.round().clamp(0, 255).to(torch.uint8)
