"""Hosts for classification: a backbone, mean pooling, a linear classifier, and a place for a block in the backbone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks._own import CLASSES, Target, parameters_of, with_classes
from lookfar.networks.attention_backbones import ATTENTION_BACKBONES, build_attention_backbone
from lookfar.networks.own import logits_of, places_that_give_maps, try_out, wrong_output
from lookfar.networks.patch import PatchBackbone
from lookfar.networks.points import PointBackbone
from lookfar.networks.segmentation import SmallBackbone, check_timm_name, last_map, load_backbone, timm_model
from lookfar.networks.vit_small_mixer import VitSmallMixer

# hosts of ours, which need no timm: what builds the backbone, of 64 channels in the end, where blocks go, and how many
# axes what it sees has
EMBEDDED: dict[str, tuple[type[nn.Module], str, int]] = {
    "small": (SmallBackbone, "layer4", 2),
    "patch": (PatchBackbone, "layer2", 2),
    "points": (PointBackbone, "layer2", 1),
    "vit_small_mixer": (VitSmallMixer, "blocks.*.mixer", 2),
}


class Classifier(nn.Module):
    """A backbone, the mean over positions where it gives maps, and a linear classifier.

    Args:
        backbone: Images in; out a map ``(B, C, H, W)``, or a vector ``(B, C)``, which is pooled already.
        channels: C.
        classes: Number of classes K.
        place: Name of the module after which a block goes by default; empty where the network does not say it.
        stages: Short name of a place -> name of the module.
        pooled: Whether every position counts alike in the end, rather than a class token that chooses.
        near: Names of modules that give maps, for a message.

    Shape: ``(B, in_chans, H, W) -> (B, K)``
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        classes: int,
        *,
        place: str,
        stages: Mapping[str, str] = {},
        pooled: bool = True,
        near: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(channels, classes)
        self.place = place
        self.pooled = pooled
        self.near = tuple(near)
        self._stages = dict(stages)

    def places(self) -> dict[str, str]:
        """Names that a user can give for the stages -> names of the modules."""
        return dict(self._stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(_pooled(self.backbone(x)))


class OwnClassifier(nn.Module):
    """A network of the user's own that gives logits.

    Args:
        backbone: Images in, logits out: a tensor, a mapping with ``out`` or ``logits``, an object with ``logits``.
        place: Name of the module after which a block goes by default; empty where the network does not say it.
        pooled: Whether it is known to take the mean over positions.
        near: Names of modules that give maps, for a message.

    Shape: ``(B, in_chans, H, W) -> (B, K)``
    """

    def __init__(self, backbone: nn.Module, *, place: str, pooled: bool, near: Sequence[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.place = place
        self.pooled = pooled
        self.near = tuple(near)

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.backbone(x))


def build_classifier(
    host: str,
    classes: int,
    *,
    in_chans: int = 3,
    size: tuple[int, ...] | None = None,
    output_stride: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> Classifier:
    """A network for classification.

    Blocks go after the last stage but one of a convolutional network, which is ``layer3`` of a ResNet (the last one has
    7x7 positions at 224), after ``layer4`` of ``small``, between the layers of ``patch``, and after three quarters of a
    transformer's blocks: what comes later still mixes what the block has made, and a class token has yet to read it.

    Args:
        host: ``"small"``, the embedded convnet of stride 8; ``"patch"``, which sees cells of 8x8 pixels and no relation
            between them; ``"points"``, which sees the points of a cloud one by one; ``"vit_small_mixer"``, a
            transformer with places for mixers; or the name of a timm model.
        classes: Number of classes K.
        in_chans: Bands of the images; timm adapts pretrained first layers.
        size: Height and width of the images, for networks that are made for one size (ViT, Swin).
        output_stride: Stride of the last map: 8 or 16 where the timm model can; None for its own.
        pretrained: Take timm's pretrained weights (downloaded once); the classifier is a new one.
        weights: A file of weights instead: ``.safetensors``, or a torch file without pickled code. What belongs to a
            classifier in it is left out; everything else must fit.

    Raises:
        ValueError: Unknown host; a host that does not take this size; weights that don't fit.
        FileNotFoundError: No weights at this path; no pretrained ones, and no way to download them.

    >>> network = build_classifier("resnet18", classes=10)
    >>> network(torch.randn(2, 3, 64, 48)).shape, network.place
    (torch.Size([2, 10]), 'backbone.layer3')
    """
    for name, value in [("classes", classes), ("in_chans", in_chans)]:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if pretrained and weights is not None:
        raise ValueError("pretrained and weights exclude each other: both say what the backbone starts from")
    if size is not None and len(size) != (EMBEDDED[host][2] if host in EMBEDDED else 2):
        wanted = "'points'" if len(size) == 1 else "one for images, such as resnet18"
        raise ValueError(f"the host {host!r} does not take inputs of size {tuple(size)}: want {wanted}")
    if host in EMBEDDED:
        if pretrained:
            raise ValueError(f"the host {host!r} has no pretrained weights; give weights=FILE or a timm host")
        if output_stride not in (None, 8):
            raise ValueError(f"the host {host!r} has output stride 8, got {output_stride}")
        build, place, axes = EMBEDDED[host]
        backbone: nn.Module = build(in_chans)
        stages = {name: f"backbone.{name}" for name, _ in backbone.named_children() if name.startswith("layer")}
        mean = axes == 2  # the maximum over points is no mean
        network = Classifier(backbone, 64, classes, place=f"backbone.{place}", stages=stages, pooled=mean)
    else:
        backbone = _timm_features(host, in_chans, size, output_stride, pretrained)
        channels = _channels(backbone, host, in_chans, size)
        stages = {name: f"backbone.{name}" for name in _stages(backbone)}
        pooled = getattr(backbone, "global_pool", "avg") not in ("token", "map", "")
        network = Classifier(backbone, channels, classes, place=_place(backbone), stages=stages, pooled=pooled)
    if weights is not None:
        load_backbone(network.backbone, weights, heads=_classifiers(network.backbone))
    return network


def crop_pct_of(host: str) -> float | None:
    """The share of an image's shorter side that timm judges a model at; None for hosts of others.

    >>> crop_pct_of("resnet18"), crop_pct_of("small")
    (0.95, None)
    """
    import timm

    if not timm.is_model(host.split(".")[0]):
        return None
    config = timm.get_pretrained_cfg(host)
    return float(config.crop_pct) if config is not None and config.crop_pct else None


def build_own_classifier(
    target: Target,
    classes: int,
    *,
    in_chans: int = 3,
    size: tuple[int, ...] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> Classifier | OwnClassifier:
    """A network for classification from a function or class of the user's own.

    It is given the number of classes and of bands by the names of its arguments, as :func:`lookfar.networks.build_own`
    has them. What takes classes gives logits ``(B, K)``; what does not may give a vector or a map for each image, which
    get pooling and a classifier of ours.

    Args:
        target: As :func:`lookfar.blocks._own.find_own` gives it.
        classes: Number of classes K.
        in_chans: Bands of the images.
        size: Of the images; by default 64x96.
        pretrained: Refused: such a function loads its weights itself.
        weights: A file of weights of the network.

    Raises:
        ValueError: It cannot be built, does not run, gives neither logits nor features.

    >>> from lookfar.blocks._own import find_own, parse_address
    >>> network = build_own_classifier(find_own(parse_address("torchvision.models:resnet18")), classes=5)
    >>> network(torch.randn(1, 3, 64, 96)).shape, network.pooled
    (torch.Size([1, 5]), True)
    """
    if pretrained:
        raise ValueError(f"--pretrained is for timm hosts: {target.name} is yours, and loads its weights itself")
    network, takes_classes = _built(target, classes, in_chans)
    x = torch.randn(2, in_chans, *(size or (64, 96)), generator=torch.Generator().manual_seed(0))
    shapes, out = try_out(network, x, target.name)
    own_place = getattr(network, "place", "")
    place = f"backbone.{own_place}" if isinstance(own_place, str) and own_place else ""
    near = places_that_give_maps(shapes)
    pools = any(isinstance(m, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool1d) for m in network.modules())
    logits = logits_of(out)
    is_logits = isinstance(logits, Tensor) and logits.shape == (2, classes)
    built: Classifier | OwnClassifier
    if takes_classes:
        if not is_logits:
            raise ValueError(wrong_output(target.name, logits, x, f"logits (B, {classes}) for {classes} classes"))
        built = OwnClassifier(network, place=place, pooled=pools, near=near)
    else:
        features = last_map(out)
        if not isinstance(features, Tensor) or features.dim() not in (2, 4):
            either = f"features (B, C) or (B, C, h, w), or, where it takes the number of classes, logits (B, {classes})"
            raise ValueError(wrong_output(target.name, features, x, either))
        stages = {name: f"backbone.{name}" for name, _ in network.named_children()}
        pooled = pools or features.dim() == 4
        built = Classifier(network, features.shape[1], classes, place=place, stages=stages, pooled=pooled, near=near)
    if weights is not None:
        load_backbone(network, weights)
    return built


def _built(target: Target, classes: int, in_chans: int) -> tuple[nn.Module, bool]:
    """A network of the user's own, and whether it was told the number of classes.

    Functions that hand on whatever they are given, as torchvision's do, are tried with ``num_classes``: a classifier
    for 1000 other classes would else be taken for a backbone.
    """
    wanted = with_classes(target, classes, in_chans)
    told = any(name in CLASSES for name in wanted.options)
    if not told and any(p.kind is p.VAR_KEYWORD for p in parameters_of(target.make).values()):
        try:
            return replace(wanted, options={**wanted.options, "num_classes": classes}).build(in_chans), True
        except ValueError as error:
            if "num_classes" not in str(error) or not isinstance(error.__cause__, TypeError):
                raise
    return wanted.build(in_chans), told


def _pooled(features: Any) -> Tensor:
    """Vectors ``(B, C)``."""
    features = last_map(features)
    return features.mean((2, 3)) if features.dim() == 4 else features


def _timm_features(
    host: str, in_chans: int, size: tuple[int, ...] | None, output_stride: int | None, pretrained: bool
) -> nn.Module:
    """A model of timm or of the papers without its classifier, for images of a size where it is made for one."""
    if host in ATTENTION_BACKBONES:
        stride = {} if output_stride is None else {"output_stride": output_stride}
        sides = size or (224, 224)
        return build_attention_backbone(host, 0, in_chans=in_chans, pretrained=pretrained, size=sides, **stride)
    check_timm_name(host)
    options: dict[str, Any] = {"num_classes": 0}
    if output_stride is not None:
        try:
            return timm_model(host, in_chans, pretrained, output_stride=output_stride, **options)
        except (TypeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"timm's {host} cannot have output stride {output_stride}: leave it out") from error
    if size is not None:
        try:
            return timm_model(host, in_chans, pretrained, img_size=tuple(size), **options)
        except TypeError as error:
            if "img_size" not in str(error):  # a network for images of any size takes none
                raise
    return timm_model(host, in_chans, pretrained, **options)


def _channels(backbone: nn.Module, host: str, in_chans: int, size: tuple[int, ...] | None) -> int:
    """Length of the vector that a timm model gives, by trying it on two images."""
    h, w = size or getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-2:]
    training = backbone.training
    try:
        with torch.no_grad():
            vector = _pooled(backbone.eval()(torch.zeros(1, in_chans, h, w)))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"timm's {host} does not take images of {h}×{w} ({reason}); give another --size") from error
    finally:
        backbone.train(training)
    if vector.dim() != 2:
        raise ValueError(f"timm's {host} gives {tuple(vector.shape)} for an image, want a vector of features")
    return vector.shape[1]


def _stages(backbone: nn.Module) -> dict[str, int]:
    """A timm model's stages in their order: the names of their modules and the stride of each."""
    info = getattr(backbone, "feature_info", None) or []
    modules = dict(backbone.named_modules())
    return {stage["module"]: stage["reduction"] for stage in info if stage.get("module") in modules}


def _place(backbone: nn.Module) -> str:
    """The last stage but one by strides; of a transformer the block behind three quarters of them."""
    stages = _stages(backbone)
    if not stages:
        return ""
    last = max(stages.values())
    before = [name for name, stride in stages.items() if stride < last]
    if before:
        return f"backbone.{before[-1]}"
    names = list(stages)
    return f"backbone.{names[max(math.floor(0.75 * len(names)), 1) - 1]}"


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """What the classifiers of a timm model are called in its checkpoints."""
    known = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return (known,) if isinstance(known, str) else tuple(known)
