"""IGC: two grouped convolutions whose groups interleave, so that every output sees every input.

Traps: L counts the groups of the spatial convolution, M channels each; the 1x1 convolution has M groups of L channels,
one from each of the first. There is no activation between the two: together they are one convolution.
"""

import math

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Norm, Placement, activated, normed
from lookfar.ops._layout import match_format


@block(
    "interleaved_group_convolution",
    title="Interleaved group convolution (IGC)",
    paper="Interleaved Group Convolutions for Deep Neural Networks (ICCV 2017)",
    arxiv="1707.02725",
    formula=(r"y = P\,W_d\,P^\top W_p\,x",),
    family="local",
    kind="layer",
    complexity="N (k^2 M C + L O)",
    memory="N (C + O)",
    verified=("equations, float64 loop",),
    attends="none",
    residual=False,
    aliases=("igc", "igcv1", "igcnet"),
    differences=(
        "The paper keeps the number of channels; out_channels gives the 1x1 convolution's groups another width.",
        "In the paper's networks a batch norm and a ReLU follow; here the layer is the two convolutions alone, and"
        " norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU adds them.",
    ),
)
class InterleavedGroupConvolution(nn.Module):
    """Replaces a k x k convolution by two sparse ones: a spatial one within L groups, a pointwise one across them.

    y = P W_d P^T W_p x

    W_p is a k x k convolution in L groups of M channels, P^T makes group m of the m-th channels of
    all L, W_d is a 1x1 convolution in those M groups, and P puts the channels back. L = 1 is nearly a regular
    convolution (a factor a channel follows it), L = C is a depthwise one and a full 1x1 convolution, as in Xception.

    Args:
        channels: Channels C = L M of the input.
        out_channels: Channels O of the output, M must divide them; as many as the input has when None.
        kernel_size: Odd extent k of the spatial convolution.
        stride: Of the spatial convolution.
        dilation: Of the spatial convolution.
        groups: L; None takes the largest number that divides C up to the k sqrt(C) of the paper's condition L = k^2 M,
            under which a layer of so many parameters is widest.
        bias: On the second convolution.
        norm_layer: After the second convolution.
        act_layer: After the normalisation.

    Shape: ``(B, C, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))``

    Raises:
        ValueError: ``groups`` does not divide ``channels``, M does not divide ``out_channels``, an even kernel.

    Example:
        >>> import torch
        >>> block = InterleavedGroupConvolution(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: Odd = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int | None = None,
        bias: bool = False,
        norm_layer: Norm | None = None,
        act_layer: Norm | None = None,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        if groups is None:
            groups = largest_divisor(math.isqrt(kernel_size**2 * channels), channels)
        divides("groups", groups, channels=channels)
        width = channels // groups
        out = channels if out_channels is None else out_channels
        if out % width:
            raise ValueError(f"out_channels must be a multiple of channels / groups = {width}, got {out}")
        self.groups = groups
        self.spatial = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
            **dd,
        )
        self.pointwise = nn.Conv2d(channels, out, 1, groups=width, bias=bias, **dd)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(out, **dd)
        self.act = nn.Identity() if act_layer is None else act_layer()

    def forward(self, x: Tensor) -> Tensor:
        y = _interleaved(self.spatial(x), self.groups)
        y = _interleaved(self.pointwise(y), x.shape[1] // self.groups)
        return match_format(activated(self.act, normed(self.norm, y)), x)


def _interleaved(x: Tensor, groups: int) -> Tensor:
    """The first channels of all groups, then the second ones, and so on: P^T of L groups, P of M groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
