"""Half precision: computations that run in float32 even under autocast."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# bfloat16, as torch's oneDNN does; not every version of torch may tell
_ASK = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
PROCESSOR_MULTIPLIES = any(getattr(torch.cpu, name, bool)() for name in _ASK)


def wide(t: Tensor) -> torch.dtype:
    """The type of ``widened(t)``, without a copy."""
    return torch.promote_types(t.dtype, torch.float32)


def widened(t: Tensor) -> Tensor:
    """``t`` in float32 where it is float16 or bfloat16, else ``t`` itself."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def multiplies(t: Tensor) -> bool:
    """Whether ``t`` is bfloat16 on a CPU with instructions for it: products of two such take half the time or less.

    They add up in float32 and round the sums. Other CPUs take far longer than in float32.
    """
    return t.is_cpu and t.dtype == torch.bfloat16 and PROCESSOR_MULTIPLIES


def factor(t: Tensor) -> Tensor:
    """``t`` as weights are to be multiplied by it: itself where the processor :func:`multiplies`, else widened."""
    return t if multiplies(t) else widened(t)


def averaged(t: Tensor, *axes: int, keepdim: bool = False) -> Tensor:
    """Means, in float32 where ``t`` is in half precision, without a copy of it, nor of its gradient."""
    return t.sum(axes, keepdim, dtype=wide(t)) / math.prod([t.shape[axis] for axis in axes])


def without_autocast(t: Tensor) -> AbstractContextManager:
    """A context in which products of wide tensors stay wide on the device of ``t``."""
    device = t.device.type
    # compiled graphs run on real devices, and not every supported torch can trace these calls
    if not torch.compiler.is_compiling() and not (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    ):
        return nullcontext()
    return torch.autocast(device, enabled=False)
