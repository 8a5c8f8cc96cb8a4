"""Hosts of the user's own: a function or class that gives a network, for logits or for feature maps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar._tables import by_size
from lookfar.blocks._own import CLASSES, Target, with_classes
from lookfar.networks.published import Outputs
from lookfar.networks.segmentation import Segmenter, last_map, load_backbone


class OwnHost(nn.Module):
    """A network of the user's own, its logits brought to the size of the images.

    Args:
        backbone: Images in, logits out: a tensor, a mapping with ``out`` or ``logits``, an object with ``logits``.
        place: Name of the module after which a block goes by default; empty where the network does not say it.
        near: Names of modules that give maps, for a message.

    Shape: ``(B, in_chans, H, W) -> (B, classes, H, W)``
    """

    def __init__(self, backbone: nn.Module, *, place: str, near: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.place = place
        self.near = near

    @property
    def align_corners(self) -> bool:
        """Of the resizing of logits, where the network says it."""
        return bool(getattr(self.backbone, "align_corners", False))

    @property
    def auxiliary_weights(self) -> tuple[float, ...]:
        """Weights of further losses in training, where the network has any."""
        return tuple(getattr(self.backbone, "auxiliary_weights", ()))

    def forward(self, x: Tensor) -> Tensor | Outputs:
        out = self.backbone(x)
        if isinstance(out, Outputs):  # in training, with further logits, as large as the images
            return out
        y = logits_of(out)
        if y.shape[-2:] == x.shape[-2:]:
            return y
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def build_own(
    target: Target,
    classes: int,
    *,
    in_chans: int = 3,
    size: tuple[int, ...] = (64, 96),
    width: int = 64,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> Segmenter | OwnHost:
    """A network for semantic segmentation from a function or class of the user's own.

    It is given the number of classes and of bands by the names of its arguments (``classes``, ``num_classes``,
    ``n_classes``; ``in_chans``, ``in_channels``, ``n_channels``; and their like). What takes classes gives logits; what
    does not may give feature maps, which get a head of ours.

    Args:
        target: As :func:`lookfar.blocks._own.find_own` gives it.
        classes: Number of classes.
        in_chans: Bands of the images.
        size: Of the images.
        width: Channels of the head, for feature maps.
        pretrained: Refused: such a function loads its weights itself.
        weights: A file of weights of the network.

    Raises:
        ValueError: It cannot be built, does not run, gives neither logits nor feature maps.

    >>> from lookfar.blocks._own import find_own, parse_address
    >>> name = "torchvision.models.segmentation:lraspp_mobilenet_v3_large"
    >>> target = find_own(parse_address(f"{name}(weights_backbone=None)"))
    >>> network = build_own(target, classes=5)
    >>> network(torch.randn(1, 3, 64, 96)).shape
    torch.Size([1, 5, 64, 96])
    """
    if pretrained:
        raise ValueError(f"--pretrained is for timm hosts: {target.name} is yours, and loads its weights itself")
    wanted = with_classes(target, classes, in_chans)
    network = wanted.build(in_chans)
    takes_classes = any(name in CLASSES for name in wanted.options)
    x = torch.randn(2, in_chans, *size, generator=torch.Generator().manual_seed(0))
    shapes, out = try_out(network, x, target.name)

    built: Segmenter | OwnHost
    logits = logits_of(out)
    is_logits = isinstance(logits, Tensor) and logits.dim() == 4 and logits.shape[1] == classes
    if takes_classes or (is_logits and logits.shape[-2:] == x.shape[-2:]):
        if not is_logits:
            raise ValueError(wrong_output(target.name, logits, x, f"logits (B, {classes}, h, w) for {classes} classes"))
        place = getattr(network, "place", "")
        built = OwnHost(
            network,
            place=f"backbone.{place}" if isinstance(place, str) and place else "",
            near=places_that_give_maps(shapes),
        )
    else:
        features = last_map(out)
        if not isinstance(features, Tensor) or features.dim() != 4:
            either = f"feature maps (B, C, h, w), or logits (B, {classes}, h, w)"
            raise ValueError(wrong_output(target.name, features, x, either))
        stages = {name: f"backbone.{name}" for name, _ in network.named_children()}
        built = Segmenter(network, features.shape[1], classes, width=width, place="head", stages=stages)
    if weights is not None:
        load_backbone(network, weights)
    return built


def try_out(network: nn.Module, x: Tensor, name: str) -> tuple[dict[str, tuple[int, ...]], Any]:
    """What it gives for images, and the shapes of the maps within."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(module: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.dim() == 4:
                shapes[module] = tuple(out.shape)

        return hook

    hooks = [module.register_forward_hook(note(at)) for at, module in network.named_modules() if at]
    try:
        with torch.no_grad():
            out = network.eval()(x)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} fails on images {tuple(x.shape)}: {type(error).__name__}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
        network.train()
    return shapes, out


def places_that_give_maps(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Some modules that give maps, from the outer ones and the end, where attention is affordable."""
    shallow = [name for name in shapes if name.count(".") <= 1]
    small = sorted(shallow, key=lambda name: (shapes[name][-1] * shapes[name][-2], name.count(".")))
    return tuple(f"{name} ({by_size(shapes[name][1:])})" for name in small[:3])


def logits_of(out: Any) -> Any:
    if isinstance(out, Mapping):
        return next((out[name] for name in ("out", "logits") if name in out), None)
    return getattr(out, "logits", out)


def wrong_output(name: str, got: Any, x: Tensor, wanted: str) -> str:
    what = f"({by_size(got.shape)})" if isinstance(got, Tensor) else type(got).__name__
    return f"{name} gives {what} for images ({by_size(x.shape)}): want {wanted}"
