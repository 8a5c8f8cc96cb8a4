"""RAM's glimpse: a few windows about one place of the map, the wider the coarser, read as one vector.

Traps: a location has no gradient (it is a choice, see ``hard_attention``); coarse windows average the zeros outside.
"""

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.ops.sampling import glimpse_sensor


@block(
    "glimpse",
    title="Glimpse (RAM)",
    paper="Recurrent Models of Visual Attention (NeurIPS 2014)",
    arxiv="1406.6247",
    formula=(r"y = \text{ReLU}(W_3\,\text{ReLU}(W_1\,\rho(x, l) + b_1) + b_3 + W_4\,\text{ReLU}(W_2\,l + b_2) + b_4)",),
    family="where",
    kind="layer",
    complexity="K S^2 C",
    memory="K S^2 C",
    verified=(
        "kevinzakka/recurrent-visual-attention@a38ac895:modules.py (the sensor, on square images)",
        "equations, float64 loop (the authors published no code)",
    ),
    attends="none",
    residual=False,
    aliases=("ram",),
    differences=(
        "The most widely read code uses the height for both coordinates; here x goes with the width.",
        "Non-integer scale factors are refused: the code drops what does not divide.",
    ),
    author_keys={
        r"(?:sensor\.)?fc1": "what.0",
        r"(?:sensor\.)?fc3": "what.2",
        r"(?:sensor\.)?fc2": "where.0",
        r"(?:sensor\.)?fc4": "where.2",
    },
)
class Glimpse(nn.Module):
    """What is seen at a place, and where that was, in one vector; its cost does not depend on the map's size.

    y = relu(W_3 relu(W_1 rho(x, l) + b_1) + b_3 + W_4 relu(W_2 l + b_2) + b_4)

    Args:
        channels: Channels C of the map.
        kernel_size: Side S of the windows in cells.
        scales: Number K of windows.
        scale_factor: Each window is so many times wider than the one before, and so many times coarser.
        out_channels: Length of the vector; None gives the sensor's windows rho alone, ``(B, K C, S, S)``.
        inner_channels: Width of what and of where before they are joined.

    Shape: ``(B, C, H, W)[, (B, 2)] -> (B, out_channels)``; the location (x, y) in [-1, 1] is the centre by default.

    Example:
        >>> block = Glimpse(16)
        >>> block(torch.randn(2, 16, 6, 5), torch.randn(2, 2)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 8,
        scales: int = 3,
        scale_factor: int = 2,
        out_channels: int | None = 256,
        inner_channels: int = 128,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size, self.scales, self.scale_factor = kernel_size, scales, scale_factor
        self.what = self.where = None
        if out_channels is not None:
            seen = scales * channels * kernel_size**2
            self.what = nn.Sequential(
                nn.Linear(seen, inner_channels, **dd), nn.ReLU(), nn.Linear(inner_channels, out_channels, **dd)
            )
            self.where = nn.Sequential(
                nn.Linear(2, inner_channels, **dd), nn.ReLU(), nn.Linear(inner_channels, out_channels, **dd)
            )

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """A map and a location in it."""
        return torch.randn(batch, self.channels, *size), torch.rand(batch, 2) * 1.6 - 0.8

    def forward(self, x: Tensor, location: Tensor | None = None) -> Tensor:
        location = x.new_zeros(x.shape[0], 2) if location is None else location
        windows = glimpse_sensor(
            x, location, kernel_size=self.kernel_size, scales=self.scales, scale_factor=self.scale_factor
        )
        if self.what is None or self.where is None:
            return windows
        return (self.what(windows.flatten(1)) + self.where(location.detach().to(x.dtype))).relu()
