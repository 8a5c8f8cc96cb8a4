"""Which network a state dict belongs to, by names and shapes alone.

What no shape tells (strides, dilations, recurrence, temperature, scales of pooling, corners) is left open here: see
:mod:`lookfar.networks.checkpoints`.
"""

import math
from collections.abc import Callable
from typing import Any

from lookfar.networks.authors import release_of
from lookfar.networks.backbones import from_mmseg
from lookfar.networks.tokens_to_token import seen_in_tokens
from lookfar.weights import State
from lookfar.weights.files import some_prefixes

# a key of mmsegmentation's head that no other head has -> our name, and the key whose first size is the inner width
_MARKS: dict[str, tuple[str, str | None]] = {
    "nl_block.g.conv.weight": ("nonlocal", None),
    "dnl_block.g.conv.weight": ("dnl", None),
    "gc_block.conv_mask.weight": ("gcnet", "gc_block.channel_add_conv.0.weight"),
    "cca.query_conv.weight": ("ccnet", None),
    "pam.query_project.weight": ("danet", "pam.query_project.weight"),
    "reduce.conv.weight": ("psanet", None),
    "psp_modules.0.1.conv.weight": ("pspnet", None),
    "acm_modules.0.gla.weight": ("apcnet", None),
    "aspp_modules.0.conv.weight": ("deeplabv3", None),
    "global_relation.value_project.weight": ("isanet", "global_relation.query_project.0.conv.weight"),
    "ema_module.bases": ("emanet", "ema_in_conv.conv.weight"),
    "fusion.stages.0.value_project.weight": ("ann", "fusion.stages.0.query_project.conv.weight"),
    "object_context_block.value_project.conv.weight": ("ocrnet", "object_context_block.query_project.0.conv.weight"),
    "conv_cat.conv.weight": ("fcn", None),
}
# what mmsegmentation has besides and is not built here: the beginning of a key of its head -> its name
_OTHERS = {
    "c1_bottleneck.": "DeepLabV3+",
    "lateral_convs.": "UPerNet",
    "enc_module.": "EncNet",
    "fcs.": "PointRend",
    "aspp_modules.1.depthwise_conv.": "DeepLabV3 with separable convolutions",
}
# parameters of layers by leaderj1001 that compute something else than the papers -> what is built of the papers' layer
_PORTS = {
    ("rel_h", "query_conv.weight"): ("Stand-Alone-Self-Attention", "sasa_resnet26"),
    ("emb_mix", "query_conv.weight"): ("Stand-Alone-Self-Attention", "sasa_resnet26"),
    ("qkv_conv.weight", "attn_out.weight"): ("Attention-Augmented-Conv2d", "aa_resnet50"),
}
_DEPTHS: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2, False): 18,
    (3, 4, 6, 3, False): 34,
    (3, 4, 6, 3, True): 50,
    (3, 4, 23, 3, True): 101,
    (3, 8, 36, 3, True): 152,
}


def seen_in(state: State) -> dict[str, Any]:
    """Arguments of :func:`lookfar.networks.create_network` that names and shapes tell.

    Args:
        state: Names as the authors have them, without what stands before all of them.

    Raises:
        ValueError: It is none of the networks that are built here; the message says what it looks like.

    >>> import torch
    >>> keys = {"level1_0.conv.weight": (32, 3, 3, 3), "level2.1.F_loc.conv.weight": (32, 1, 3, 3)}
    >>> keys |= {"level3.19.F_loc.conv.weight": (64, 1, 3, 3), "classifier.0.conv.weight": (19, 256, 1, 1)}
    >>> seen_in({key: torch.empty(shape) for key, shape in keys.items()})
    {'name': 'cgnet', 'num_classes': 19, 'in_chans': 3, 'depths': (3, 21)}
    """
    if "level1_0.conv.weight" in state and "classifier.0.conv.weight" in state:
        return _cgnet(state)
    if (tokens := seen_in_tokens(state)) is not None:
        return tokens
    _refuse_ports(state)
    if (release := release_of(state)) is not None:
        backbone, head, aside = release.split(state)
        return {"name": release.name, **_authors_head(release.name, head, aside), **_backbone(backbone)}
    if not any(key.startswith("decode_head.") for key in state):
        raise ValueError(f"no network of ours has such names: {some_prefixes(state)}")
    part = {k.removeprefix("backbone."): value for k, value in state.items() if k.startswith("backbone.")}
    return _head(state) | _backbone(from_mmseg(part))


def _refuse_ports(state: State) -> None:
    """Raise a ValueError for layers that have a paper's name and another mathematics."""
    for marks, (port, network) in _PORTS.items():
        layers = [{key.removesuffix(mark) for key in state if f".{key}".endswith(f".{mark}")} for mark in marks]
        if set.intersection(*layers):
            raise ValueError(
                f"its layers are those of leaderj1001/{port}, which compute something else than the paper: "
                f"their weights have no place in {network}"
            )


def _cgnet(state: State) -> dict[str, Any]:
    K = state["classifier.0.conv.weight"].shape[0]
    depths = tuple(_count(state, f"level{stage}") + 1 for stage in (2, 3))
    preset = K == 11 and depths == (3, 21)
    found: dict[str, Any] = {"name": "cgnet_camvid" if preset else "cgnet", "num_classes": K}
    return {**found, "in_chans": state["level1_0.conv.weight"].shape[1], "depths": depths}


def _authors_head(name: str, head: State, aside: State) -> dict[str, Any]:
    """Widths of a head under its authors' names, which are those of the block's inside it."""
    classifier = head.get(_CLASSIFIERS[name])
    if classifier is None:
        raise ValueError(f"its head has no {_CLASSIFIERS[name]}")
    found: dict[str, Any] = {"num_classes": classifier.shape[0], "width": classifier.shape[1], "auxiliary": False}
    if name == "emanet":
        found["bases"] = head["emau.mu"].shape[-1]
    if name == "ocrnet" and "3.weight" in aside:
        found["auxiliary"] = aside["3.weight"].shape[1]
    if name in _INNER and _INNER[name] in head:
        found["inner_channels"] = head[_INNER[name]].shape[0]
    if name == "psanet":
        found |= _mask(head["psa.attention.3.weight"].shape[0], "psa.attention_p.3.weight" in head)
    return found


_INNER = {
    "ocrnet": "spatial_ocr_head.object_context_block.f_pixel.0.weight",
    "isanet": "isa_head.2.stages.0.long_range_sa.f_key.0.weight",
    "emanet": "fc0.conv.weight",
}
_CLASSIFIERS = {
    "ocrnet": "head.weight",
    "isanet": "cls_head.weight",
    "pspnet": "cls.4.weight",
    "psanet": "cls.4.weight",
    "emanet": "fc2.weight",
    "danet": "conv8.1.weight",
    "ccnet": "bottleneck.3.weight",
}


def _backbone(state: State) -> dict[str, Any]:
    """Of a ResNet under timm's names."""
    if any(key.startswith(("transition", "stage2.")) for key in state):
        raise ValueError("its backbone is an HRNet, which is not built here: ResNets are")
    counts = tuple(_count(state, f"layer{stage}") for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in state
    depth = _DEPTHS.get((*counts, bottleneck))
    if depth is None or "layer1.0.conv1.weight" not in state:
        raise ValueError(
            f"its backbone is not a ResNet that can be built here: {some_prefixes(state) or 'it has no keys'}"
        )
    deep = "conv1.0.weight" in state
    stem = state.get("conv1.0.weight" if deep else "conv1.weight")
    if stem is None or "layer2.0.downsample.2.weight" in state:
        raise ValueError("its backbone is a ResNet of another form: ResNet and ResNetV1c are built here")
    base = state["layer1.0.conv1.weight"].shape[0]
    options: dict[str, Any] = {} if base == 64 else {"channels": (base, 2 * base, 4 * base, 8 * base)}
    if deep and stem.shape[0] != 32:
        options["stem_width"] = stem.shape[0]
    if not deep and stem.shape[0] != 64:
        options["stem_channels"] = stem.shape[0]
    return {
        "backbone": f"resnet{depth}{'c' if deep else ''}",
        "in_chans": stem.shape[1],
        "backbone_options": options,
    }


def _head(state: State) -> dict[str, Any]:
    cascade = "decode_head.1.conv_seg.weight" in state
    start, aside = ("decode_head.1.", "decode_head.0.") if cascade else ("decode_head.", "auxiliary_head.")
    head = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    other = next((what for part, what in _OTHERS.items() if any(key.startswith(part) for key in head)), None)
    name, inner = next((found for mark, found in _MARKS.items() if mark in head), ("", None))
    if other is not None:
        raise ValueError(f"its head is {other}, which is not built here")
    if not name or "conv_seg.weight" not in head or cascade != (name == "ocrnet"):
        raise ValueError(f"its head is none that is built here: it holds {some_prefixes(head)}")
    K, width = head["conv_seg.weight"].shape[:2]
    found: dict[str, Any] = {"name": name, "num_classes": K, "width": width, "auxiliary": False}
    if f"{aside}conv_seg.weight" in state:
        found["auxiliary"] = state[f"{aside}conv_seg.weight"].shape[1]
    if name in ("fcn", "nonlocal", "dnl", "gcnet", "ccnet", "emanet"):
        found["concat"] = "conv_cat.conv.weight" in head
    if inner is not None:
        found["inner_channels"] = head[inner].shape[0]
    first = next((head[key] for key in ("convs.0.conv.weight", "in_conv.conv.weight") if key in head), None)
    if first is not None:
        found["kernel_size"] = first.shape[-1]
    return found | (_OPTIONS[name](head) if name in _OPTIONS else {})


def _pairwise(block: str) -> Callable[[State], dict[str, Any]]:
    def options(head: State) -> dict[str, Any]:
        width, inner = head["conv_seg.weight"].shape[1], head[f"{block}.g.conv.weight"].shape[0]
        return {"reduction": width // inner}

    return options


def _nonlocal(head: State) -> dict[str, Any]:
    found = _pairwise("nl_block")(head)
    if "nl_block.concat_project.0.weight" in head or "nl_block.concat_project.conv.weight" in head:
        return {**found, "mode": "concatenation"}
    return found if "nl_block.theta.conv.weight" in head else {**found, "mode": "gaussian"}


def _psanet(head: State) -> dict[str, Any]:
    return _mask(head["attention.1.weight"].shape[0], "attention_p.1.weight" in head)


def _mask(channels: int, both: bool) -> dict[str, Any]:
    side = math.isqrt(channels)
    if not both or side * side != channels:
        return {}  # one direction, or a mask that is no square: which one, no shape tells
    return {"mode": "both", "mask_size": (side, side)}


def _apcnet(head: State) -> dict[str, Any]:
    scales = range(_count(head, "acm_modules"))
    bins = tuple(math.isqrt(head[f"acm_modules.{n}.gla.weight"].shape[0]) for n in scales)
    return {"bins": bins, "fusion": "acm_modules.0.fusion_conv.conv.weight" in head}


def _gcnet(head: State) -> dict[str, Any]:
    add, mul = ("gc_block.channel_add_conv.0.weight" in head, "gc_block.channel_mul_conv.0.weight" in head)
    return {"fusion": "both" if add and mul else "mul" if mul else "add"}


_OPTIONS: dict[str, Callable[[State], dict[str, Any]]] = {
    "nonlocal": _nonlocal,
    "dnl": _pairwise("dnl_block"),
    "psanet": _psanet,
    "apcnet": _apcnet,
    "gcnet": _gcnet,
    "emanet": lambda head: {"bases": head["ema_module.bases"].shape[-1]},
}


def _count(state: State, start: str) -> int:
    """How many children ``start`` has, as the numbers in its keys say."""
    numbers = {key.removeprefix(f"{start}.").split(".")[0] for key in state if key.startswith(f"{start}.")}
    return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)
