"""mmsegmentation's configuration of a network, a dictionary, into the arguments of ``create_network``.

What a configuration says and we do not build is refused by name: settings that are passed over would give another
network without a complaint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]

# their decode head -> ours, and their option -> our option of the block
_HEADS: dict[str, tuple[str, dict[str, str]]] = {
    "FCNHead": ("fcn", {}),
    "NLHead": ("nonlocal", {"reduction": "reduction", "use_scale": "scale", "mode": "mode"}),
    "DNLHead": (
        "dnl",
        {"reduction": "reduction", "use_scale": "scale", "mode": "mode", "temperature": "temperature"},
    ),
    "GCHead": ("gcnet", {"ratio": "inner_channels", "pooling_type": "pooling", "fusion_types": "fusion"}),
    "CCHead": ("ccnet", {"recurrence": "recurrence"}),
    "DAHead": ("danet", {"pam_channels": "inner_channels"}),
    "PSAHead": (
        "psanet",
        {
            "mask_size": "mask_size",
            "psa_type": "mode",
            "compact": "compact",
            "shrink_factor": "shrink_factor",
            "normalization_factor": "normalization_factor",
            "psa_softmax": "normalization",
        },
    ),
    "PSPHead": ("pspnet", {"pool_scales": "bins"}),
    "APCHead": ("apcnet", {"pool_scales": "bins", "fusion": "fusion"}),
    "ASPPHead": ("deeplabv3", {"dilations": "dilations"}),
    "ISAHead": ("isanet", {"isa_channels": "inner_channels", "down_factor": "down_factor"}),
    "EMAHead": (
        "emanet",
        {"ema_channels": "inner_channels", "num_bases": "bases", "num_stages": "iterations", "momentum": "momentum"},
    ),
    "ANNHead": ("ann", {"project_channels": "inner_channels", "key_pool_scales": "bins"}),
    "OCRHead": ("ocrnet", {"ocr_channels": "inner_channels"}),
}  # fmt: skip

# theirs that say nothing about what the network computes, or are read elsewhere
_READ = {
    *("type", "in_channels", "in_index", "channels", "num_classes", "dropout_ratio", "align_corners", "norm_cfg"),
    *("loss_decode", "sampler", "init_cfg", "ignore_index", "input_transform", "kernel_size", "num_convs"),
    *("concat_input", "dilation", "act_cfg", "conv_cfg", "out_channels", "threshold"),
}
_BACKBONE = {
    *("type", "depth", "num_stages", "out_indices", "dilations", "strides", "norm_cfg", "norm_eval", "style"),
    *("contract_dilation", "base_channels", "stem_channels", "multi_grid", "init_cfg", "pretrained", "with_cp"),
    *("frozen_stages", "zero_init_residual", "in_channels", "deep_stem", "avg_down", "act_cfg", "conv_cfg", "dcn"),
}
_MODES = {"bi-direction": "both", "collect": "collect", "distribute": "distribute"}
_STRIDES = {(1, 2, 1, 1): 8, (1, 2, 2, 1): 16, (1, 2, 2, 2): 32}


def arguments_of(model: Config) -> dict[str, Any]:
    """The arguments of :func:`lookfar.networks.create_network`, ``name`` among them, by ``model`` of a configuration.

    Raises:
        ValueError: A backbone, a head or a setting that is not built here.

    >>> head = {"type": "CCHead", "in_channels": 2048, "channels": 512, "num_classes": 19, "recurrence": 3}
    >>> arguments = arguments_of({"backbone": {"type": "ResNetV1c", "depth": 50}, "decode_head": head})
    >>> [arguments[name] for name in ("name", "num_classes", "backbone", "output_stride", "recurrence")]
    ['ccnet', 19, 'resnet50c', 32, 3]
    """
    head, auxiliary = model.get("decode_head"), model.get("auxiliary_head")
    if isinstance(head, Sequence) and not isinstance(head, str):
        if len(head) != 2 or auxiliary is not None:
            raise ValueError(f"a cascade of {len(head)} heads is not built here, two are")
        auxiliary, head = head
    if isinstance(auxiliary, Sequence):
        if len(auxiliary) != 1:
            raise ValueError(f"{len(auxiliary)} auxiliary heads are not built here, one is")
        (auxiliary,) = auxiliary
    if not isinstance(head, Mapping) or not isinstance(model.get("backbone"), Mapping):
        raise ValueError("the configuration has no backbone with a decode_head")
    arguments = head_arguments_of(head) | _backbone(model["backbone"])
    _on_stage(head, (2, 3) if arguments["name"] == "ann" else 3)
    arguments["auxiliary"] = False
    if auxiliary is not None:
        _on_stage(auxiliary, 2)
        arguments["auxiliary"] = _auxiliary(auxiliary, head.get("dilation", 1))
    return arguments


def _backbone(cfg: Config) -> dict[str, Any]:
    kind = cfg.get("type")
    if kind not in ("ResNet", "ResNetV1c"):
        raise ValueError(f"the backbone {kind} is not built here: ResNet and ResNetV1c are")
    _only(cfg, _BACKBONE, kind)
    _must(kind, cfg, style="pytorch", num_stages=4, conv_cfg=None, dcn=None, avg_down=False)
    _batch_norm(cfg)
    deep = cfg.get("deep_stem", kind == "ResNetV1c")
    strides, base = tuple(cfg.get("strides", (1, 2, 2, 2))), cfg.get("base_channels", 64)
    stride, dilations = _STRIDES.get(strides), tuple(cfg.get("dilations", (1, 1, 1, 1)))
    if stride is None or len(dilations) != 4 or dilations[:2] != (1, 1):
        raise ValueError(f"a backbone with {strides=} and {dilations=} is not built here")
    depth, stem = cfg.get("depth"), cfg.get("stem_channels", 64)
    found: dict[str, Any] = {
        "backbone": f"resnet{depth}{'c' if deep else ''}",
        "output_stride": stride,
        "dilations_of_stages": dilations[2:],
        "contract_dilation": cfg.get("contract_dilation", False),
        "in_chans": cfg.get("in_channels", 3),
        "last_dilations": None if cfg.get("multi_grid") is None else tuple(cfg["multi_grid"]),
    }
    options: dict[str, Any] = {}
    if base != 64:
        options["channels"] = (base, 2 * base, 4 * base, 8 * base)
    if stem != 64:
        options |= {"stem_width": stem // 2} if deep else {"stem_channels": stem}
    return {**found, "backbone_options": options}


def head_arguments_of(cfg: Config) -> dict[str, Any]:
    """The part of :func:`arguments_of` that a ``decode_head`` says."""
    kind = str(cfg.get("type"))
    if kind not in _HEADS:
        raise ValueError(f"the head {kind} is not built here: {', '.join(_HEADS)} are")
    name, ours = _HEADS[kind]
    _only(
        cfg,
        _READ | ours.keys() | ({"query_scales"} if name == "ann" else {"scale"} if name == "ocrnet" else set()),
        kind,
    )
    _plain(cfg, kind)
    _must(kind, cfg, num_convs=2, query_scales=(1,), scale=1)
    cfg = {"dilations": (1, 6, 12, 18), **cfg} if kind == "ASPPHead" else cfg
    found = {ours[option]: _value(option, value, cfg) for option, value in cfg.items() if option in ours}
    if "dilations" in found:
        if found["dilations"][0] != 1:
            raise ValueError(f"{kind} with dilations={found['dilations']} is not built here: the first is 1")
        found["dilations"] = found["dilations"][1:]
    return {
        **found,
        "name": name,
        "num_classes": cfg["num_classes"],
        "width": cfg["channels"],
        **{ours: cfg[theirs] for theirs, ours in _SAME.items() if theirs in cfg},
    }


_SAME = {
    "align_corners": "align_corners",
    "kernel_size": "kernel_size",
    "dilation": "dilation",
    "dropout_ratio": "dropout",
    "concat_input": "concat",
}


def _on_stage(cfg: Config, stage: int | tuple[int, int]) -> None:
    index = cfg.get("in_index", -1)
    index = tuple(index) if isinstance(index, list) else index
    if index != stage and (index, stage) != (-1, 3):
        raise ValueError(f"{cfg.get('type')} with in_index={index} is not built here: {stage} is")


def _auxiliary(cfg: Config, dilation: int) -> int:
    """Its width; it is dilated as the head that predicts is."""
    kind = str(cfg.get("type"))
    if kind != "FCNHead":
        raise ValueError(f"the auxiliary head {kind} is not built here: FCNHead is")
    _only(cfg, _READ, kind)
    _plain(cfg, kind)
    cfg = {"num_convs": 2, "concat_input": True, "dilation": 1, **cfg}
    _must(kind, cfg, num_convs=1, concat_input=False, kernel_size=3, dilation=dilation)
    return cfg["channels"]


def _value(option: str, value: Any, cfg: Config) -> Any:
    if option == "ratio":
        return int(cfg["channels"] * value)
    if option == "psa_type":
        return _MODES.get(value, value)
    if option == "psa_softmax":
        return "softmax" if value else "none"
    if option == "fusion_types":
        return "both" if len(value) > 1 else str(value[0]).removeprefix("channel_")
    return tuple(value) if isinstance(value, list) else value


def _plain(cfg: Config, kind: str) -> None:
    _batch_norm(cfg)
    _must(kind, cfg, conv_cfg=None, out_channels=cfg.get("num_classes"), threshold=None)
    if (cfg.get("act_cfg") or {"type": "ReLU"}).get("type") != "ReLU":
        raise ValueError(f"{kind} with act_cfg={cfg['act_cfg']} is not built here: ReLU is")


def _batch_norm(cfg: Config) -> None:
    norm = cfg.get("norm_cfg")
    if norm is not None and (norm.get("type") not in ("BN", "SyncBN") or norm.get("eps", 1e-5) != 1e-5):
        raise ValueError(f"{cfg.get('type')} with norm_cfg={dict(norm)} is not built here: BN and SyncBN are")


def _only(cfg: Config, known: set[str], kind: str) -> None:
    if unknown := [key for key in cfg if key not in known]:
        raise ValueError(f"{kind} with {unknown[0]}={cfg[unknown[0]]!r} is not built here")


def _must(kind: str, cfg: Config, **wanted: Any) -> None:
    for key, value in wanted.items():
        given = cfg.get(key, value)
        given = tuple(given) if isinstance(given, list) else given
        if given != value:
            raise ValueError(f"{kind} with {key}={given!r} is not built here: {value!r} is")
