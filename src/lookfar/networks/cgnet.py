"""CGNet: a light network whose every block joins what is near, what surrounds it, and the whole image.

Traps: the concatenation before stage 3 has the last block first, the one before the classifier has it last; batch norms
have eps 1e-3; the image that enters at 1/2 and 1/4 is averaged with the padding's zeros counted; the published
weights want images minus a mean whose channels stand in the other order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks import create_block
from lookfar.blocks._layers import Placement
from lookfar.networks.preprocessing import Inference, Preprocessing
from lookfar.networks.saving import Saved
from lookfar.weights import State, convert, rename

CAMVID = {
    "preprocessing": Preprocessing(mean=(105.65, 103.37, 99.66), std=(1.0, 1.0, 1.0)),
    "class_names": (
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
    ),
    "palette": (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
}  # fmt: skip


class NormAct(nn.Sequential):
    """Batch norm, and a PReLU with a slope a channel."""

    def __init__(self, channels: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, **dd)
        self.act = nn.PReLU(channels, **dd)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, PReLU."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, stride: int = 1, **dd: Any) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, stride, padding, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, **dd)
        self.act = nn.PReLU(out_channels, **dd)


class ContextGuided(nn.Module):
    """Local and surrounding context joined, then scaled by the global one; ``stride=2`` halves the map.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        dilation: Of the convolution that sees the surroundings.
        reduction: Of the global context.
        stride: 1, with a residual; or 2, without one.

    Shape: ``(B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))``
    """

    def __init__(
        self, channels: int, out_channels: int, *, dilation: int, reduction: int, stride: int = 1, **dd: Any
    ) -> None:
        super().__init__()
        inner = out_channels if stride == 2 else out_channels // 2
        joint = 2 * inner
        self.stride = stride
        self.enter = ConvNormAct(channels, inner, 3 if stride == 2 else 1, stride, **dd)
        self.local = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False, **dd)
        self.surrounding = nn.Conv2d(
            inner, inner, 3, padding=dilation, dilation=dilation, groups=inner, bias=False, **dd
        )
        self.joint = NormAct(joint, **dd)
        self.reduce = nn.Conv2d(joint, out_channels, 1, bias=False, **dd) if stride == 2 else nn.Identity()
        self.context = create_block("squeeze_excitation", out_channels, reduction=reduction, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        y = self.joint(torch.cat([self.local(y), self.surrounding(y)], 1))
        y = self.context(self.reduce(y))
        return y if self.stride == 2 else x + y


class CGNet(Saved, nn.Module):
    """The network of "CGNet: A Light-weight Context Guided Network" (TIP 2020, arXiv 1811.08201).

    Args:
        num_classes: Number K of classes.
        depths: Blocks of stages 2 and 3, the halving one counted: M and N.
        in_chans: Bands of the images.
        preprocessing: What images go through before.
        inference: How images of any size are predicted.
        class_names: Names, index = label.
        palette: Colours of the classes, RGB.

    Shape: ``(B, in_chans, H, W) -> (B, K, H, W)``
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depths: tuple[int, int] = (3, 21),
        in_chans: int = 3,
        preprocessing: Preprocessing | None = None,
        inference: Inference | None = None,
        class_names: tuple[str, ...] = (),
        palette: tuple[tuple[int, ...], ...] = (),
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.preprocessing, self.inference = preprocessing or Preprocessing(), inference or Inference()
        self.align_corners = False
        self.class_names, self.palette = tuple(class_names), tuple(palette)
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, 32, 3, 2, **dd), ConvNormAct(32, 32, 3, **dd), ConvNormAct(32, 32, 3, **dd)
        )
        self.norm1 = NormAct(32 + in_chans, **dd)
        self.down2 = ContextGuided(32 + in_chans, 64, dilation=2, reduction=8, stride=2, **dd)
        self.stage2 = nn.Sequential(
            *(ContextGuided(64, 64, dilation=2, reduction=8, **dd) for _ in range(depths[0] - 1))
        )
        self.norm2 = NormAct(128 + in_chans, **dd)
        self.down3 = ContextGuided(128 + in_chans, 128, dilation=4, reduction=16, stride=2, **dd)
        self.stage3 = nn.Sequential(
            *(ContextGuided(128, 128, dilation=4, reduction=16, **dd) for _ in range(depths[1] - 1))
        )
        self.norm3 = NormAct(256, **dd)
        self.classifier = nn.Conv2d(256, num_classes, 1, bias=False, **dd)
        self.place = "stage3"

    def forward(self, images: Tensor) -> Tensor:
        y = self.logits(images)
        return F.interpolate(y, images.shape[2:], mode="bilinear", align_corners=False)

    def logits(self, images: Tensor) -> Tensor:
        """The logits at an eighth of the size, ``(B, K, h, w)``."""
        half = F.avg_pool2d(images, 3, 2, 1)
        quarter = F.avg_pool2d(half, 3, 2, 1)
        x = self.down2(self.norm1(torch.cat([self.stem(images), half], 1)))
        x = self.down3(self.norm2(torch.cat([self.stage2(x), x, quarter], 1)))
        return self.classifier(self.norm3(torch.cat([x, self.stage3(x)], 1)))

    def from_authors(self, state: State) -> State:
        """The names of wutianyiRosun/CGNet into ours."""
        if not any(key.startswith("level1_0.") for key in state):
            return state
        found = rename(state, _KEYS)
        for name, block in self.named_modules():
            if name.endswith(".context"):
                part = {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(f"{name}.")}
                found = {k: v for k, v in found.items() if not k.startswith(f"{name}.")}
                found |= {f"{name}.{k}": v for k, v in convert(block, part).items()}
        return found


# a part of a block in the authors' code -> ours; the halving block has norm and activation apart
_PARTS = {
    r"conv1x1\.conv": "enter.conv",
    r"conv1x1\.bn": "enter.norm",
    r"conv1x1\.act": "enter.act",
    r"F_loc\.conv": "local",
    r"F_sur\.conv": "surrounding",
    r"(bn_prelu\.)?bn": "joint.norm",
    r"(bn_prelu\.)?act": "joint.act",
    r"reduce\.conv": "reduce",
    "F_glo": "context",
}
_KEYS = {
    **{rf"level1_(\d)\.{t}": rf"stem.\1.{o}" for t, o in (("conv", "conv"), ("bn", "norm"), ("act", "act"))},
    **{rf"level(\d)_0\.{t}": rf"down\1.{o}" for t, o in _PARTS.items()},
    **{rf"level(\d)\.(\d+)\.{t}": rf"stage\1.\2.{o}" for t, o in _PARTS.items()},
    **{f"{t}\\.{a}": f"{o}.{b}" for t, o in (("b1", "norm1"), ("bn_prelu_2", "norm2"), ("bn_prelu_3", "norm3"))
       for a, b in (("bn", "norm"), ("act", "act"))},
    r"classifier\.0\.conv": "classifier",
}  # fmt: skip
