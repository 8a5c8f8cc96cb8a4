"""A host whose labels only a map that depends on the query can tell, or only the mean of the values can."""

import torch
from torch import Tensor, nn


class Pointer(nn.Module):
    """Features of an image: what it asks for (R), what is a source (G), what the source holds (B)."""

    place = "stem"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = Features()
        self.head = nn.Conv2d(6, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class Features(nn.Module):
    """``(B, 3, H, W)`` to six channels: asks, answers to, is a source, holds, one, and an empty one for the block."""

    def forward(self, x: Tensor) -> Tensor:
        asks, source, holds = ((x > 0).to(x.dtype) * 2 - 1).unbind(1)
        source = (source + 1) / 2
        one = torch.ones_like(asks)
        return torch.stack([asks, asks * source, source, holds * source, one, 0 * one], 1)


def build(classes: int) -> Pointer:
    return Pointer(classes)
