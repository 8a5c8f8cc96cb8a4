"""CARAFE: upsampling with a kernel of its own for every output pixel, predicted from the content around its source.

Traps: the softmax is over the k^2 cells of a group, not over all groups' cells; cells outside the map are left out
after it, so that kernels at the border sum to less than 1; what is summed is the input, not the compressed map.
"""

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.ops._layout import match_format, plain
from lookfar.ops._precision import softmax, widened
from lookfar.ops._window import Window
from lookfar.ops.carafe import reassemble
from lookfar.ops.neighborhood import rows_of_cells


@block(
    "carafe",
    title="CARAFE: content-aware reassembly of features",
    paper="CARAFE: Content-Aware ReAssembly of FEatures (ICCV 2019)",
    arxiv="1905.02188",
    formula=(
        r"y_i = \sum_{j \in \text{window}(i')} w_{ij}\,x_j, \quad i' = \lfloor i / s \rfloor",
        r"w_{ij} = \text{softmax}_j(\text{conv}_{e \times e}(W x))_{ij}",
    ),
    family="local",
    kind="upsampler",
    complexity="N (C D + D e^2 s^2 k^2 + s^2 k^2 C)",
    memory="N s^2 (C + G k^2)",
    verified=(
        "myownskyW7/CARAFE@aae8999:carafe/carafe.py",
        "myownskyW7/CARAFE@aae8999:carafe/src/cuda/carafe_naive_cuda_kernel.cu",
    ),
    attends="weights",
    residual=False,
    aliases=("carafe_pack",),
    author_keys={"channel_compressor": "compressor", "content_encoder": "encoder"},
)
class Carafe(nn.Module):
    """Enlarges a map by s; every output pixel is a weighted mean of the k x k window around its source pixel.

    y_i = sum_{j in window(i')} w_ij x_j, i' = floor(i / s), w = softmax_j(conv_{e x e}(W x))

    Args:
        scale_factor: Whole factor s of height and width.
        kernel_size: Odd extent k of the window, in the small map (``up_kernel``).
        groups: Groups G of channels with kernels of their own (``up_group``).
        encoder_kernel: Odd extent e of the convolution that predicts the kernels.
        encoder_dilation: Dilation of that convolution.
        compressed_channels: Width D of the map that it sees.

    Shape: ``(B, C, H, W) -> (B, C, sH, sW)``

    Raises:
        ValueError: Even kernels, ``groups`` that do not divide ``channels``, a factor below 1.

    Example:
        >>> block = Carafe(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 12, 10])
    """

    def __init__(
        self,
        channels: int,
        *,
        scale_factor: int = 2,
        kernel_size: Odd = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        if (encoder_kernel - 1) * encoder_dilation % 2:
            raise ValueError(f"encoder_kernel must be odd to keep the map's size, got {encoder_kernel}")
        divides("groups", groups, channels=channels)
        self.scale_factor, self.kernel_size, self.groups = scale_factor, kernel_size, groups
        self.compressor = nn.Conv2d(channels, compressed_channels, 1, **dd)
        self.encoder = nn.Conv2d(
            compressed_channels,
            kernel_size**2 * groups * scale_factor**2,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
            **dd,
        )
        nn.init.xavier_uniform_(self.compressor.weight)
        nn.init.normal_(self.encoder.weight, std=0.001)  # nearly uniform kernels: a box mean, enlarged
        for conv in (self.compressor, self.encoder):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return match_format(reassemble(x, self._cells(x), self.scale_factor), x)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, G, Q, N)`` of the flat output positions ``(Q,)``, of all s^2 N when None."""
        (H, W), s = x.shape[2:], self.scale_factor
        at = torch.arange(s * s * H * W, device=x.device)
        at = at if queries is None else at[queries]
        y, column = at // (s * W), at % (s * W)
        source = y // s * W + column // s
        cells = self._cells(x).flatten(4)[:, :, :, y % s * s + column % s, source]  # (B, G, k^2, Q)
        return rows_of_cells(cells, source, (H, W), Window((self.kernel_size, self.kernel_size), border="zeros"))

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, G, N, C/G)``: the input itself."""
        return x.unflatten(1, (self.groups, -1)).flatten(3).transpose(2, 3)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the input and the weighted sums ``(B, G, s^2 N, C/G)``."""
        size = [self.scale_factor * n for n in x.shape[2:]]
        return match_format(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, size).to(x.dtype), x)

    def _cells(self, x: Tensor) -> Tensor:
        """Kernels of the s^2 subpixels, ``(B, G, k^2, s^2, H, W)``; softmax over cells needs no shuffled copy."""
        t = plain(self.encoder(self.compressor(x)))
        return softmax(widened(t.unflatten(1, (self.groups, self.kernel_size**2, -1))), 2)
