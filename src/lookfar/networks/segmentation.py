"""Hosts for semantic segmentation: a backbone, a small head, and a place between them for a block."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar.networks.attention_backbones import ATTENTION_BACKBONES, attention_features
from lookfar.weights import read


class ConvNormAct(nn.Sequential):
    """conv3x3, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)


class SmallBackbone(nn.Sequential):
    """The embedded convnet: 24, 48 and 64 channels at stride 2 each, then 64 at stride 1.

    Shape: ``(B, in_chans, H, W) -> (B, 64, ceil(H / 8), ceil(W / 8))``
    """

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.layer1 = ConvNormAct(in_chans, 24, stride=2)
        self.layer2 = ConvNormAct(24, 48, stride=2)
        self.layer3 = ConvNormAct(48, 64, stride=2)
        self.layer4 = ConvNormAct(64, 64)


class Segmenter(nn.Module):
    """A backbone, a conv-norm-act head, a 1x1 classifier, and the way back to the size of the input.

    Args:
        backbone: Image in, feature map or list of feature maps (the last counts) out.
        channels: Channels of that feature map.
        classes: Number of classes.
        width: Channels of the head.
        place: Name of the module after which a block goes by default.
        stages: Short name of a place -> name of the module.
        shuffle: Upsample by a pixel-shuffle of this factor; None for bilinear interpolation.

    Shape: ``(B, in_chans, H, W) -> (B, classes, H, W)``
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        classes: int,
        *,
        width: int,
        place: str,
        stages: Mapping[str, str],
        shuffle: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ConvNormAct(channels, width)
        self.classifier = nn.Conv2d(width, classes * (shuffle or 1) ** 2, 1)
        self.place = place
        self.shuffle = shuffle
        self._stages = dict(stages)

    def places(self) -> dict[str, str]:
        """Names that a user can give for the stages -> names of the modules."""
        return {**self._stages, "head": "head"}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = self.classifier(self.head(last_map(self.backbone(x))))
        if self.shuffle is None:
            return F.interpolate(y, size=size, mode="bilinear", align_corners=False)
        # strided convolutions round sizes up: what goes past the edge is cut off
        return F.pixel_shuffle(y, self.shuffle)[..., : size[0], : size[1]]


def last_map(features: Any) -> Any:
    """The map of the deepest stage, from a list, a mapping, or an object with ``feature_maps``."""
    features = getattr(features, "feature_maps", features)
    if isinstance(features, Mapping):
        features = list(features.values())
    return features[-1] if isinstance(features, (list, tuple)) and len(features) > 0 else features


def build_network(
    host: str,
    classes: int,
    *,
    in_chans: int = 3,
    output_stride: int = 8,
    pretrained: bool = False,
    weights: str | Path | None = None,
    width: int = 64,
) -> Segmenter:
    """A network for semantic segmentation.

    Args:
        host: ``"small"``, the embedded convnet of stride 8, or the name of a timm model.
        classes: Number of classes.
        in_chans: Bands of the images; timm adapts pretrained first layers.
        output_stride: Stride of the feature map: 8 or 16 where the timm model can, 32 for its own stride.
        pretrained: Take timm's pretrained weights (downloaded once).
        weights: A file of backbone weights instead: ``.safetensors``, or a torch file without pickled code. Keys of a
            classification checkpoint's head are left out; everything else must fit.
        width: Channels of the head, for timm hosts.

    Raises:
        ValueError: Unknown host; a stride that it cannot have; weights that don't fit.
        FileNotFoundError: No weights at this path; no pretrained ones, and no way to download them.

    >>> import torch
    >>> network = build_network("small", classes=5)
    >>> network(torch.randn(1, 3, 64, 48)).shape, network.place
    (torch.Size([1, 5, 64, 48]), 'backbone.layer4')
    """
    for name, value in [("classes", classes), ("in_chans", in_chans), ("width", width)]:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if pretrained and weights is not None:
        raise ValueError("pretrained and weights exclude each other: both say what the backbone starts from")
    if host == "small":
        if pretrained:
            raise ValueError("the host 'small' has no pretrained weights; give weights=FILE or a timm host")
        if output_stride != 8:
            raise ValueError(f"the host 'small' has output stride 8, got {output_stride}")
        backbone = SmallBackbone(in_chans)
        stages = {name: f"backbone.{name}" for name, _ in backbone.named_children()}
        network = Segmenter(backbone, 64, classes, width=64, place="backbone.layer4", stages=stages, shuffle=8)
    else:
        backbone = timm_backbone(host, in_chans, output_stride, pretrained)
        if output_stride == 32:  # hosts that can dilate are convolutional; others may be anything
            _check_maps(backbone, host, in_chans)
        channels: int = backbone.feature_info.channels()[-1]  # type: ignore[union-attr,operator]
        network = Segmenter(backbone, channels, classes, width=width, place="head", stages=timm_stages(backbone))
    if weights is not None:
        load_backbone(network.backbone, weights)
    return network


def timm_backbone(host: str, in_chans: int, output_stride: int, pretrained: bool, **options: Any) -> nn.Module:
    """The feature maps of a timm model, or of a backbone of the family's papers; ``options`` are its own."""
    if host in ATTENTION_BACKBONES:
        wanted = {"output_stride": output_stride, "pretrained": pretrained}
        return attention_features(host, in_chans=in_chans, **wanted, **options)
    check_timm_name(host)
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    stride: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        return timm_model(host, in_chans, pretrained, features_only=True, **stride, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        if stride:
            raise ValueError(
                f"timm's {host} cannot have output stride {output_stride}; try output_stride=32 (its own), "
                "or a host that dilates, such as resnet18, mobilenetv2_100, efficientnet_b0, regnetx_002, convnext_atto"
            ) from error
        raise ValueError(f"timm's {host} gives no feature maps ({error}); take a convolutional host") from error


def check_timm_name(host: str) -> None:
    """Raise a ValueError unless timm has a model of this name."""
    import timm

    if not timm.is_model(host.split(".")[0]):
        near = difflib.get_close_matches(host, ["small", *ATTENTION_BACKBONES, *timm.list_models()], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        if host in ("patch", "points", "vit_small_mixer"):
            hint = f" {host!r} is for classification alone."
        raise ValueError(f"no host is called {host!r}: want 'small' or a name of timm.list_models().{hint}")


def timm_model(host: str, in_chans: int, pretrained: bool, **options: Any) -> nn.Module:
    """A model of timm; ``options`` are timm's own, and those that it refuses raise as timm has it.

    Raises:
        FileNotFoundError: No pretrained weights here, and no way to download them.
        ValueError: A model without such weights.
    """
    import timm

    try:
        with _without_retries():
            return timm.create_model(host, in_chans=in_chans, pretrained=pretrained, **options)
    except NotImplementedError:  # a RuntimeError too
        raise
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"no pretrained weights of {host} here, and they could not be downloaded. Give a file that holds them: "
            f"--host-weights FILE, in Python weights=FILE. ({reason})"
        ) from error
    except RuntimeError as error:  # a pretrained tag that is not there, a model without weights
        raise ValueError(f"timm refuses {host}: {error}") from error


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """The hub's client warns of every attempt; what is raised in the end says it once."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_maps(backbone: nn.Module, host: str, in_chans: int) -> None:
    """Refuse what takes images of one size only (vit) or gives channels last (swin)."""
    parameter = next(backbone.parameters())
    try:
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, in_chans, 64, 96, device=parameter.device, dtype=parameter.dtype))
        fits = maps[-1].ndim == 4 and maps[-1].shape[1] == backbone.feature_info.channels()[-1]  # type: ignore[union-attr,operator]
    except (AssertionError, RuntimeError):
        fits = False
    backbone.train()
    if not fits:
        raise ValueError(f"timm's {host} gives no maps (B, C, H, W) for images of any size; take a convolutional host")


def timm_stages(backbone: nn.Module) -> dict[str, str]:
    """Names of a timm model's stages -> names of the modules in a network."""
    modules = dict(backbone.named_modules())
    stages = {}
    for name in backbone.feature_info.module_name():  # type: ignore[union-attr,operator]
        # features_only flattens `stages.0` to `stages_0`, and keeps a transformer whole
        for own in (name, name.replace(".", "_"), f"model.{name}"):
            if own in modules:
                stages[name] = f"backbone.{own}"
                break
    return stages


def load_backbone(backbone: nn.Module, path: str | Path, *, heads: tuple[str, ...] = ()) -> None:
    """Load a checkpoint of a backbone, a whole network or a classifier; everything but the head must fit.

    Args:
        backbone: Takes the weights.
        path: Of the file.
        heads: Names of modules in the file that belong to a classifier, where parts of ``backbone`` are called alike.
    """
    state = {key: value for key, value in read(path).items() if not key.startswith(tuple(f"{h}." for h in heads))}
    if any(key.startswith("backbone.") for key in state):  # a network of ours
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    own = backbone.state_dict()
    found: dict[str, Tensor] = {}
    strange = []
    for key, value in state.items():
        flat = key.replace(".", "_", 1)  # features_only flattens `stages.0` to `stages_0`
        if key in own:
            found[key] = value
        elif flat in own:
            found[flat] = value
        elif any(k.startswith(f"{key.split('.')[0]}.") for k in own):  # heads are modules of their own
            strange.append(key)
    found = {key: _adapt(value, own[key]) for key, value in found.items()}
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} {tuple(value.shape)}, want {tuple(own[key].shape)}"
        for key, value in found.items()
        if value.shape != own[key].shape
    ]
    problems = {"no place for": strange, "missing": missing, "wrong shape": shapes}
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the weights of {path} do not fit this host: {listed}")
    backbone.load_state_dict(found, strict=False)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def _adapt(value: Tensor, own: Tensor) -> Tensor:
    """A first convolution for three bands, made to fit others as timm does."""
    if value.ndim == 4 and value.shape[1] == 3 and own.shape[1] != 3 and value.shape[2:] == own.shape[2:]:
        from timm.models import adapt_input_conv

        return torch.as_tensor(adapt_input_conv(own.shape[1], value))
    return value


def resolve_place(network: nn.Module, name: str) -> str:
    """The module name of a place: ``layer3`` of a Segmenter is its backbone's stage, module names stand for themselves.

    Raises:
        ValueError: Neither a stage nor a module has this name; the message lists the stages.

    >>> resolve_place(build_network("small", classes=5), "layer3")
    'backbone.layer3'
    """
    if not name:
        near = ", ".join(getattr(network, "near", ()))
        raise ValueError(f"the host does not say where blocks go: give --place{near and f', such as {near}'}")
    stages: dict[str, str] = getattr(network, "places", dict)()
    if name in stages:
        return stages[name]
    modules = {module for module, _ in network.named_modules() if module}
    for candidate in (name, f"backbone.{name}"):
        if candidate in modules:
            return candidate
    near = difflib.get_close_matches(name, [*stages, *modules], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    known = f"; the stages are {', '.join(stages)}, and any module name is a place" if stages else ""
    raise ValueError(f"the network has no place {name!r}{known}.{hint}")
