"""A ResNet of images becomes one of videos, its weights repeated over time and divided, its blocks among them.

Carreira and Zisserman, Quo Vadis, Action Recognition? (I3D, CVPR 2017); which convolutions look along time is as in
Non-local Neural Networks (CVPR 2018; facebookresearch/video-nonlocal-net: resnet_video.py).

Traps: time is padded by repeating the first and the last frame; with zeros a video that stands still would not give
what its frame gives. A block that counts a position once for each frame, as criss-cross does, cannot keep that.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar._modes import modes_restored
from lookfar._options import check
from lookfar.blocks import block_info
from lookfar.insertion.files import recipe, replay
from lookfar.insertion.gated import block_name
from lookfar.insertion.hanging import insertions
from lookfar.insertion.managing import remove

# whose first convolution looks along time, by stage: all, those of even, those of odd number
_LOOK = {"layer1": (0, 1), "layer2": (0,), "layer3": (0,), "layer4": (1,)}
# containers that a network may consist of, by the file of their class
_KNOWN = (
    *("torch.nn.", "timm.models.resnet", "timm.models._features", "timm.layers.adaptive_avgmax_pool"),
    *("timm.layers.drop", "torchvision.models.resnet", "torchvision.models._utils"),
)
_AS_THEY_ARE = (nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Linear, nn.Dropout)


class TimeConv3d(nn.Conv3d):
    """A convolution of a video that repeats the first and the last frame where it looks beyond them.

    Shape: ``(B, C, T, H, W) -> (B, O, T, H', W')``
    """

    def forward(self, input: Tensor) -> Tensor:
        beyond = self.kernel_size[0] // 2
        return super().forward(F.pad(input, (0, 0, 0, 0, beyond, beyond), mode="replicate") if beyond else input)


def inflate(network: nn.Module, frames: int = 3) -> nn.Module:
    """A network of videos from a ResNet of timm or torchvision: I3D, or C2D with ``frames=1``.

    Weights are repeated over time and divided by its length. ``frames`` are seen by the first convolution of every
    block of ``layer1``, of every other one of ``layer2`` and ``layer3`` from the first, of ``layer4`` from the second;
    ``2 frames - 1`` by the stem. Time is not pooled before the end. Inserted blocks become their selves with
    ``dims=3`` and look at all frames. A video that stands still gives what ``network`` gives for its frame, which is
    checked; a block with which it does not is named in a warning.

    Args:
        network: With feature maps or logits; it is left as it was. Images of any size.
        frames: An odd number.

    Returns:
        A new network with the same keys: videos ``(B, C, T, H, W)`` in, logits or maps ``(B, C', T, H', W')`` out.

    Raises:
        ValueError: ``frames`` is not odd, the network is no ResNet, or has a layer or a block that knows no videos.

    >>> from torchvision.models import resnet18
    >>> video_network = inflate(resnet18(num_classes=4))
    >>> video_network(torch.randn(2, 3, 5, 33, 40)).shape, video_network.conv1.kernel_size
    (torch.Size([2, 4]), (5, 7, 7))
    """
    check("frames", frames, int)
    if frames % 2 == 0:
        raise ValueError(f"frames must be odd, got {frames}")
    video = copy.deepcopy(network)
    steps = recipe(video)
    flat = {one.name: one.module for one in insertions(video)}
    if flat:
        remove(video)
    for name, module in list(video.named_modules()):
        _check_known(name, module)
    looking = {**dict.fromkeys(_looking(video), frames), _stem(video): 2 * frames - 1}
    for name, module in list(video.named_modules()):
        made = _as_3d(module, looking.get(name, 1))
        if made is not None:
            made.train(module.training)
            video.set_submodule(name, made)
    _check(_plain(network), video)
    for step in steps:
        _check_block(step)
        step["options"] = {**step["options"], "dims": 3}
    replay(video, steps)
    _fill(video, flat, {step["name"]: step["channels"] for step in steps})
    return video


def _looking(network: nn.Module) -> Iterator[str]:
    """Names of the convolutions in the stages that look along time."""
    for stage, parity in _LOOK.items():
        blocks = dict(network.named_children()).get(stage)
        if blocks is None:
            raise ValueError(f"{type(network).__name__} has no {stage}: want a ResNet of timm or torchvision")
        for number, (child, block) in enumerate(blocks.named_children()):
            if number % 2 in parity and not isinstance(getattr(block, "conv1", None), nn.Conv2d):
                raise ValueError(f"{stage}.{child} has no conv1: want a ResNet of timm or torchvision")
            if number % 2 in parity:
                yield f"{stage}.{child}.conv1"


def _stem(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _check_known(name: str, module: nn.Module) -> None:
    if not f"{type(module).__module__}.".startswith(_KNOWN):
        raise ValueError(f"{name or 'the network'} is a {type(module).__name__}: want a ResNet of timm or torchvision")
    leaf = next(module.children(), None) is None
    convertible = isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d)
    empty = isinstance(module, nn.Sequential | nn.ModuleDict | nn.ModuleList)
    drops = type(module).__module__ == "timm.layers.drop" and type(module).__name__ == "DropPath"
    if leaf and not (convertible or empty or drops or isinstance(module, _AS_THEY_ARE)):
        what = f"{name} is a {type(module).__name__}"
        if type(module).__name__ == "FastAdaptiveAvgPool":
            what += "; give global_pool='avg'"
        raise ValueError(f"{what}, which is not known for videos: want a plain ResNet")


def _as_3d(module: nn.Module, frames: int) -> nn.Module | None:
    """The layer of videos in place of one of images; None where it stays."""
    if isinstance(module, nn.Conv2d):
        return _conv(module, frames)
    if isinstance(module, nn.BatchNorm2d):
        made = nn.BatchNorm3d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        made.__dict__.update(_parameters=module._parameters, _buffers=module._buffers)
        return made
    if isinstance(module, nn.MaxPool2d):
        sizes = [_in_space(v, of) for v, of in ((module.kernel_size, 1), (module.stride, 1), (module.padding, 0))]
        return nn.MaxPool3d(*sizes, _in_space(module.dilation, 1), ceil_mode=module.ceil_mode)  # type: ignore[arg-type]
    if isinstance(module, nn.AvgPool2d):
        sizes = [_in_space(v, of) for v, of in ((module.kernel_size, 1), (module.stride, 1), (module.padding, 0))]
        return nn.AvgPool3d(*sizes, module.ceil_mode, module.count_include_pad, module.divisor_override)  # type: ignore[arg-type]
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size not in (1, (1, 1)):
            raise ValueError(f"a pooling to {module.output_size} is not known for videos: want one to 1")
        return nn.AdaptiveAvgPool3d(1)
    return None


def _in_space(value: Any, of_time: int) -> tuple[int, int, int]:
    return (of_time, *(value if isinstance(value, tuple) else (value, value)))


def _conv(conv: nn.Conv2d, frames: int) -> TimeConv3d:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"a convolution with padding {conv.padding!r} ({conv.padding_mode}) is not known for videos")
    made = TimeConv3d(
        conv.in_channels,
        conv.out_channels,
        (frames, *conv.kernel_size),  # type: ignore[arg-type]
        (1, *conv.stride),  # type: ignore[arg-type]
        (0, *conv.padding),  # type: ignore[arg-type]
        (1, *conv.dilation),  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        device="meta",
    )
    made.weight = nn.Parameter(_over_time(conv.weight.detach(), frames), conv.weight.requires_grad)
    made.bias = conv.bias
    return made


def _over_time(weight: Tensor, frames: int) -> Tensor:
    """Repeated over time and divided: its sum over time is the weight."""
    return (weight / frames).unsqueeze(2).repeat(1, 1, frames, *(1 for _ in weight.shape[2:]))


def _check_block(step: Mapping[str, Any]) -> None:
    name = step["block"].rpartition(":")[2]
    if ":" in step["block"] or step["channels"] is None:
        raise ValueError(f"{step['name']} is a {name} of yours: only blocks of ours become blocks of videos")
    if "dims" not in block_info(name).options:
        raise ValueError(
            f"{step['name']} is a {name}, which knows images alone: blocks with the option dims know videos"
        )


def _fill(video: nn.Module, flat: Mapping[str, nn.Module], channels: Mapping[str, int]) -> None:
    """The weights of the blocks, and a warning of those that a repeated frame does not leave as they were."""
    other = []
    for name, block in flat.items():
        made = video.get_submodule(name)
        own, state = made.state_dict(), block.state_dict()
        found = {}
        for key, value in state.items():
            if value.ndim + 1 == own[key].ndim:
                value = _over_time(value, own[key].shape[2])
            found[key] = value
        made.load_state_dict(found)
        for (_, ours), (_, theirs) in zip(made.named_parameters(), block.named_parameters()):
            ours.requires_grad_(theirs.requires_grad)
        like = next(iter(block.parameters()))
        x = torch.randn(1, channels[name], 6, 5, generator=torch.Generator().manual_seed(0)).to(like)
        if _distance(block, made, x) > 1e-4:
            other.append(f"{name} ({block_name(block)})")
    if other:
        warnings.warn(
            f"on a repeated frame {', '.join(other)} gives something else than on the frame: it counts a position once "
            "for each frame",
            stacklevel=3,
        )


def _plain(network: nn.Module) -> nn.Module:
    """A copy without its blocks."""
    plain = copy.deepcopy(network)
    if insertions(plain):
        remove(plain)
    return plain


def _check(network: nn.Module, video: nn.Module) -> None:
    """Whether a repeated frame gives what the frame gives."""
    like = next(network.parameters())
    conv = network.get_submodule(_stem(network))
    x = torch.randn(1, conv.in_channels, 64, 48, generator=torch.Generator().manual_seed(0)).to(like)  # type: ignore[arg-type]
    try:
        distance = _distance(network, video, x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(f"{type(network).__name__} does not take videos: {str(error).splitlines()[0]}") from error
    if not distance <= 1e-4:
        raise ValueError(
            f"{type(network).__name__} gives something else for a repeated frame than for the frame: it has a layer "
            "that is not known for videos"
        )


@torch.no_grad()
def _distance(flat: nn.Module, video: nn.Module, x: Tensor) -> float:
    """Between what a frame gives and what three of it give, over the largest value, at all frames."""
    with modes_restored(flat), modes_restored(video), torch.random.fork_rng(devices=[]):
        wanted, found = flat.eval()(x), video.eval()(x.unsqueeze(2).repeat(1, 1, 3, 1, 1))
    largest = 0.0
    for want, y in zip(_maps(wanted), _maps(found)):
        want = want.unsqueeze(2) if want.ndim == 4 else want
        if y.ndim != want.ndim or y.shape[:2] != want.shape[:2] or y.shape[3:] != want.shape[3:]:
            return math.inf
        off = ((y - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()
        largest = max(largest, math.inf if math.isnan(off) else off)  # max() of Python passes nan over
    return largest


def _maps(out: Any) -> list[Tensor]:
    return list(out.values()) if isinstance(out, dict) else list(out) if isinstance(out, list | tuple) else [out]
