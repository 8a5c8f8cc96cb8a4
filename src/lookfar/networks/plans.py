"""Heads of published segmentation networks as data: a row of a table says all that one is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lookfar.blocks import block_info
from lookfar.networks._keys import (
    CCNET,
    DANET,
    FC,
    FCN,
    MMSEG_DANET,
    OPENSEG_AUXILIARY,
    OPENSEG_ISA,
    OPENSEG_OCR,
    ROOT,
    SEMSEG,
    Keys,
)

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
    def has_inner(self) -> bool:
        """Whether the inner width is one of the head's own; else it is an option of its blocks."""
        return self.merge is not None or any("inner" in (path.before, path.inner) for path in self.paths)


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
        keys=(ROOT.with_layers(in_conv="paths.0.before"), OPENSEG_ISA),
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
        keys=(Keys({"bottleneck": "paths.0.before"}, {"object_context_block": "paths.0.block"}), OPENSEG_OCR),
        aliases=("ocr",),
    ),
}  # fmt: skip


# heads by their kind that keep the shape of their map all the same, and what they take where its size is free
_SHAPE_KEPT: dict[str, Mapping[str, Any]] = {"symbolic_graph_reasoning": {"normalize": True}}


def can_be_framed(block: str) -> bool:
    """Whether a block keeps the shape of a map, so that it can stand between the convolutions of a head."""
    return block_info(block).kind == "context" or block in _SHAPE_KEPT


def framed(block: str) -> Plan:
    """FCN's frame around a block that keeps the shape, as non-local networks have it: convolution, block, convolution.

    >>> framed("glore").paths[0].block
    'glore'
    """
    info = block_info(block)
    if not can_be_framed(info.name):
        raise ValueError(f"{info.name} is not a block that keeps the shape of a map: it cannot be a head")
    around = _around(info.name, **_SHAPE_KEPT.get(info.name, {}))
    return Plan(info.title, info.paper, around, concat=True, keys=())


# the head that trains the stage before the last one: a convolution and a classifier
AUXILIARY = Plan("FCN, one convolution", HEADS["fcn"].paper, (Path(before="channels"),), keys=(FCN, OPENSEG_AUXILIARY))
