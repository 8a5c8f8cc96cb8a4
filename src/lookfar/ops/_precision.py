"""Half precision: computations that run in float32 even under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(t: Tensor) -> Tensor:
    """``t`` in float32 where it is float16 or bfloat16, else ``t`` itself."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def without_autocast(t: Tensor) -> AbstractContextManager:
    """A context in which products of wide tensors stay wide on the device of ``t``."""
    device = t.device.type
    # compiled graphs run on real devices, and not every supported torch can trace these calls
    if not torch.compiler.is_compiling() and not (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    ):
        return nullcontext()
    return torch.autocast(device, enabled=False)
