"""What mmcv's ``norm_cfg`` names, as a factory that our blocks take."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_NORMS: dict[str, type[nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.BatchNorm2d,
    "MMSyncBN": nn.BatchNorm2d,
    "BN1d": nn.BatchNorm1d,
    "BN2d": nn.BatchNorm2d,
    "BN3d": nn.BatchNorm3d,
    "IN": nn.InstanceNorm2d,
    "IN1d": nn.InstanceNorm1d,
    "IN2d": nn.InstanceNorm2d,
    "IN3d": nn.InstanceNorm3d,
}


def norm(cfg: dict[str, Any] | None) -> Callable[..., nn.Module] | None:
    """A class with its settings; None for no norm."""
    if cfg is None:
        return None
    # requires_grad freezes the affine part: values are the same
    settings = {k: v for k, v in cfg.items() if k not in ("type", "requires_grad")}
    if cfg["type"] == "GN":
        return functools.partial(nn.GroupNorm, settings.pop("num_groups"), **settings)
    return functools.partial(_NORMS[cfg["type"]], **settings)
