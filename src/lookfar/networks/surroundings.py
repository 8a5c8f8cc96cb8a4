"""What surrounds a published network, out of the configuration in its file or of the file's name.

Each is a row of plain values, so that what one source does not say another may: mean, std, bgr, within, tiles (size and
stride), reduce_zero_label.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lookfar.networks.config_text import unread_in
from lookfar.networks.preprocessing import Inference, Preprocessing

PREPROCESSING = ("mean", "std", "bgr", "within")
INFERENCE = ("tiles", "reduce_zero_label")
# what is assumed where nothing says it; mean, std and order are ImageNet's in all of mmsegmentation's table
ASSUMED: dict[str, Any] = {"within": None, "tiles": None, "reduce_zero_label": False}

# of mmsegmentation's data sets, by a word in the names of files: longer and shorter side, and whether 0 is no class
_DATA_SETS: dict[str, tuple[tuple[int, int], bool]] = {
    "cityscapes": ((2048, 1024), False),
    "ade20k": ((2048, 512), True),
    "voc12": ((2048, 512), False),
    "coco-stuff10k": ((2048, 512), True),
    "coco-stuff164k": ((2048, 512), False),
    "pascal_context_59": ((520, 520), True),
    "pascal_context": ((520, 520), False),
    "loveda": ((1024, 1024), True),
    "potsdam": ((512, 512), True),
    "vaihingen": ((512, 512), True),
    "isaid": ((896, 896), False),
}
# those that say so themselves, whatever their pipelines say
_ZERO_IS_NO_CLASS = ("ADE20KDataset", "PascalContextDataset59", "LoveDADataset", "PotsdamDataset", "ISPRSDataset")


def said_by_name(name: str) -> dict[str, Any]:
    """What the name of a file tells, by mmsegmentation's customs.

    >>> said_by_name("ann_r50-d8_769x769_40k_cityscapes_20200530_025712-2b46b04d.pth")
    {'within': (2049, 1025), 'reduce_zero_label': False, 'tiles': ((769, 769), (513, 513))}
    """
    plain = name.lower().replace("pascal-context", "pascal_context").replace("context-59", "context_59")
    word = next((word for word in _DATA_SETS if re.search(rf"(?:^|[_-]){word}", plain)), None)
    if word is None:
        return {}
    within, zero = _DATA_SETS[word]
    tiles = None
    if re.search(r"[_-]769x769(?:[_.-]|$)", plain):
        tiles = ((769, 769), (513, 513))
        within = (2049, 1025) if word == "cityscapes" else within
    if word.startswith("pascal_context"):
        tiles = ((480, 480), (320, 320))
    return {"within": within, "reduce_zero_label": zero, "tiles": tiles}


def said_by_config(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of mmsegmentation says, read as literals.

    Raises:
        ValueError: Images are brought to another ratio of their sides, or tiles have another form: not done here.

    >>> resize = {"type": "Resize", "scale": (2048, 512), "keep_ratio": True}
    >>> said_by_config({"test_pipeline": [{"type": "LoadImageFromFile"}, resize]}, {"test_cfg": {"mode": "whole"}})
    {'within': (2048, 512), 'reduce_zero_label': False, 'tiles': None}
    """
    found: dict[str, Any] = {}
    norm = model.get("data_preprocessor") or config.get("data_preprocessor") or config.get("img_norm_cfg")
    if isinstance(norm, Mapping) and "mean" in norm and unread_in(dict(norm)) is None:
        found |= {what: tuple(float(v) for v in norm[what]) for what in ("mean", "std")}
        # images are read as BGR; mmcv's Normalize turns them by itself, mmengine's preprocessor does not
        old = not (model.get("data_preprocessor") or config.get("data_preprocessor"))
        found["bgr"] = not norm.get("bgr_to_rgb", norm.get("to_rgb", old))
    test = list(_steps(_pipeline(config, "test")))
    resize = next((step for step in test if "Resize" in str(step.get("type"))), None)
    around = next((step for step in test if step.get("type") == "MultiScaleFlipAug"), {})
    if resize is not None:
        scale = resize.get("scale", resize.get("img_scale", around.get("img_scale")))
        within = _pair(scale)
        if within is not None and not resize.get("keep_ratio", around.get("keep_ratio", False)):
            raise ValueError(f"its images are all brought to {within}, whatever their ratio: not done here")
        if within is not None:
            found["within"] = within
    if test:
        found.setdefault("within", None)  # a pipeline without such a step takes images as they are
        found["reduce_zero_label"] = _zero_is_no_class(config)
    cfg = model.get("test_cfg") or config.get("test_cfg")
    if isinstance(cfg, Mapping) and cfg.get("mode") in ("whole", "slide"):
        tile, stride = _pair(cfg.get("crop_size")), _pair(cfg.get("stride"))
        slide = cfg["mode"] == "slide"
        if slide and (tile is None or stride is None):
            raise ValueError(f"tiles of {cfg.get('crop_size')} with a stride of {cfg.get('stride')} are not read")
        found["tiles"] = (tile, stride) if slide else None
    return found


def surround(said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network, with ``preprocessing`` and ``inference`` made of such plain values.

    >>> surround({"name": "ann", "tiles": ((9, 9), (6, 6)), "within": (40, 20)})["inference"].tile
    (9, 9)
    """
    rest = {name: value for name, value in said.items() if name not in (*PREPROCESSING, *INFERENCE)}
    image = {name: said[name] for name in PREPROCESSING if name in said}
    if image:
        rest["preprocessing"] = Preprocessing(**image)
    if any(name in said for name in INFERENCE):
        tile, stride = said.get("tiles") or (None, None)
        rest["inference"] = Inference(tile, stride, said.get("reduce_zero_label", False))
    return rest


def _pipeline(config: Mapping[str, Any], split: str) -> Any:
    if f"{split}_pipeline" in config:
        return config[f"{split}_pipeline"]
    for path in (("data", split, "pipeline"), (f"{split}_dataloader", "dataset", "pipeline")):
        found: Any = config
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    return ()


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """All steps of a pipeline, those within others after them."""
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get("transforms"))


def _zero_is_no_class(config: Mapping[str, Any]) -> bool:
    steps = [step for split in ("test", "train") for step in _steps(_pipeline(config, split))]
    if any(step.get("reduce_zero_label") is True for step in steps if step.get("type") == "LoadAnnotations"):
        return True
    kinds = [config.get("dataset_type"), *(_type_of(config, split) for split in ("test", "val", "train"))]
    return any(kind in _ZERO_IS_NO_CLASS for kind in kinds)


def _type_of(config: Mapping[str, Any], split: str) -> Any:
    data, loader = config.get("data"), config.get(f"{split}_dataloader")
    inner = data.get(split) if isinstance(data, Mapping) else None
    inner = loader.get("dataset") if isinstance(loader, Mapping) else inner
    return inner.get("type") if isinstance(inner, Mapping) else None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 1:  # of several scales the only one
        return _pair(value[0])
    if isinstance(value, int):
        return (value, value)
    whole = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, int) for part in value)
    return (value[0], value[1]) if whole else None
