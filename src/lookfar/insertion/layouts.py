"""How a place's output becomes the map that a block takes, and back: channels first, channels last, or tokens."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

MOST_PREFIX = 16  # class, distillation and register tokens of the networks in use: at most nine

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(eq=False)
class Grid:
    """The size of the patches' grid; a hook on the patch embedding writes it at every call."""

    size: tuple[int, ...]


@dataclass(eq=False)
class Layout:
    """What stands on which axis of a place's output.

    Attributes:
        kind: ``map`` (B, C, ..), ``last`` (B, .., C), ``grid`` (B, prefix + N, C), ``tokens`` (B, N, C) taken as such.
        prefix: Tokens before those of the grid (class, registers): a block does not see them.
        grid: Of the patches, for ``grid``.
    """

    kind: Literal["map", "last", "grid", "tokens"] = "map"
    prefix: int = 0
    grid: Grid | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.kind == "grid" and self.grid is not None:
            ahead = f" behind {self.prefix}" if self.prefix else ""
            return f"tokens as a grid of {'×'.join(map(str, self.grid.size))}{ahead}"
        return {"map": "", "last": "channels last, permuted", "tokens": "tokens"}.get(self.kind, "")

    def channels(self, y: Tensor) -> int:
        return y.shape[1 if self.kind == "map" else -1]

    def enter(self, y: Tensor) -> Tensor:
        """What the block takes."""
        if self.kind == "last":
            return y.movedim(-1, 1)
        if self.kind == "grid" and self.grid is not None:
            return y[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid.size)
        return y

    def around(self, block: Callable[[Any], Any], y: Any) -> Any:
        """The place's output with the block's in it."""
        if self.kind in ("map", "tokens"):
            return block(y)
        if self.kind == "last":
            return block(self.enter(y)).movedim(1, -1).contiguous()
        patches = block(self.enter(y)).flatten(2).transpose(1, 2)
        return torch.cat([y[:, : self.prefix], patches], 1) if self.prefix else patches.contiguous()


def note_grid(module: nn.Module, args: Any, output: Tensor, *, grid: Grid) -> None:
    """The hook on the patch embedding's convolution."""
    size = tuple(output.shape[2:])
    if size != grid.size if all(type(n) is int for n in size) else True:  # comparing free sizes would fix them
        grid.size = size


def grid_hooks(module: nn.Module) -> dict[int, Grid]:
    """Hook id -> the grid that the hook writes."""
    return {
        key: hook.keywords["grid"]
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, functools.partial) and hook.func is note_grid
    }


def grid_of(conv: nn.Module, size: tuple[int, ...]) -> Grid:
    """The grid that a hook on ``conv`` writes; the hook is made where there is none."""
    for grid in grid_hooks(conv).values():
        return grid
    grid = Grid(tuple(size))
    conv.register_forward_hook(functools.partial(note_grid, grid=grid))
    return grid


def forget_grids(network: nn.Module, in_use: list[Grid]) -> None:
    """Remove the hooks whose grid no block uses."""
    for module in network.modules():
        for key, grid in grid_hooks(module).items():
            if not any(grid is one for one in in_use):
                del module._forward_hooks[key]


def convolutions(network: nn.Module) -> Iterator[str]:
    """Names of the modules whose output may be a grid of patches."""
    return (name for name, module in network.named_modules() if isinstance(module, _CONVS))


def find_layout(
    network: nn.Module, place: str, y: Tensor, *, tokens: bool, sequence: bool, seen: list[tuple[str, tuple[int, ...]]]
) -> Layout:
    """What stands on which axis of ``y``, the output of ``place``.

    Args:
        network: The host.
        place: Name of the module that gave ``y``.
        y: At least three axes.
        tokens: The block takes tokens.
        sequence: The caller says that three axes are (B, C, L).
        seen: Names and output shapes of the convolutions that ran before, in their order.

    Raises:
        ValueError: Tokens that are on no known grid, a block on tokens for a map.
    """
    module = network.get_submodule(place)
    if y.dim() > 3:
        if tokens:
            raise ValueError(
                f"the block takes tokens (B, N, C), {place} gives {tuple(y.shape)}: a transformer's block has tokens"
            )
        return Layout("last" if _is_channels_last(network, place, y) else "map")
    if tokens:
        return Layout("tokens")
    if sequence or _is_sequence(module, y):
        return Layout("map")
    N = y.shape[1]
    for name, shape in reversed(seen):
        size = shape[2:]
        positions = math.prod(size)
        if len(size) > 1 and 0 <= N - positions <= MOST_PREFIX and positions > 0:
            return Layout("grid", N - positions, grid_of(network.get_submodule(name), tuple(size)))
    raise ValueError(
        f"{place} gives {tuple(y.shape)}: tokens or a sequence, and no convolution before it gave a grid of "
        f"{N} patches. A sequence (B, C, L) wants dims=1; self_attention takes tokens as they are"
    )


def _is_sequence(module: nn.Module, y: Tensor) -> bool:
    """Whether a 1-D convolution or norm in the module gives the channels that stand on the second axis."""
    return any(
        (isinstance(m, nn.Conv1d) and m.out_channels == y.shape[1])
        or (isinstance(m, nn.BatchNorm1d) and m.num_features == y.shape[1])
        for m in module.modules()
    )


def _is_channels_last(network: nn.Module, place: str, y: Tensor) -> bool:
    """The widths of the layers around tell on which axis the channels are, the innermost first; timm says so too."""
    around = [network.get_submodule(place.rsplit(".", n)[0]) for n in range(place.count(".") + 1)]
    for module in [*around, network]:
        layers = list(module.modules())
        if any(isinstance(m, _CONVS) and m.out_channels == y.shape[1] for m in layers):
            return False
        if any(isinstance(m, _BATCH_NORMS) and m.num_features == y.shape[1] for m in layers):
            return False
        if str(getattr(module, "output_fmt", "")).endswith("NHWC"):
            return True
        if any(_width_of_last_axis(m) == y.shape[-1] for m in layers):
            return True
    return any(str(getattr(module, "output_fmt", "")).endswith("NHWC") for module in [*around, network])


def _width_of_last_axis(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    # timm's LayerNorm2d is a LayerNorm by its class and works on the second axis
    return layer.normalized_shape[-1] if type(layer) is nn.LayerNorm else None
