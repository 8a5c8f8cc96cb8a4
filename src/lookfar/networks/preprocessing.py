"""What an image goes through before a published network sees it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Values of 0 .. 255 in RGB order into what a network was trained on: ``(image - mean) / std``.

    Attributes:
        mean: Of the channels, in the network's order.
        std: Of the channels, in the network's order.
        bgr: The network was trained on blue, green, red; the channels are exchanged first.

    >>> images = torch.full((1, 3, 2, 2), 124, dtype=torch.uint8)
    >>> Preprocessing(mean=(124.0, 114.0, 104.0), std=(1.0, 10.0, 20.0))(images)[0, :, 0, 0]
    tensor([0., 1., 1.])
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    bgr: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` or ``(C, H, W)``, integers or floats, into floats."""
        if images.shape[-3] != len(self.mean):
            raise ValueError(f"want images of {len(self.mean)} bands, got {tuple(images.shape)}")
        floats = images if images.is_floating_point() else images.float()
        mean, std = (
            torch.tensor(v, dtype=floats.dtype, device=floats.device)[:, None, None] for v in (self.mean, self.std)
        )
        return ((floats.flip(-3) if self.bgr else floats) - mean) / std
