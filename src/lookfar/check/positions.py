"""The promise that positions keep their place: mirror the input or exchange its axes, and the output follows.

Parameters may depend on position by design. Kernels of convolutions are made symmetric first, so that a convolution
passes. Where the output still does not follow, parameters that no channel axis explains (position tables, weights over
positions) are made constant. Where that helps, the module depends on position by design, a fact; where it does not, the
module confuses positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lookfar._tables import by_size, listed
from lookfar.check.outcome import Outcome, broken, fact, holds, not_asked, percent
from lookfar.check.parameters import plain_attributes
from lookfar.check.subject import SCALES, TOLERANCE, Subject, moved, outputs, twin

_CHANNEL_LAYERS = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.MultiheadAttention)
_USUAL = {"weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias"}


@dataclass(frozen=True)
class Change:
    """A change of places and where it was seen to fail."""

    name: str
    apply: Callable[[Tensor], Tensor]


@torch.no_grad()
def positions_kept(subject: Subject) -> Outcome:
    """Mirror the input, or exchange its axes, on square and other maps, and the output follows."""
    module = symmetric(subject.make())
    x, *rest = subject.inputs(module)
    if rest:
        return not_asked("it takes more than a map")
    if x.shape[2:] != subject.size:
        return not_asked("its input is not a map")
    if not any(y.dim() == x.dim() for y in outputs(module, (x,))):
        return not_asked("its output is not a map")
    changes = list(_changes(len(subject.size)))
    faults = _faults(subject, module, changes)
    if not faults:
        return holds(_tried(subject))
    worst, change, size = max(faults, key=lambda fault: fault[0])
    measured = f"{change.name} at {by_size(size)}: the output is off by {percent(worst)}"
    declared = getattr(module, "position_dependent", False)
    if declared:
        return fact(
            f"declared to depend on position{f' ({declared})' if isinstance(declared, str) else ''}; {measured}"
        )
    table = _position_parameters(subject, module)
    if table and not _faults(subject, _constant(module, table), changes):
        names = [name for name in table if _faults(subject, _constant(module, table - {name}), changes)]
        return fact(f"parameters that depend on position: {listed(names or sorted(table))}; {measured}")
    uneven = [name for name, layer in module.named_modules() if _uneven(layer)]
    if uneven and all("exchanged" in c.name for _, c, _ in faults):
        return fact(f"layers that treat the axes differently: {listed(uneven)}; {measured}")
    return broken(f"{measured}; no position parameters explain it")


def symmetric(module: nn.Module) -> nn.Module:
    """Every kernel of a convolution its own mirror image, and where it is square its own transpose."""
    lost = [value for _, value in plain_attributes(module) if isinstance(value, nn.Module)]
    for layer in (part for whole in (module, *lost) for part in whole.modules()):
        if isinstance(layer, _ConvNd):
            axes = range(2, layer.weight.dim())
            for axis in axes:
                layer.weight.copy_((layer.weight + layer.weight.flip(axis)) / 2)
            if len(axes) > 1 and layer.weight.shape[-1] == layer.weight.shape[-2]:
                layer.weight.copy_((layer.weight + layer.weight.transpose(-1, -2)) / 2)
    return module


def _changes(dims: int) -> Iterator[Change]:
    names = {1: ["end to end"], 2: ["top to bottom", "left to right"], 3: ["in time", "top to bottom", "left to right"]}
    for axis, name in enumerate(names[dims], 2):
        yield Change(f"mirrored {name}", lambda t, axis=axis: t.flip(axis))
    if dims > 1:
        yield Change("axes exchanged", lambda t: t.transpose(-1, -2))


def _sizes(size: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """A square and another map, each also one larger: strided layers fit the ends of some sizes alone."""
    *frames, width = size
    if not frames:
        return [[size, (width + 1,)]]
    *frames, height = frames
    square, other = (
        [(height, height), (height, height * 3 // 2)] if height == width else [(width, width), (height, width)]
    )
    return [[(*frames, *s), (*frames, s[0] + 1, s[1] + 1)] for s in (square, other)]


def _faults(subject: Subject, module: nn.Module, changes: list[Change]) -> list[tuple[float, Change, tuple[int, ...]]]:
    """Changes that the output does not follow at a square or another map, whichever of its two sizes is taken."""
    found: list[tuple[float, Change, tuple[int, ...]]] = []
    errors: list[Exception] = []
    ran = 0
    for sizes in _sizes(subject.size):
        for change in changes:
            tried: list[tuple[float, Change, tuple[int, ...]]] = []
            for size in sizes:
                try:
                    off = max(_off(module, subject.inputs(module, size, scale=scale), change) for scale in SCALES)
                    tried.append((off, change, size))
                except Exception as error:  # sizes that do not run are reported elsewhere
                    errors.append(error)
                    continue
                if tried[-1][0] <= TOLERANCE:
                    break
            ran += bool(tried)
            if tried and min(t[0] for t in tried) > TOLERANCE:
                found.append(max(tried, key=lambda t: t[0]))
    if not ran:
        raise errors[0]
    return found


def _off(module: nn.Module, inputs: tuple[Tensor, ...], change: Change) -> float:
    (x,) = inputs
    straight, changed = outputs(module, (x,)), outputs(module, (change.apply(x).contiguous(),))
    return max(moved(c, change.apply(s)) for s, c in zip(straight, changed) if s.dim() == x.dim())


def _position_parameters(subject: Subject, module: nn.Module) -> set[str]:
    """Tensors outside the usual layers, and in them those with an axis that does not follow the channels."""
    try:
        other = {name: t.shape for name, t in subject.build(2 * subject.channels).state_dict().items()}
    except Exception:
        other = {}
    names = set()
    for prefix, layer in module.named_modules():
        for key, t in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            name = f"{prefix}.{key}".lstrip(".")
            if not t.is_floating_point():
                continue
            usual = isinstance(layer, _CHANNEL_LAYERS) and key in _USUAL
            axes = t.shape[:2] if usual and isinstance(layer, _ConvNd) else t.shape  # the others are the kernel's
            if not usual or any(n == m > 1 for n, m in zip(axes, other.get(name, ()))):
                names.add(name)
    return names


def _constant(module: nn.Module, names: set[str]) -> nn.Module:
    """A copy in which the tensors hold one number each, of their size; layers over coordinates give nothing."""
    copied = twin(module)
    state = copied.state_dict(keep_vars=True)
    for name in names & state.keys():
        t = state[name]
        coordinates = name.endswith("weight") and t.dim() > 1 and t.shape[1] in (2, 3, 4) and set(t.shape[2:]) <= {1}
        t.fill_(0.0 if coordinates else float(t.square().mean().sqrt()))
    return copied


def _uneven(layer: nn.Module) -> bool:
    sizes = [getattr(layer, key, None) for key in ("kernel_size", "stride", "dilation", "output_size")]
    return any(isinstance(s, tuple) and len(set(s)) > 1 for s in sizes)


def _tried(subject: Subject) -> str:
    return f"tried {' and '.join(by_size(sizes[0]) for sizes in _sizes(subject.size))}"
