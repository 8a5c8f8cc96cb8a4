"""A module under question: built anew for every promise, with random parameters, on inputs of its own."""

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lookfar._drawing import randomise
from lookfar.blocks import sample_inputs
from lookfar.blocks._own import Target

# faults are of the order of 1; rounding, also of a module that computes in float32 inside, of 1e-6
TOLERANCE = 1e-4
# of the inputs: at scale one a softmax over similarities picks the query itself, and hides what it does to the others
SCALES = (1.0, 0.1)

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """The module that a promise is asked of, and its inputs.

    Attributes:
        target: Builds the module.
        channels: Of its input.
        size: Of its input; three numbers are a video, one a sequence.
        dtype: In which rounding cannot hide a fault: float64 where the module runs in it, else float32.
    """

    target: Target
    channels: int
    size: tuple[int, ...]
    dtype: torch.dtype = torch.float64

    def build(self, channels: int | None = None, **changed: Any) -> nn.Module:
        """As a user gets it, the same at every call."""
        seed_all(0)
        return self.target.build(self.channels if channels is None else channels, **changed).eval()

    def make(self, dtype: torch.dtype | None = None, *, train: bool = False, **changed: Any) -> nn.Module:
        """With every parameter random: behind a factor of zero every module would be the identity."""
        module = self.build(**changed)
        seed_all(1)
        return randomise(module).to(dtype or self.dtype).train(train)

    def inputs(
        self,
        module: nn.Module,
        size: tuple[int, ...] | None = None,
        *,
        batch: int = 2,
        dtype: torch.dtype | None = None,
        channels: int | None = None,
        seed: int = 2,
        scale: float = 1.0,
    ) -> Inputs:
        """What ``module.forward`` takes, the same for the same arguments; ``scale`` is that of the first input."""
        seed_all(seed)
        drawn = sample_inputs(module, channels or self.channels, size or self.size, batch=batch)
        x, *rest = (x.to(dtype or self.dtype) if x.is_floating_point() else x for x in drawn)
        return (x if scale == 1 else x * scale, *rest)


def outputs(module: Callable[..., Any], inputs: Iterable[Tensor]) -> list[Tensor]:
    """All tensors that come out; the module works on copies of the inputs."""
    found = [y for y in tree_leaves(module(*(x.clone() for x in inputs))) if isinstance(y, Tensor)]
    if not found:
        raise ValueError("forward gives no tensor")
    return found


def moved(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||; infinite for other shapes and for nan."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.detach().double(), want.detach().double()
    if not bool(got.isfinite().all() & want.isfinite().all()):
        return float("inf")
    size = float(want.norm())
    difference = float((got - want).norm())
    return difference / size if size else difference


def all_moved(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """The largest of :func:`moved`."""
    got, want = list(got), list(want)
    return float("inf") if len(got) != len(want) else max(moved(g, w) for g, w in zip(got, want))


def twin(module: nn.Module) -> nn.Module:
    """An independent copy."""
    return copy.deepcopy(module)


def pull(found: Iterable[Tensor]) -> Tensor:
    """A scalar in which every number of every output counts differently."""
    total = torch.zeros(())
    for y in found:
        if y.is_floating_point():
            weights = torch.linspace(0.1, 1.7, y.numel(), dtype=torch.float64).sin().mul_(3).sin().view(y.shape)
            total = total + (y * weights.to(y)).sum()
    return total


def seed_all(seed: int) -> None:
    """Every generator that a module may draw from; :func:`random_state_kept` stands around it."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been drawn."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
