"""The convolution control: what a block's parameters achieve without looking far."""

import math
from typing import Any

from torch import Tensor, nn


class ConvControl(nn.Module):
    """A residual branch of plain convolutions, which every block in a study is compared with at equal parameters.

    x + BN(conv1x1(ReLU(conv3x3(ReLU(conv1x1(x)))))), with the last BN weight 0: it starts as the identity.

    Args:
        channels: Channels C of input and output.
        width: Channels between the convolutions; :func:`control_of` finds it from a number of parameters.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``
    """

    def __init__(self, channels: int, width: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if channels < 1 or width < 1:
            raise ValueError(f"channels and width must be positive, got {channels=}, {width=}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, width, 1, **dd)
        self.mix = nn.Conv2d(width, width, 3, padding=1, **dd)
        self.expand = nn.Conv2d(width, channels, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(channels, **dd)
        self.act = nn.ReLU()
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.reduce(x))  # (B, width, H, W)
        y = self.act(self.mix(y))
        return x + self.norm(self.expand(y))


def control_of(channels: int, parameters: int, *, device: Any = None, dtype: Any = None) -> ConvControl:
    """The control whose number of parameters is nearest to ``parameters``; the smallest one where that is less.

    >>> control = control_of(64, parameters=10_000)
    >>> sum(p.numel() for p in control.parameters())
    10199
    """
    if parameters < 0:
        raise ValueError(f"a number of parameters cannot be negative, got {parameters}")

    def count(width: int) -> int:
        return 9 * width**2 + (2 * channels + 2) * width + 2 * channels

    # the root of count(width) == parameters; its neighbours decide
    half = (channels + 1) / 9
    root = math.sqrt(max(half**2 + (parameters - 2 * channels) / 9, 0.0)) - half
    widths = [max(math.floor(root), 1), max(math.ceil(root), 1)]
    width = min(widths, key=lambda w: abs(count(w) - parameters))
    return ConvControl(channels, width, device=device, dtype=dtype)
