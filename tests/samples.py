"""Blocks with random parameters and inputs for them: what the promises of every block are asked of."""

import contextlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from variants import VARIANTS

from lookfar._drawing import randomise
from lookfar.blocks import BlockInfo, block_info, create_block, list_blocks, sample_inputs
from lookfar.check.subject import pull, twin

__all__ = [
    "Sample",
    "assert_all_same",
    "assert_same",
    "inert",
    "learns_exactly",
    "outputs",
    "pull",
    "randomise",
    "samples",
    "twin",
    "with_gradients",
]

# by dimensions of the map: the usual size, another one, and the odd ones
SIZES = {
    1: [(7,), (4,), (1,)],
    2: [(7, 5), (4, 3), (1, 1), (1, 6), (6, 1), (2, 3)],
    3: [(2, 4, 3), (3, 2, 4), (1, 1, 1), (1, 3, 2)],
}


@dataclass(frozen=True)
class Sample:
    """A block with options, small enough to be tried in milliseconds."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items())
        return f"{self.name}({inside})" if inside else self.name

    @property
    def info(self) -> BlockInfo:
        return block_info(self.name)

    @property
    def channels(self) -> int:
        return self.options.get("channels", 16)

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        return SIZES[self.options.get("dims", 2)]

    @property
    def attends(self) -> str:
        """As the block says; an option can take it out of its class's kind."""
        with contextlib.suppress(Exception):  # a block that does not build fails in its tests, not in collecting them
            return getattr(self.build(device="meta"), "attends", self.info.attends)
        return self.info.attends

    def build(self, **more: Any) -> nn.Module:
        """As a user gets it."""
        options = {k: v for k, v in self.options.items() if k != "channels"}
        return create_block(self.name, self.channels, **options, **more)

    def make(self, *, train: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
        """With every parameter random: at gamma = 0 every block would equal every other."""
        return randomise(self.build()).to(dtype).train(train)

    def inputs(
        self,
        module: nn.Module,
        size: tuple[int, ...] | None = None,
        *,
        batch: int = 3,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, ...]:
        """What ``module.forward`` takes, in the module's own precision unless told otherwise."""
        dtype = dtype or next((p.dtype for p in module.parameters()), torch.float64)
        size = self.sizes[0] if size is None else size
        drawn = sample_inputs(module, self.channels, size, batch=batch)
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in drawn)


def samples(*kinds: str, variants: bool = True, attends: str | None = None) -> pytest.MarkDecorator:
    """Parametrise a promise over the registered blocks of some kinds (all of them by default) and their variants."""
    chosen = [
        sample
        for name in list_blocks()
        if not kinds or block_info(name).kind in kinds
        for options in [{}, *(VARIANTS.get(name, []) if variants else [])]
        for sample in [Sample(name, options)]
        if attends in (None, sample.attends)
    ]
    return pytest.mark.parametrize("sample", chosen, ids=str)


def outputs(module: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The outputs as a list, however many a block gives."""
    got = module(*inputs)
    got = list(got.values()) if isinstance(got, dict) else got
    return list(got) if isinstance(got, tuple | list) else [got]


def with_gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs, and the gradients of the first input and of all parameters under fixed random cotangents."""
    module.zero_grad()
    x = inputs[0].detach().clone().requires_grad_()
    found = outputs(module, (x, *inputs[1:]))
    pull(found).backward()
    result = {f"y{n}": y.detach() for n, y in enumerate(found)}
    result["dx"] = torch.zeros_like(x) if x.grad is None else x.grad
    for name, p in module.named_parameters():
        if p.grad is not None:
            result[f"d{name}"] = p.grad.detach().clone()
    return result


def inert(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that the block declares to have exactly zero gradient."""
    return tuple(getattr(module, "inert_parameters", ()))


def learns_exactly(module: nn.Module) -> bool:
    """Whether the block's gradient is the derivative of its output."""
    return bool(inspect.getattr_static(type(module), "exact_gradient", True)) and getattr(
        module, "exact_gradient", True
    )


def assert_same(what: object, got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    """Equal in shape and, relative to the largest number wanted (at least 1), in value."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    if want.numel():
        got, want = got.detach().double(), want.detach().double()
        limit = tolerance * max(1.0, float(want.abs().max()))
        error = float((got - want).abs().max())
        assert error <= limit, f"{what}: off by {error:.2e}, allowed {limit:.2e}"


def assert_all_same(sample: object, got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert_same(f"{sample} {key}", got[key], value, tolerance)
