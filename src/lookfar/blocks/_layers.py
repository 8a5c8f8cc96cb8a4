"""What many blocks build from: layers by the number of spatial axes, pooling, zero starts."""

from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM: dict[int, type[nn.modules.batchnorm._BatchNorm]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

Norm = Callable[..., nn.Module]
M = TypeVar("M", bound=nn.Module)


def pool_stride(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Stride of pooling a map ``(*S)``: 1 along time (the first of three axes) and along axes too short for it."""
    time = len(size) == 3
    return tuple(1 if (time and axis == 0) or n < stride else stride for axis, n in enumerate(size))


def max_pool(x: Tensor, stride: int) -> Tensor:
    """Maxima of blocks of ``stride`` along each spatial axis of ``(B, C, *S)``; odd sizes are floored.

    Time, the first axis of three, is never pooled, and an axis shorter than ``stride`` stays as it is (a pool would
    leave nothing of it).
    """
    strides = pool_stride(tuple(x.shape[2:]), stride)
    if all(s == 1 for s in strides):
        return x
    return _MAX_POOL[len(strides)](x, strides, strides)


def zero_(module: M) -> M:
    """Set weight and bias to zero: a residual branch that ends in ``module`` starts as nothing."""
    for name in ("weight", "bias"):
        if (parameter := getattr(module, name, None)) is not None:
            nn.init.zeros_(parameter)
    return module


def normal_(module: M, std: float = 0.01) -> M:
    """Draw the weight from N(0, std^2) and set the bias to zero."""
    nn.init.normal_(module.weight, std=std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
