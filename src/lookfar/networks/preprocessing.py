"""What surrounds a published network: what an image goes through before, and how one of any size is predicted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lookfar.networks.resizing import fitted, resize_bytes


@dataclass(frozen=True)
class Preprocessing:
    """Values of 0 .. 255 in RGB order into what a network was trained on: ``(image - mean) / std``.

    Attributes:
        mean: Of the channels, in the network's order.
        std: Of the channels, in the network's order.
        bgr: The network was trained on blue, green, red; the channels are exchanged first.
        peak: What 255 becomes before the mean is subtracted: 255, or 1 where mean and std are shares.
        within: Longer and shorter side that images are brought within, their ratio kept, as mmsegmentation's ``scale``;
            None leaves them as they are.
        size: Height and width that all images are brought to, antialiased, as data sets of ours do it.

    >>> images = torch.full((1, 3, 2, 2), 124, dtype=torch.uint8)
    >>> Preprocessing(mean=(124.0, 114.0, 104.0), std=(1.0, 10.0, 20.0))(images)[0, :, 0, 0]
    tensor([0., 1., 1.])
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    bgr: bool = False
    peak: float = 255.0
    within: tuple[int, int] | None = None
    size: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` or ``(C, H, W)``, integers or floats of 0 .. 255, into floats."""
        if images.shape[-3] != len(self.mean):
            raise ValueError(f"want images of {len(self.mean)} bands, got {tuple(images.shape)}")
        floats = images if images.is_floating_point() else images.float()
        if self.peak != 255:
            floats = floats * (self.peak / 255)
        mean, std = (
            torch.tensor(v, dtype=floats.dtype, device=floats.device)[:, None, None] for v in (self.mean, self.std)
        )
        return ((floats.flip(-3) if self.bgr else floats) - mean) / std

    def resized(self, image: Tensor, scale: float = 1.0) -> Tensor:
        """``(C, H, W)`` uint8 at the size that the network sees.

        Args:
            image: ``(C, H, W)``, uint8.
            scale: Larger or smaller than that, for predictions at several sizes.

        >>> Preprocessing(within=(2048, 512)).resized(torch.zeros(3, 333, 500, dtype=torch.uint8)).shape
        torch.Size([3, 512, 769])
        """
        height, width = image.shape[1:]
        if self.size is not None:
            from torchvision.transforms import v2

            wanted = tuple(max(int(side * scale + 0.5), 1) for side in self.size)
            return image if wanted == (height, width) else v2.functional.resize(image, list(wanted), antialias=True)
        if self.within is not None:
            longer, shorter = (int(side * scale) for side in self.within)
            wanted = fitted((height, width), max(longer, 1), max(shorter, 1))
        else:
            wanted = (max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1))
        return resize_bytes(image, wanted)


@dataclass(frozen=True)
class Inference:
    """How an image of any size is predicted, and what the labels of the network's data set are in their files.

    Attributes:
        tile: Height and width of the tiles that the network sees, side by side; None for the whole image at once.
        stride: From a tile to the next.
        reduce_zero_label: In the files 0 is no class and 1 is class 0, as in ADE20K.

    >>> Inference(tile=(769, 769), stride=(513, 513))
    Inference(tile=(769, 769), stride=(513, 513), reduce_zero_label=False)
    """

    tile: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if (self.tile is None) != (self.stride is None):
            raise ValueError(f"a tile and its stride come together, got tile={self.tile} and stride={self.stride}")
        if self.tile is not None and self.stride is not None:
            if min(*self.tile, *self.stride) < 1:
                raise ValueError(f"tile and stride must be positive, got {self.tile} and {self.stride}")
            if self.stride[0] > self.tile[0] or self.stride[1] > self.tile[1]:
                raise ValueError(
                    f"a stride of {self.stride} leaves gaps between tiles of {self.tile}: want that or less"
                )
