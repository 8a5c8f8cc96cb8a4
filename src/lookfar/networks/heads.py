"""Heads of published segmentation networks, each described by a row of data and built by one class.

Traps: DANet has three classifiers, of which the first alone predicts; ANN has a dropout between its two blocks;
DeepLabV3's block ends in the fusing convolution itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks import block_info, create_block
from lookfar.blocks._base import _explain
from lookfar.blocks._layers import ConvNorm, Norm, Placement
from lookfar.networks._keys import CCNET, DANET, FC, FCN, MMSEG_DANET, ROOT, SEMSEG, Keys
from lookfar.weights import State, convert, rename

Width = Literal["channels", "inner"]


@dataclass(frozen=True)
class Path:
    """One way through a head: 3x3 convolution, block, 3x3 convolution; each may be left out.

    Attributes:
        block: Name of the block, None for none.
        options: Its options, as published.
        before: Width of the convolution before it, None for no convolution.
        after: Whether a convolution stands after it.
        inner: The width that is the block's ``inner_channels``, None where the block has its own default.
        gives: Channels of the block's output by its input's, its inner and its number of bins; None: its input's.
    """

    block: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    before: Width | None = None
    after: bool = False
    inner: Width | None = None
    gives: Callable[[int, int, int], int] | None = None


@dataclass(frozen=True)
class Plan:
    """A head as data.

    Attributes:
        title: Name of the network.
        paper: Title with venue and year.
        paths: Ways from the map to what is classified; their results are added.
        concat: Whether a 3x3 convolution of x and that sum follows.
        merge: A block that first puts the map of the stage before into x, with its options.
        guess: Whether the blocks take the auxiliary head's logits as a second input.
        width: Channels of the map over those of the head: 4, as 2048 to 512.
        inner: Channels of the head over the inner ones; a negative number multiplies.
        keys: mmsegmentation's names, and how others call its parts.
        aliases: Other names.
    """

    title: str
    paper: str
    paths: tuple[Path, ...]
    concat: bool = False
    merge: tuple[str, Mapping[str, Any]] | None = None
    guess: bool = False
    width: int = 4
    inner: int = 2
    keys: tuple[Keys, ...] = (FCN,)
    aliases: tuple[str, ...] = ()

    @property
    def reads(self) -> int:
        """How many of the backbone's last maps the head reads."""
        return 2 if self.merge is not None else 1


def _around(block: str | None, inner: Width | None = None, **options: Any) -> tuple[Path, ...]:
    return (Path(block, options, before="channels", after=True, inner=inner),)


def _published(block: str, gives: Callable[[int, int, int], int], *, after: bool = True, **options: Any) -> Path:
    return Path(block, {"form": "published", **options}, after=after, inner="channels", gives=gives)


_PSA = {"variant": "mmseg", "shrink_factor": 2, "normalization_factor": 1.0, "mask_size": (97, 97)}
_ANN = {"bias": False, "form": "published"}

HEADS: dict[str, Plan] = {
    "fcn": Plan(
        "FCN", "Fully Convolutional Networks for Semantic Segmentation (CVPR 2015)", _around(None), concat=True
    ),
    "nonlocal": Plan(
        "Non-local network",
        "Non-local Neural Networks (CVPR 2018)",
        _around("nonlocal", project_bias=False),
        concat=True,
        keys=(FCN.with_block("nl_block"),),
        aliases=("nonlocal_net", "nl"),
    ),
    "dnl": Plan(
        "DNLNet",
        "Disentangled Non-Local Neural Networks (ECCV 2020)",
        _around("disentangled_nonlocal", variant="mmseg", norm_layer=nn.BatchNorm2d),
        concat=True,
        keys=(FCN.with_block("dnl_block"),),
        aliases=("dnlnet",),
    ),
    "gcnet": Plan(
        "GCNet",
        "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (ICCV 2019 workshop)",
        _around("global_context", "inner"),
        concat=True,
        inner=4,
        keys=(FCN.with_block("gc_block"),),
    ),
    "ccnet": Plan(
        "CCNet",
        "CCNet: Criss-Cross Attention for Semantic Segmentation (ICCV 2019, TPAMI 2020)",
        _around("criss_cross"),
        concat=True,
        keys=(FCN.with_block("cca"), CCNET),
    ),
    "danet": Plan(
        "DANet",
        "Dual Attention Network for Scene Segmentation (CVPR 2019)",
        (*_around("position_attention", "inner"), *_around("channel_attention")),
        inner=8,
        keys=(MMSEG_DANET, DANET),
    ),
    "psanet": Plan(
        "PSANet",
        "PSANet: Point-wise Spatial Attention Network for Scene Parsing (ECCV 2018)",
        (_published("pointwise_spatial_attention", lambda c, d, n: 2 * c, **_PSA),),
        keys=(ROOT.with_layers(bottleneck="paths.0.after"), SEMSEG.with_block("psa")),
    ),
    "pspnet": Plan(
        "PSPNet",
        "Pyramid Scene Parsing Network (CVPR 2017)",
        (_published("pyramid_pooling", lambda c, d, n: c + n * d),),
        keys=(ROOT.with_layers(bottleneck="paths.0.after"), SEMSEG.with_block("ppm")),
    ),
    "apcnet": Plan(
        "APCNet",
        "Adaptive Pyramid Context Network for Semantic Segmentation (CVPR 2019)",
        (_published("adaptive_context", lambda c, d, n: n * d, after=False),),
        concat=True,
        keys=(ROOT.with_layers(bottleneck="fuse"),),
    ),
    "deeplabv3": Plan(
        "DeepLabV3",
        "Rethinking Atrous Convolution for Semantic Image Segmentation (2017)",
        (_published("atrous_pyramid", lambda c, d, n: d, after=False, fuse_kernel=3),),
        keys=(ROOT,),
    ),
    "isanet": Plan(
        "ISANet",
        "Interlaced Sparse Self-Attention for Semantic Segmentation (2019)",
        (Path("interlaced", {"value_bias": True, "form": "published"}, before="channels", inner="inner"),),
        keys=(ROOT.with_layers(in_conv="paths.0.before"),),
    ),
    "emanet": Plan(
        "EMANet",
        "Expectation-Maximization Attention Networks for Semantic Segmentation (ICCV 2019)",
        (
            Path(
                "expectation_maximization",
                {"variant": "mmseg", "norm_layer": nn.BatchNorm2d, "final_act": True},
                before="inner",
                after=True,
            ),
        ),
        concat=True,
        width=8,
        inner=-2,
        keys=(
            ROOT.with_layers(ema_in_conv="paths.0.before", bottleneck="paths.0.after", conv_cat="fuse"),
            FC.with_block("emau"),
        ),
    ),
    "eanet": Plan(
        "EANet",
        "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks (TPAMI 2022)",
        (Path("external_attention", {"final_act": True}, before="inner", after=True),),
        width=8,
        inner=-2,
        keys=(FC.with_block("linu"),),
    ),
    "hamnet": Plan(
        "HamNet",
        "Is Attention Better Than Matrix Decomposition? (ICLR 2021)",
        (Path("hamburger", {"final_act": True}, before="inner", after=True),),
        width=8,
        inner=-2,
        keys=(),
    ),
    "ocnet": Plan(
        "OCNet",
        "OCNet: Object Context Network for Scene Parsing (2018; IJCV 2021)",
        (Path("object_context", {"form": "published", "dropout": 0.05}, before="channels"),),
        keys=(),
    ),
    "ann": Plan(
        "ANN",
        "Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019)",
        (Path("asymmetric_nonlocal", {"mode": "pyramid", **_ANN}, before="channels", inner="inner"),),
        merge=("asymmetric_nonlocal", {"mode": "fusion", **_ANN}),
        keys=(Keys({"bottleneck": "paths.0.before"}, {"fusion": "merge", "context": "paths.0.block"}),),
        aliases=("annnet",),
    ),
    "ocrnet": Plan(
        "OCRNet",
        "Object-Contextual Representations for Semantic Segmentation (ECCV 2020)",
        (Path("object_contextual", {"bias": False}, before="channels", inner="inner"),),
        guess=True,
        keys=(Keys({"bottleneck": "paths.0.before"}, {"object_context_block": "paths.0.block"}),),
        aliases=("ocr",),
    ),
}  # fmt: skip


def framed(block: str) -> Plan:
    """FCN's frame around a block that keeps the shape, as non-local networks have it: convolution, block, convolution.

    >>> framed("glore").paths[0].block
    'glore'
    """
    info = block_info(block)
    if info.kind != "context":
        raise ValueError(f"{info.name} is no block that keeps the shape of a map: it cannot be a head")
    return Plan(info.title, info.paper, _around(info.name), concat=True, keys=())


# the head that trains the stage before the last one: a convolution and a classifier
AUXILIARY = Plan("FCN, one convolution", HEADS["fcn"].paper, (Path(before="channels"),))


class Way(nn.Module):
    """The modules of a :class:`Path`: ``(B, C, H, W) -> (B, out_channels, H, W)``."""

    def __init__(
        self,
        path: Path,
        channels: int,
        widths: Mapping[Width, int],
        *,
        kernel_size: int,
        dilation: int,
        act_layer: Norm,
        options: Mapping[str, Any],
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "act_layer": act_layer, "dilation": dilation, **dd}
        self.before = self.block = self.after = None
        if path.before is not None:
            self.before = ConvNorm(channels, widths[path.before], kernel_size, **layers)
            channels = widths[path.before]
        if path.block is not None:
            inner = {} if path.inner is None else {"inner_channels": widths[path.inner]}
            self.block = create_block(path.block, channels, **options, **inner, **dd)
            if path.gives is not None:
                bins = len(getattr(self.block, "bins", None) or getattr(self.block, "scales", ()))
                channels = path.gives(channels, widths[path.inner or "channels"], bins)
        if path.after:
            self.after = ConvNorm(channels, widths["channels"], kernel_size, **layers)
            channels = widths["channels"]
        self.out_channels = channels

    def forward(self, x: Tensor, *second: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        x = x if self.block is None else self.block(x, *second)
        return x if self.after is None else self.after(x)


class Head(nn.Module):
    """From a backbone's maps to logits, as a :class:`Plan` says.

    y = classify(fuse [x, sum_p after_p(block_p(before_p(x)))]), x first merged with the map of the stage before in ANN

    Args:
        plan: What it consists of.
        channels: Channels of the last map.
        num_classes: Number K of classes.
        width: Channels of the head; ``channels // plan.width`` by default.
        inner_channels: Inner channels of its blocks; by default as published in proportion.
        low_channels: Channels of the map of the stage before, where the plan merges it.
        align_corners: Of the resizing within blocks.
        kernel_size: Of the convolutions around a block.
        dilation: Of the convolutions around a block, as FCN-D6 has it.
        dropout: Before the classifier, in training.
        negative_slope: Of the rectifiers around a block.
        concat: Whether a convolution of x and the result follows; as published by default.
        options: Of the blocks, instead of the published ones; each block takes those that it has.

    Shape: ``(B, C, H, W) -> (B, K, H, W)``

    Raises:
        TypeError: An option that no block of the head has.
    """

    def __init__(
        self,
        plan: Plan,
        channels: int,
        num_classes: int,
        *,
        width: int | None = None,
        inner_channels: int | None = None,
        low_channels: int | None = None,
        align_corners: bool = False,
        kernel_size: int = 3,
        dilation: int = 1,
        dropout: float = 0.1,
        negative_slope: float = 0.0,
        concat: bool | None = None,
        options: Mapping[str, Any] | None = None,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.plan = plan
        width = width or max(channels // plan.width, 1)
        inner = inner_channels or (-plan.inner * width if plan.inner < 0 else max(width // plan.inner, 1))
        widths: dict[Width, int] = {"channels": width, "inner": inner}
        given = {"align_corners": align_corners, **(options or {})}
        _check_known(plan, options or {})
        self.merge = None
        if plan.merge is not None:
            name, published = plan.merge
            chosen = _chosen(name, published, given)
            self.merge = create_block(
                name, channels, **chosen, low_channels=low_channels, inner_channels=inner, out_channels=channels, **dd
            )
        act: Norm = partial(nn.LeakyReLU, negative_slope) if negative_slope else nn.ReLU
        layers: dict[str, Any] = {"kernel_size": kernel_size, "dilation": dilation, "act_layer": act, **dd}
        ways = []
        for path in plan.paths:
            own = {} if path.block is None else _chosen(path.block, path.options, given)
            ways.append(Way(path, channels, widths, options=own, **layers))
        self.paths = nn.ModuleList(ways)
        out = ways[0].out_channels
        self.fuse = None
        if plan.concat if concat is None else concat:
            layer = ConvNorm(channels + out, width, kernel_size, norm_layer=nn.BatchNorm2d, act_layer=act, **dd)
            self.fuse, out = layer, width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(out, num_classes, 1, **dd)
        several = len(ways) if len(ways) > 1 else 0
        self.classifiers = nn.ModuleList(nn.Conv2d(out, num_classes, 1, **dd) for _ in range(several))
        for conv in (self.classifier, *self.classifiers):
            nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *, low: Tensor | None = None, guess: Tensor | None = None) -> Tensor:
        """The logits; ``low`` is the map of the stage before, ``guess`` other logits, where the plan has them."""
        return self.outputs(x, low=low, guess=guess, only_first=True)[0]

    def outputs(
        self, x: Tensor, *, low: Tensor | None = None, guess: Tensor | None = None, only_first: bool = False
    ) -> list[Tensor]:
        """The logits, then those of each path by itself where there are several."""
        if self.merge is not None:
            x = self.dropout(self.merge(x, low))
        second = () if guess is None or not self.plan.guess else (guess,)
        maps = [way(x, *second) for way in self.paths]
        y = maps[0]
        for other in maps[1:]:
            y = y + other
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        outputs = [self.classifier(self.dropout(y))]
        if not only_first:
            outputs += [classify(self.dropout(m)) for classify, m in zip(self.classifiers, maps)]
        return outputs

    def from_authors(self, state: State) -> State:
        """Others' names of a head, without what stands before them, into ours."""
        keys = next((some for some in self.plan.keys if any(key.startswith(some.mark) for key in state)), None)
        if keys is None:
            return state
        found = rename(state, keys.patterns)
        blocks = {place: dict[str, Tensor]() for place in keys.blocks.values()}
        for key in list(found):
            for theirs, place in keys.blocks.items():
                if key in state and key.startswith(theirs and f"{theirs}."):
                    blocks[place][key.removeprefix(theirs).lstrip(".")] = found.pop(key)
                    break
        for place, part in blocks.items():
            if part:
                found |= {f"{place}.{key}": v for key, v in convert(self.get_submodule(place), part).items()}
        return found


def _chosen(block: str, published: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a block: the published ones, then those that are given and that it has."""
    return {**published, **{name: value for name, value in given.items() if name in block_info(block).options}}


def _check_known(plan: Plan, options: Mapping[str, Any]) -> None:
    names = [path.block for path in plan.paths if path.block is not None]
    names += [] if plan.merge is None else [plan.merge[0]]
    for option in options:
        if not any(option in block_info(name).options for name in names):
            raise TypeError(
                _explain(block_info(names[0]), option) if names else f"{plan.title} has no block, so no {option!r}"
            )
