"""PSPNet and DeepLabV3: context from fixed regions and fixed distances, the reference points of every attention.

Traps: bins are relative to the map, dilations absolute, so the two change differently with the test size; semseg aligns
corners when it resizes, mmsegmentation by configuration.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Form, Norm, Placement, added, projected, projection
from lookfar.blocks._reading import is_plain, weights_of
from lookfar.ops._averages import averages
from lookfar.ops._bins import enlarged, with_enlarged
from lookfar.ops._layout import match_format
from lookfar.ops._rectified import rectified
from lookfar.ops.adaptive_average import adaptive_average


@block(
    "pyramid_pooling",
    title="Pyramid pooling (PSPNet)",
    paper="Pyramid Scene Parsing Network (CVPR 2017)",
    arxiv="1612.01105",
    formula=(r"y = x + P\,[\,x,\; \text{up}(\text{ReLU}(\text{norm}(W_1\,\text{pool}_1(x)))),\; \ldots\,]",),
    family="pyramid",
    complexity="N C^2",
    memory="N C",
    verified=(
        "hszhao/semseg@4f274c3f:model/pspnet.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/psp_head.py (PPM)",
    ),
    attends="none",
    aliases=("pspnet", "psp", "ppm"),
    differences=(
        "The network concatenates the pooled maps to x; here x and they pass a 1x1 convolution that starts at zero and"
        ' is added to x. form="published" gives the concatenation.',
    ),
    author_keys={
        r"features\.(\d+)\.1": r"scales.\1.conv",
        r"features\.(\d+)\.2": r"scales.\1.norm",
        r"(psp_modules\.)?(\d+)\.1\.conv": r"scales.\2.conv",
        r"(psp_modules\.)?(\d+)\.1\.(bn|gn|in)": r"scales.\2.norm",
    },
)
class PyramidPooling(nn.Module):
    """Adds the means of the map's regions at several scales, each convolved and brought back to every position.

    y = x + P [x, up(ReLU(norm(W_1 pool_1 x))), ...]

    The pooled part of P acts on the bins, before they are resized: the concatenated map is never made.

    Args:
        bins: Regions along each axis, one number a scale.
        inner_channels: Channels of a scale; ``channels`` over the number of scales by default.
        align_corners: Align corners in the bilinear resizing of the bins.
        norm_layer: After the convolution of a scale; None for none.
        form: ``"block"`` keeps the shape; ``"published"`` gives x and the scales, ``(B, C + scales * D, H, W)``.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Example:
        >>> block = PyramidPooling(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        inner_channels: int | None = None,
        align_corners: bool = True,
        norm_layer: Norm | None = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        inner = inner_channels or max(channels // len(bins), 1)
        self.bins, self.align_corners = tuple(bins), align_corners
        self.scales = nn.ModuleList(ConvNorm(channels, inner, norm_layer=norm_layer, **dd) for _ in self.bins)
        self.project = projection(form, channels + inner * len(self.bins), channels, zero_init=zero_init, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.project is None:
            # concatenated in one memory format they are written once
            resized = [enlarged(p, x, align_corners=self.align_corners) for p in self._pooled(x)]
            return match_format(torch.cat([x, *resized], 1), x)
        # a 1x1 convolution commutes with resizing
        pooled = self._pooled(x)
        widths = [x.shape[1], *(p.shape[1] for p in pooled)]
        weight, bias = weights_of(self.project)
        own, *others = weight.split(widths, 1)
        y = added(self, x, F.conv2d(x, own, bias))
        bins = [F.conv2d(p, weight) for weight, p in zip(others, pooled)]
        return match_format(with_enlarged(y, bins, align_corners=self.align_corners), x)

    def _pooled(self, x: Tensor) -> list[Tensor]:
        means = averages(x, [(b, b) for b in self.bins])
        return [scale(mean.to(x.dtype)).relu() for scale, mean in zip(self.scales, means)]


class AtrousConv(ConvNorm):
    """A dilated 3x3 convolution with norm; taps that see nothing but padding are left out."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain(self.conv):
            return super().forward(x)
        weight, (d_h, d_w) = self.conv.weight, self.conv.dilation
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # a program serves maps of any size
            if d_h >= x.shape[2] and weight.shape[2] == 3:
                weight, d_h = weight[:, :, 1:2], 0
            if d_w >= x.shape[3] and weight.shape[3] == 3:
                weight, d_w = weight[:, :, :, 1:2], 0
        padding = (d_h * (weight.shape[2] // 2), d_w * (weight.shape[3] // 2))
        return self.after(F.conv2d(x, weight, self.conv.bias, padding=padding, dilation=(max(d_h, 1), max(d_w, 1))))


@block(
    "atrous_pyramid",
    title="Atrous spatial pyramid (DeepLabV3)",
    paper="Rethinking Atrous Convolution for Semantic Image Segmentation (2017)",
    arxiv="1706.05587",
    formula=(
        r"y = x + P\,\text{ReLU}(\text{norm}(W_f\,[\,z_0,\; z_1,\; z_d,\; \ldots\,]))",
        r"z_0 = \text{ReLU}(\text{norm}(W_0\,\bar{x})), \quad z_1 = \text{ReLU}(\text{norm}(W_1\,x)),"
        r" \quad z_d = \text{ReLU}(\text{norm}(W_d *_d x))",
    ),
    family="pyramid",
    complexity="N C D",
    memory="N D",
    verified=("open-mmlab/mmsegmentation@1.2.2:decode_heads/aspp_head.py (branches)",),
    attends="none",
    aliases=("aspp", "deeplabv3"),
    differences=(
        "The paper fuses with a 1x1 convolution (the default), mmsegmentation with a 3x3: fuse_kernel=3.",
        "The network replaces its features by the pyramid; here it is added through a 1x1 convolution that starts at"
        ' zero. form="published" gives the fused pyramid.',
    ),
    author_keys={
        r"image_pool\.1\.conv": "image.conv",
        r"image_pool\.1\.(bn|gn|in)": "image.norm",
        r"(aspp_modules\.)?(\d+)\.conv": r"branches.\2.conv",
        r"(aspp_modules\.)?(\d+)\.(bn|gn|in)": r"branches.\2.norm",
        r"bottleneck\.conv": "fuse.conv",
        r"bottleneck\.(bn|gn|in)": "fuse.norm",
    },
)
class AtrousPyramid(nn.Module):
    """Adds what stands at several fixed distances, and the mean of the map, to every position.

    y = x + P ReLU(norm(fuse [ReLU(norm(W_0 mean x)), ReLU(norm(W_1 x)), ReLU(norm(W_d *_d x)), ...]))

    Args:
        dilations: Dilations of the 3x3 convolutions; a 1x1 convolution stands before them.
        inner_channels: D, channels of a branch; a quarter of ``channels`` by default.
        fuse_kernel: Kernel of the convolution that fuses the branches: 1 (paper) or 3 (mmsegmentation).
        norm_layer: After every convolution of the pyramid; None for none.
        form: ``"block"`` keeps the shape; ``"published"`` gives the fused pyramid ``(B, D, H, W)``.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Example:
        >>> block = AtrousPyramid(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        inner_channels: int | None = None,
        fuse_kernel: int = 1,
        norm_layer: Norm | None = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 4, 1)
        self.image = ConvNorm(channels, inner, norm_layer=norm_layer, **dd)
        self.branches = nn.ModuleList([ConvNorm(channels, inner, norm_layer=norm_layer, **dd)])
        for d in dilations:
            self.branches.append(AtrousConv(channels, inner, 3, dilation=d, norm_layer=norm_layer, **dd))
        width = inner * (len(self.branches) + 1)
        self.fuse = ConvNorm(width, inner, fuse_kernel, norm_layer=norm_layer, **dd)
        self.project = projection(form, inner, channels, zero_init=zero_init, **dd)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(adaptive_average(x, 1).to(x.dtype)).relu().expand(-1, -1, *x.shape[2:])
        y = torch.cat([image, *(rectified(branch(x)) for branch in self.branches)], 1)
        y = rectified(self.fuse(y))
        return projected(self, x, y)
