"""The convolution control: what a block's parameters achieve without looking far."""

import math
from typing import Any

from torch import Tensor, nn

from lookfar.blocks._layers import BATCH_NORM, CONV, Dims, added


class ConvControl(nn.Module):
    """A residual branch of plain convolutions, which every block in a study is compared with at equal parameters.

    x + BN(conv1x1(ReLU(conv3x3(ReLU(conv1x1(x)))))), with the last BN weight 0: it starts as the identity.

    Args:
        channels: Channels C of input and output.
        width: Channels between the convolutions; :func:`control_of` finds it from a number of parameters.
        dims: Axes of the maps.
        kernel_size: Of the convolution in the middle; 1 where positions have no neighbours, as the points of a cloud.
        residual: Add the input; off, the branch alone, its last BN as it comes: a mixer of tokens.

    Shape: ``(B, C, *S) -> (B, C, *S)``
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        dims: Dims = 2,
        kernel_size: int = 3,
        residual: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if channels < 1 or width < 1:
            raise ValueError(f"channels and width must be positive, got {channels=}, {width=}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.reduce = CONV[dims](channels, width, 1, **dd)
        self.mix = CONV[dims](width, width, kernel_size, padding=kernel_size // 2, **dd)
        self.expand = CONV[dims](width, channels, 1, bias=False, **dd)
        self.norm = BATCH_NORM[dims](channels, **dd)
        self.act = nn.ReLU()
        self.residual = residual
        if residual:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.reduce(x))  # (B, width, *S)
        y = self.act(self.mix(y))
        return added(self, x, self.norm(self.expand(y)))


def control_of(
    channels: int,
    parameters: int,
    *,
    dims: Dims = 2,
    kernel_size: int = 3,
    residual: bool = True,
    device: Any = None,
    dtype: Any = None,
) -> ConvControl:
    """The control whose number of parameters is nearest to ``parameters``; the smallest one where that is less.

    >>> control = control_of(64, parameters=10_000)
    >>> sum(p.numel() for p in control.parameters())
    10199
    """
    if parameters < 0:
        raise ValueError(f"a number of parameters cannot be negative, got {parameters}")

    mixing = kernel_size**dims

    def count(width: int) -> int:
        return mixing * width**2 + (2 * channels + 2) * width + 2 * channels

    # the root of count(width) == parameters; its neighbours decide
    half = (channels + 1) / mixing
    root = math.sqrt(max(half**2 + (parameters - 2 * channels) / mixing, 0.0)) - half
    widths = [max(math.floor(root), 1), max(math.ceil(root), 1)]
    width = min(widths, key=lambda w: abs(count(w) - parameters))
    options: dict[str, Any] = {"dims": dims, "kernel_size": kernel_size, "residual": residual}
    return ConvControl(channels, width, **options, device=device, dtype=dtype)
