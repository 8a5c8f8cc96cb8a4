"""Random changes of training samples, drawn from a generator and applied by torchvision's transforms v2."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from lookfar.data._base import Sample

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
