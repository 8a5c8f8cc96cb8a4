"""Published networks by name."""

import difflib
import fnmatch
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lookfar._options import check
from lookfar.blocks import block_info, list_blocks
from lookfar.networks.attention_backbones import ATTENTION_BACKBONES, build_attention_backbone
from lookfar.networks.backbones import build_backbone
from lookfar.networks.cgnet import CAMVID, CGNet
from lookfar.networks.heads import Head
from lookfar.networks.plans import AUXILIARY, HEADS, can_be_framed, framed
from lookfar.networks.preprocessing import Inference, Preprocessing
from lookfar.networks.published import SegmentationNetwork

_PRESET = re.compile(r"(?P<head>\w+?)_(?P<backbone>resnet\d+b?)_d(?P<stride>8|16|32)")
_PRESETS = tuple(f"resnet{depth}_d8" for depth in (18, 50, 101))


def create_network(
    name: str,
    num_classes: int | None = None,
    *,
    backbone: str | None = None,
    output_stride: int | None = None,
    width: int | None = None,
    inner_channels: int | None = None,
    auxiliary: bool | int = True,
    align_corners: bool = False,
    kernel_size: int = 3,
    dilation: int = 1,
    negative_slope: float = 0.0,
    concat: bool | None = None,
    dropout: float = 0.1,
    dilations_of_stages: Sequence[int] | None = None,
    last_dilations: Sequence[int] | None = None,
    contract_dilation: bool = True,
    ceil_mode: bool = False,
    in_chans: int = 3,
    pretrained: bool = False,
    backbone_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    inference: Inference | None = None,
    class_names: Sequence[str] = (),
    palette: Sequence[Sequence[int]] = (),
    **options: Any,
) -> Any:
    """A published network by name: for semantic segmentation, or a backbone of the family's papers for images' classes.

    Args:
        name: A backbone (``sasa_resnet26``, ``lr_net26``, ``aa_resnet50``, ``t2t_vit_14``, ``eamlp_7``), of which the
            options are ``num_classes`` (1000), ``in_chans``, ``size``, ``stem`` and ``scale``: it is a
            ``torch.nn.Module`` with timm's interface. Else the network is a :class:`SegmentationNetwork` or
            :class:`CGNet`, and what follows is meant: a head (``danet``), a head with a backbone and an output stride
            (``danet_resnet50_d8``), ``cgnet``, ``cgnet_camvid``, or a block that keeps the shape of its map, which is
            put into FCN's frame. :func:`list_networks` lists all.
        num_classes: Number of classes; by default that of ``class_names`` or of the preset.
        backbone: A model of timm with feature maps, ``resnet50c`` by default: ResNet-50 with three convolutions in
            place of the first, as mmsegmentation has it. ``resnet18c`` and ``resnet34c`` are known too.
        output_stride: Stride of the last map, 8 by default.
        width: Channels of the head; by default in proportion to the backbone's, 512 on a ResNet-50.
        inner_channels: Channels within the head's blocks; by default in proportion to ``width``.
        auxiliary: An auxiliary head on the stage before, for training; a number is its width. OCRNet must have one.
        align_corners: Of the resizing of logits and within blocks.
        kernel_size: Of the head's convolutions.
        dilation: Of both heads' convolutions: 6 is FCN-D6.
        negative_slope: Of the rectifiers around the head's blocks, as InPlaceABN has them.
        concat: Whether the head ends in a convolution of features and context; as published by default.
        dropout: Before classifiers, in training.
        dilations_of_stages: Dilations of the last two stages, where they do not follow from the output stride.
        last_dilations: Dilations of the blocks of the last stage, where they differ (multi-grid).
        contract_dilation: The first block of a dilated stage has half its dilation.
        ceil_mode: Of the backbone's first max-pool.
        in_chans: Bands of the images.
        pretrained: Take timm's weights of the backbone (downloaded once).
        backbone_options: timm's options of the backbone, such as ``channels`` and ``stem_width`` of a thin ResNet.
        preprocessing: What images go through before; ImageNet's mean and deviation by default.
        inference: How images of any size are predicted: whole by default.
        class_names: Names of the classes.
        palette: Their colours.
        **options: Of the head's blocks, such as ``recurrence=3`` for CCNet.

    Raises:
        ValueError: An unknown name, backbone or choice; a number of classes that is missing or contradicts.
        TypeError: An option that no block of the head has.

    >>> import torch
    >>> thin = {"channels": (8, 16, 32, 64), "stem_width": 4}
    >>> network = create_network("ccnet", 5, backbone_options=thin, recurrence=3).eval()
    >>> network(torch.randn(1, 3, 65, 49)).shape, network.logits(torch.randn(1, 3, 65, 49)).shape
    (torch.Size([1, 5, 65, 49]), torch.Size([1, 5, 9, 7]))
    """
    if name in ATTENTION_BACKBONES:
        kept = {"output_stride": output_stride, "inner_channels": inner_channels, "pretrained": pretrained}
        given = {what: value for what, value in locals().items() if what not in (*kept, "kept", "options")}
        _of_no_head(name, given, ("name", "num_classes", "in_chans"))
        kept = {what: value for what, value in kept.items() if value is not None}
        return build_attention_backbone(name, num_classes, in_chans=in_chans, **kept, **options)
    config = {what: value for what, value in locals().items() if what not in ("options", "pretrained")} | options
    for what, value in (("width", width), ("inner_channels", inner_channels)):
        check(what, value, int | None)
    check("auxiliary", auxiliary, int | bool)
    head_name, preset = _resolve(name)
    about: dict[str, Any] = {
        "preprocessing": preprocessing,
        "inference": inference,
        "class_names": tuple(class_names),
        "palette": tuple(palette),
    }
    if preset is CAMVID:
        about = {what: given or CAMVID.get(what) for what, given in about.items()}
    K = _classes(name, num_classes, about["class_names"])
    if head_name == "cgnet":
        own = ("name", "num_classes", "in_chans", "preprocessing", "inference", "class_names", "palette")
        _of_no_head(name, {what: value for what, value in config.items() if what not in options}, own)
        network = CGNet(K, in_chans=in_chans, **about, **options)
        network.config = config
        return network
    for what, given in (("backbone", backbone), ("output_stride", output_stride)):
        if given is not None and preset.get(what, given) != given:
            raise ValueError(f"{name} has {what}={preset[what]!r}, got {given!r}: give {head_name!r} for another")
    plan = HEADS.get(head_name) or framed(head_name)
    if plan.guess and not auxiliary:
        raise ValueError(f"{head_name} starts from the guess of its auxiliary head: auxiliary cannot be {auxiliary}")
    features = build_backbone(
        backbone or preset.get("backbone", "resnet50c"),
        maps=2 if auxiliary or plan.merge is not None else 1,
        output_stride=output_stride or preset.get("output_stride", 8),
        dilations=dilations_of_stages or preset.get("dilations_of_stages"),
        last_dilations=last_dilations,
        contract_dilation=contract_dilation,
        ceil_mode=ceil_mode,
        in_chans=in_chans,
        pretrained=pretrained,
        options=backbone_options,
    )
    *low, channels = features.feature_info.channels()  # type: ignore[union-attr,operator]
    common: dict[str, Any] = {"align_corners": align_corners, "dropout": dropout, "dilation": dilation}
    head = Head(
        plan,
        channels,
        K,
        width=width,
        inner_channels=inner_channels,
        low_channels=low[-1] if plan.merge is not None else None,
        kernel_size=kernel_size,
        negative_slope=negative_slope,
        concat=concat,
        options=options,
        **common,
    )
    aside = None
    if auxiliary:
        aside = Head(AUXILIARY, low[-1], K, width=None if auxiliary is True else auxiliary, **common)
    network = SegmentationNetwork(features, head, aside, align_corners=align_corners, **about)
    network.config = config
    return network


def list_networks(pattern: str | None = None) -> list[str]:
    """Names that :func:`create_network` takes, in alphabetical order, filtered by a glob pattern.

    >>> list_networks("danet*")
    ['danet', 'danet_resnet101_d8', 'danet_resnet18_d8', 'danet_resnet50_d8']
    """
    framed_blocks = set(filter(can_be_framed, list_blocks())) - HEADS.keys()
    names = [
        *HEADS,
        *ATTENTION_BACKBONES,
        *framed_blocks,
        *(f"{head}_{preset}" for head in HEADS for preset in _PRESETS),
        "cgnet",
        "cgnet_camvid",
    ]
    return sorted(name for name in names if pattern is None or fnmatch.fnmatch(name, pattern))


def is_network(name: str) -> bool:
    """Whether a name is that of a network for segmentation, an alias too.

    >>> is_network("danet_resnet50_d8"), is_network("danet.pth")
    (True, False)
    """
    try:
        _resolve(name)
    except ValueError:
        return False
    return True


def fixes_stride(name: str) -> bool:
    """Whether the name says the output stride, or the network has but one.

    >>> fixes_stride("danet_resnet50_d8"), fixes_stride("cgnet"), fixes_stride("danet")
    (True, True, False)
    """
    head, preset = _resolve(name)
    return head == "cgnet" or "output_stride" in preset


def _resolve(name: str) -> tuple[str, Mapping[str, Any]]:
    """Canonical name of the head, and what the name says besides."""
    aliases = {alias: head for head, plan in HEADS.items() for alias in plan.aliases}
    if name in ("cgnet", "cgnet_camvid"):
        return "cgnet", CAMVID if name == "cgnet_camvid" else {}
    match = _PRESET.fullmatch(name)
    head = match["head"] if match else name
    head = aliases.get(head, head)
    if head not in HEADS and (block := _block(head)) is not None:
        head = block
    elif head not in HEADS:
        near = difflib.get_close_matches(name, [*list_networks(), *aliases], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no network is called {name!r}.{hint} lookfar.list_networks() lists all.")
    if match is None:
        return head, {}
    # mmsegmentation's ResNet has the deep stem where its name says nothing, the plain one where it ends in b
    stem = match["backbone"].removesuffix("b") if match["backbone"].endswith("b") else f"{match['backbone']}c"
    preset = {"backbone": stem, "output_stride": int(match["stride"])}
    # its D32 strides and dilates too
    return head, preset | ({"dilations_of_stages": (2, 4)} if preset["output_stride"] == 32 else {})


def _of_no_head(name: str, given: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse what a network does not have that is no head on a backbone."""
    defaults = {what: p.default for what, p in inspect.signature(create_network).parameters.items()}
    if other := [what for what, value in given.items() if what not in own and value != defaults[what]]:
        raise ValueError(f"{name} is not a head on a backbone and has no {other[0]}")


def _block(name: str) -> str | None:
    """Canonical name of the block that may be a head."""
    try:
        return info.name if can_be_framed((info := block_info(name)).name) else None
    except ValueError:
        return None


def _classes(name: str, num_classes: int | None, class_names: Sequence[str]) -> int:
    K = len(class_names) or num_classes
    if num_classes is not None and num_classes != K:
        raise ValueError(f"num_classes is {num_classes}, but {len(class_names)} classes are named")
    if not isinstance(K, int) or K < 1:
        raise ValueError(f"{name} wants a number of classes, got {num_classes!r}")
    return K
