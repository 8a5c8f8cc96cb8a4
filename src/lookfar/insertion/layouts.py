"""How a place's output becomes the map that a block takes, and back: channels first, channels last, or tokens."""

import functools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookfar.blocks import create_block, sample_inputs

MOST_PREFIX = 16  # class, distillation and register tokens of the networks in use: at most nine

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(eq=False)
class Grid:
    """The size of the patches' grid; a hook on the patch embedding writes it at every call."""

    size: tuple[int, ...]


@dataclass(eq=False)
class Layout:
    """What each axis of a place's output is.

    Attributes:
        kind: ``map`` (B, C, ..), ``last`` (B, .., C), ``grid`` (B, prefix + N, C), ``tokens`` (B, N, C) taken as such,
            ``points`` (B, N, C) for a block that takes (B, C, N).
        prefix: Tokens before those of the grid (class, registers): a block does not see them.
        grid: Of the patches, for ``grid``.
    """

    kind: Literal["map", "last", "grid", "tokens", "points"] = "map"
    prefix: int = 0
    grid: Grid | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.kind == "grid" and self.grid is not None:
            ahead = f" behind {self.prefix}" if self.prefix else ""
            return f"tokens as a grid of {'×'.join(map(str, self.grid.size))}{ahead}"
        return {"map": "", "last": "channels last, permuted", "tokens": "tokens", "points": "tokens"}.get(self.kind, "")

    def channels(self, y: Tensor) -> int:
        return y.shape[1 if self.kind == "map" else -1]

    def enter(self, y: Tensor) -> Tensor:
        """What the block takes."""
        if self.kind == "last":
            return y.movedim(-1, 1)
        if self.kind == "points":
            return y.transpose(1, 2)
        if self.kind == "grid" and self.grid is not None:
            size = self.grid.size
            if y.shape[1] != self.prefix + math.prod(size):
                raise OffGridError(
                    f"{y.shape[1]} tokens came, want {self.prefix} and a grid of {size}: a block on the grid "
                    "wants all patches, none dropped or merged"
                )
            return y[:, self.prefix :].transpose(1, 2).unflatten(2, size)
        return y

    def around(self, block: Callable[[Any], Any], y: Any) -> Any:
        """The place's output after the block."""
        if self.kind in ("map", "tokens"):
            return block(y)
        out = block(self.enter(y))
        if self.kind == "last":
            out = out.movedim(1, -1)
        elif self.kind == "points":
            out = out.transpose(1, 2)
        else:
            out = torch.cat([y[:, : self.prefix], out.flatten(2).transpose(1, 2).to(y.dtype)], 1)
        return torch.empty_like(y).copy_(out)  # in the host's memory format, on which the last bits of sums depend


class OffGridError(ValueError):
    """Other tokens than those of the grid."""


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


def convolutions(network: nn.Module, hidden: Collection[nn.Module]) -> Iterator[str]:
    """Names of the modules whose output may be a grid of patches; none inside ``hidden``."""
    inside = {id(module) for block in hidden for module in block.modules()}
    return (n for n, module in network.named_modules() if isinstance(module, _CONVS) and id(module) not in inside)


def find_layout(
    network: nn.Module,
    place: str,
    y: Tensor,
    *,
    tokens: str | None,
    sequence: bool,
    seen: list[tuple[str, tuple[int, ...]]],
) -> Layout:
    """What each axis of ``y`` is, the output of ``place``.

    Args:
        network: The host.
        place: Name of the module that gave ``y``.
        y: At least three axes.
        tokens: Name of the block, if it takes tokens.
        sequence: The caller says that three axes are (B, C, L).
        seen: Names and output shapes of the convolutions that ran before, in their order.

    Raises:
        ValueError: Tokens that are on no known grid, a block on tokens for a map.
    """
    if y.dim() > 3:
        if tokens is not None:
            raise ValueError(
                f"{tokens} takes tokens (B, N, C), {place} gives a map {tuple(y.shape)}: it may stand after a block of "
                "a transformer, as in at='blocks.3' of a ViT"
            )
        return Layout("last" if _is_channels_last(network, place, y) else "map")
    if tokens is not None:
        return Layout("points" if _takes_points(tokens) else "tokens")
    if sequence or _is_sequence(network, place, y):
        return Layout("map")
    N = y.shape[1]
    if any(hasattr(parent, "unroll") and hasattr(parent, "reroll") for parent in [network, *network.modules()]):
        raise ValueError(
            f"{place} gives {tuple(y.shape)}, tokens in an order of their own (Hiera's): no grid of patches"
        )
    fits = [(N - math.prod(shape[2:]), name, shape[2:]) for name, shape in reversed(seen) if len(shape) > 3]
    fits = [one for one in fits if 0 <= one[0] <= min(MOST_PREFIX, N - 1)]
    if fits:  # the nearest in size, of these the last: convolutions inside attention may give smaller maps
        prefix, name, size = min(fits, key=lambda one: one[0])
        return Layout("grid", prefix, grid_of(network.get_submodule(name), tuple(size)))
    raise ValueError(
        f"{place} gives {tuple(y.shape)}: tokens or a sequence, and no convolution before it gave a grid of "
        f"{N} patches. A sequence (B, C, L) wants dims=1; self_attention takes tokens as they are"
    )


@functools.cache
def _takes_points(block: str) -> bool:
    """Whether a block on tokens wants the channels on the second axis."""
    module = create_block(block, 16)
    return sample_inputs(module, 16, (1, 3))[0].shape[1] == 16


def _around(network: nn.Module, place: str) -> list[nn.Module]:
    """The module, then those around it up to the network, the innermost first."""
    return [*(network.get_submodule(place.rsplit(".", n)[0]) for n in range(place.count(".") + 1)), network]


def _is_sequence(network: nn.Module, place: str, y: Tensor) -> bool:
    """Whether the nearest layers work on (B, C, L), by their widths."""
    for module in _around(network, place):
        for m in module.modules():
            if isinstance(m, nn.Conv2d | nn.Conv3d):
                return False
            if isinstance(m, nn.Conv1d | nn.BatchNorm1d) and y.shape[1] in (
                getattr(m, "out_channels", None),
                getattr(m, "num_features", None),
            ):
                return True
            if _width_of_last_axis(m) == y.shape[-1]:
                return False
    return False


def _is_channels_last(network: nn.Module, place: str, y: Tensor) -> bool:
    """Whether channels are on the last axis: by the widths of the layers around, the innermost first, and by timm."""
    around = _around(network, place)
    for module in around:
        layers = list(module.modules())
        if any(isinstance(m, _CONVS) and m.out_channels == y.shape[1] for m in layers):
            return False
        if any(isinstance(m, _BATCH_NORMS) and m.num_features == y.shape[1] for m in layers):
            return False
        if str(getattr(module, "output_fmt", "")).endswith("NHWC"):
            return True
        if any(_width_of_last_axis(m) == y.shape[-1] for m in layers):
            return True
    return any(str(getattr(module, "output_fmt", "")).endswith("NHWC") for module in around)


def _width_of_last_axis(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    # timm's LayerNorm2d is a LayerNorm by its class and works on the second axis
    return layer.normalized_shape[-1] if type(layer) is nn.LayerNorm else None
