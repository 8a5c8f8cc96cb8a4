"""ResNets with attention in the place of their k x k convolutions: SASA-ResNet, LR-Net, AA-ResNet.

Tables over timm's ResNet and :func:`lookfar.replace`. What comes is timm's ResNet with other layers in it, so that all
that takes a ResNet takes it.

Traps: SASA's ResNet-26 and -38 have blocks as ResNet-50 has them, thinned out, [1, 2, 4, 1] and [2, 3, 5, 2]; timm's
``resnet26`` is [2, 2, 2, 2]. AA-ResNet's tables of positions are made for the size of input that it is built for.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lookfar._options import check, choice
from lookfar.blocks import create_block
from lookfar.insertion import replace

_STEMS = ("conv", "attention")


@dataclass(frozen=True)
class Recipe:
    """How a network differs from timm's ResNet.

    Attributes:
        layer: The block in the place of the 3x3 convolutions.
        depths: Blocks of each stage.
        stages: Those whose convolutions go.
        options: Of the layer.
        basic: Two 3x3 convolutions a block, not a bottleneck.
        base_width: Inner width of the first stage, 64 as published for ResNet; it doubles from stage to stage.
    """

    layer: str
    depths: tuple[int, int, int, int]
    stages: tuple[int, ...] = (1, 2, 3, 4)
    options: dict[str, Any] = field(default_factory=dict)
    basic: bool = False
    base_width: int = 64


_SASA: dict[str, Any] = {"layer": "stand_alone", "options": {"kernel_size": 7, "heads": 8}}
_LR: dict[str, Any] = {"layer": "local_relation", "options": {"kernel_size": 7}, "base_width": 100}
_AA: dict[str, Any] = {"layer": "attention_augmented", "options": {"heads": 8}, "stages": (2, 3, 4)}

RECIPES: dict[str, Recipe] = {
    "sasa_resnet26": Recipe(depths=(1, 2, 4, 1), **_SASA),
    "sasa_resnet38": Recipe(depths=(2, 3, 5, 2), **_SASA),
    "sasa_resnet50": Recipe(depths=(3, 4, 6, 3), **_SASA),
    "lr_net26": Recipe(depths=(2, 2, 2, 2), **_LR),
    "lr_net50": Recipe(depths=(3, 4, 6, 3), **_LR),
    "lr_net101": Recipe(depths=(3, 4, 23, 3), **_LR),
    "aa_resnet34": Recipe(depths=(3, 4, 6, 3), basic=True, **_AA),
    "aa_resnet50": Recipe(depths=(3, 4, 6, 3), **_AA),
    "aa_resnet101": Recipe(depths=(3, 4, 23, 3), **_AA),
}
_POOLED_STAGE = 2  # of AA-ResNet: on maps of 28 x 28 the attention sees every second position


def build_attention_resnet(
    name: str,
    num_classes: int = 1000,
    *,
    in_chans: int = 3,
    size: int | tuple[int, int] = 224,
    stem: Literal["conv", "attention"] | None = None,
    output_stride: int = 32,
) -> nn.Module:
    """timm's ResNet with layers of attention; see :data:`RECIPES`.

    Args:
        name: Of the table.
        num_classes: Of the classifier; 0 for none.
        in_chans: Bands of the images.
        size: Of the images; tables of relative positions are made for it, and interpolated elsewhere.
        stem: Of SASA-ResNet: ``conv``, the usual one (default), or ``attention`` inside blocks of 4 x 4, which wants
            images in multiples of 4.
        output_stride: 8 or 16 dilates the layers of the last stages instead.

    Raises:
        ValueError: An unknown choice; a dilation that the layer does not have.
    """
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    recipe = RECIPES[name]
    H, W = (size, size) if isinstance(size, int) else size
    check("size", (H, W), tuple[int, int])
    if stem is not None and recipe.layer != "stand_alone":
        raise ValueError(f"{name} has one stem: stem= is an option of sasa_resnet26, 38 and 50")
    choice("stem", stem or "conv", _STEMS)
    network = ResNet(
        BasicBlock if recipe.basic else Bottleneck,  # type: ignore[arg-type]
        recipe.depths,
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        base_width=recipe.base_width,
    )
    for stage in recipe.stages:
        _replace_stage(network, recipe, stage, (H, W))
    if recipe.layer == "local_relation":
        network.conv1 = nn.Sequential(nn.Conv2d(in_chans, 64, 1, bias=False), _local_relation(64, stride=2))
    elif stem == "attention":
        network.conv1 = create_block("stand_alone_stem", in_chans, out_channels=64, kernel_size=4)  # type: ignore[assignment]
        network.maxpool = nn.MaxPool2d(4)
    for module in network.modules():  # part of the network from now on, and nothing that could be removed
        if hasattr(module, "inserted"):
            del module.inserted
    network.pretrained_cfg = network.default_cfg = pretrained_cfg(  # type: ignore[assignment]
        name, num_classes, in_chans, (H, W), first="conv1", classifier="fc"
    )
    return network


def pretrained_cfg(
    name: str, num_classes: int, in_chans: int, size: tuple[int, int], *, first: str, classifier: str
) -> dict[str, Any]:
    """What timm's networks say of themselves."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    return {
        "architecture": name,
        "num_classes": num_classes,
        "input_size": (in_chans, *size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "first_conv": first,
        "classifier": classifier,
    }


def _replace_stage(network: nn.Module, recipe: Recipe, stage: int, size: tuple[int, int]) -> None:
    options = dict(recipe.options)
    if recipe.layer == "attention_augmented":
        options["size"] = tuple(-(-n // 2 ** (stage + 1)) for n in size)
        options["pool"] = 2 if stage == _POOLED_STAGE else 1
    if recipe.layer == "local_relation":
        options["groups"] = _groups(recipe.base_width * 2 ** (stage - 1))
    module = network.get_submodule(f"layer{stage}")  # alone, on a small map: what is asked is whether shapes fit
    example = torch.zeros(1, module[0].conv1.in_channels, 8, 8)  # type: ignore[index]
    for conv in ("conv1", "conv2") if recipe.basic else ("conv2",):
        replace(module, recipe.layer, f"*.{conv}", example=example, **options)


def _groups(channels: int) -> int:
    """Of a local relation layer: eight channels a group, as published; four where eight do not divide, as in 100."""
    return channels // (4 if channels % 8 else 8)


def _local_relation(channels: int, **options: Any) -> nn.Module:
    return create_block("local_relation", channels, kernel_size=7, groups=_groups(channels), **options)
