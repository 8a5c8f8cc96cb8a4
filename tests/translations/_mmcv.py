"""What mmcv's ``norm_cfg`` and ``act_cfg`` name, as factories that our blocks take."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_NORMS: dict[str, type[nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "IN": nn.InstanceNorm2d,
    **{f"BN{dims}d": cls for dims, cls in _BATCH.items()},
    **{f"IN{dims}d": cls for dims, cls in _INSTANCE.items()},
}
_ACTS: dict[str, type[nn.Module]] = {
    "HSwish": nn.Hardswish,
    "Swish": nn.SiLU,
}


def norm(cfg: dict[str, Any] | str | None, dims: int = 2) -> Callable[..., nn.Module] | None:
    """A class with its settings; None for no norm."""
    if cfg is None:
        return None
    cfg = {"type": cfg} if isinstance(cfg, str) else cfg
    # requires_grad freezes the affine part: values are the same
    settings = {k: v for k, v in cfg.items() if k not in ("type", "requires_grad")}
    if cfg["type"] == "GN":
        return functools.partial(nn.GroupNorm, settings.pop("num_groups"), **settings)
    cls = _BATCH[dims] if cfg["type"] in ("SyncBN", "MMSyncBN") else _NORMS[cfg["type"]]
    return functools.partial(cls, **settings)


def act(cfg: dict[str, Any] | None) -> Callable[..., nn.Module] | None:
    """An activation with its settings; None for none."""
    if cfg is None:
        return None
    settings = {k: v for k, v in cfg.items() if k not in ("type", "inplace")}
    return functools.partial(_ACTS.get(cfg["type"]) or getattr(nn, cfg["type"]), **settings)


def rectified(args: dict[str, Any]) -> bool:
    """Whether a module's ``act_cfg`` is the usual ReLU."""
    return (args.get("act_cfg") or {}).get("type") == "ReLU"
