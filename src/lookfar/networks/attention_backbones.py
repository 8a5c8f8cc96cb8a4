"""The backbones of the family's papers by name: SASA-ResNet, LR-Net, AA-ResNet, T2T-ViT, EAMLP."""

import inspect
from typing import Any

from torch import nn

from lookfar._options import nearest
from lookfar.networks.attention_resnets import RECIPES, build_attention_resnet
from lookfar.networks.tokens_to_token import VISION_TRANSFORMERS, build_tokens_to_token

ATTENTION_BACKBONES = (*RECIPES, *VISION_TRANSFORMERS)

_NO_WEIGHTS = {
    "sasa_": "its authors published none, and leaderj1001's layer of that name computes something else",
    "aa_": "its authors published none, and leaderj1001's layer of that name computes something else",
    "lr_": "its authors published the op alone",
    "eamlp_": "its authors published configuration and log, no weights",
    "t2t_": "the files of github.com/yitu-opensource/T2T-ViT are read by lookfar.from_checkpoint(FILE)",
}


def build_attention_backbone(
    name: str, num_classes: int | None = None, *, in_chans: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """A classifier with timm's interface.

    Args:
        name: One of :data:`ATTENTION_BACKBONES`.
        num_classes: ImageNet's 1000 by default; 0 for features alone.
        in_chans: Bands of the images.
        pretrained: Refused, with the reason.
        **options: ``size`` of the images (224); ``stem`` of SASA-ResNet; ``scale`` of T2T-ViT; and what else
            :func:`build_attention_resnet` and :func:`build_tokens_to_token` take.

    Raises:
        ValueError: A value that is none, or ``pretrained``.
        TypeError: An unknown option.

    >>> network = build_attention_backbone("t2t_vit_7", 10, size=64)
    >>> network.num_classes, network.pretrained_cfg["input_size"]
    (10, (3, 64, 64))
    """
    if pretrained:
        reason = next(text for start, text in _NO_WEIGHTS.items() if name.startswith(start))
        raise ValueError(f"{name} comes without pretrained weights: {reason}")
    build = build_attention_resnet if name in RECIPES else build_tokens_to_token
    known = [option for option in inspect.signature(build).parameters if option not in ("name", "num_classes")]
    for option in options:
        if option not in known:
            near = nearest(option, known)
            hint = f" Did you mean {near}?" if near else ""
            raise TypeError(f"{name} has no option {option!r}.{hint} It takes: {', '.join(known)}.")
    return build(name, 1000 if num_classes is None else num_classes, in_chans=in_chans, **options)


def attention_features(name: str, *, in_chans: int, output_stride: int, pretrained: bool, **options: Any) -> nn.Module:
    """The feature maps of a backbone, as timm's ``features_only`` gives those of its own.

    Raises:
        ValueError: An output stride that it cannot have.
    """
    from timm.models._features import FeatureGetterNet, FeatureListNet

    outputs = options.pop("out_indices", None)
    if name in RECIPES:
        options["output_stride"] = output_stride
        network = build_attention_backbone(name, 0, in_chans=in_chans, pretrained=pretrained, **options)
        return FeatureListNet(network, out_indices=(0, 1, 2, 3, 4) if outputs is None else outputs)
    if output_stride != 16:
        raise ValueError(f"{name} has output stride 16, got {output_stride}")
    network = build_attention_backbone(name, 0, in_chans=in_chans, pretrained=pretrained, **options)
    network.norm = nn.Identity()  # maps are those of the blocks
    return FeatureGetterNet(network, out_indices=4 if outputs is None else outputs)
