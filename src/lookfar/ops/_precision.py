"""Half precision: computations that run in float32 even under autocast."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lookfar.ops._autograd import for_graphs, has_tangent, traced

# bfloat16, as torch's oneDNN does; not every version of torch may tell
_ASK = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
PROCESSOR_MULTIPLIES = any(getattr(torch.cpu, name, bool)() for name in _ASK)


# A weight below this power of 2 of a whole becomes zero: no sum would notice, and many processors take over a hundred
# times as long to multiply a number below the smallest normal one, which what is multiplied by it can become, too.
_NOTHING = {torch.float32: -100, torch.float64: -900}


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


LOG2_E = math.log2(math.e)


def softmax(s: Tensor, dim: int = -1) -> Tensor:
    """``s.softmax(dim)``; on a CPU weights that no sum would notice are zero, and quick to multiply."""
    return without_least(s.softmax(dim))


def exp(s: Tensor) -> Tensor:
    """``s.exp()`` of what is at most about zero; on a CPU as :func:`softmax` has it.

    Where powers vanish torch's exp takes far longer than its powers of 2.
    """
    if not _by_powers(s):
        return s.exp()
    logits = s * LOG2_E
    return without_least(logits.exp2()) if logits.requires_grad else powers_(logits)


def logsumexp(s: Tensor, dim: int) -> Tensor:
    """``s.logsumexp(dim, keepdim=True)`` by :func:`exp`."""
    if not _by_powers(s) or not s.shape[dim]:
        return s.logsumexp(dim, keepdim=True)
    top = s.detach().amax(dim, keepdim=True).clamp_min(torch.finfo(s.dtype).min)  # it cancels; finite, if all are -inf
    powers = exp(s - top) if s.requires_grad else powers_((s - top).mul_(LOG2_E))
    return powers.sum(dim, keepdim=True).log() + top


def _by_powers(s: Tensor) -> bool:
    """Not a question of transforms: what is recomputed in one must be what was computed outside."""
    return s.is_cpu and s.dtype in _NOTHING and not traced()


def without_least(weights: Tensor) -> Tensor:
    """Weights that something made for this call, in place, where they lie on a CPU."""
    plain = type(weights) is Tensor and weights.is_cpu and weights.dtype in _NOTHING
    if plain and not for_graphs() and not has_tangent(weights):
        # not in place for autograd, which keeps these very weights: what has none becomes a constant
        torch.threshold_(weights.data, 2.0 ** _NOTHING[weights.dtype], 0.0)
    return weights


def powers_(s: Tensor) -> Tensor:
    """2^s in place, for logits below the largest; powers that no sum would notice are zero, and quick to multiply."""
    return torch.threshold_(s, _NOTHING[s.dtype], -math.inf).exp2_()


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
