"""Blocks of maps as mixers of tokens: laid out on their grid, what a block adds alone takes the place of attention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks._base import BlockInfo, block_info, create_block, parse_block


class NoMixer(nn.Module):
    """The place of a mixer where there is none: nothing is added, and no token hears of another.

    ``lookfar.replace`` puts a mixer here, as it puts a layer in the place of a convolution.

    Args:
        channels: Of the map; for what stands in its place.

    Shape: ``(B, C, *S) -> (B, C, *S)``, zeros
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def is_layer(info: BlockInfo, options: Mapping[str, Any]) -> bool:
    """Whether a block with these options gives a map that its input is not added to."""
    return info.kind == "layer" or options.get("residual") is False or options.get("regions") == "learned"


def alone(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a block as a mixer: without its sum where it has one, its regions its own.

    >>> alone("hamburger(bases=16)"), alone("ocr")[1], alone("cbam")
    (('hamburger', {'bases': 16, 'residual': False}), {'regions': 'learned'}, ('cbam', {}))

    Raises:
        ValueError: No block has the name, or it takes no map.
        TypeError: An unknown option.
    """
    name, options = parse_block(text)
    info = block_info(name)
    for option, value in (("residual", False), ("regions", "learned")):
        if option in info.options:
            options.setdefault(option, value)
    if info.kind not in ("context", "layer") and not is_layer(info, options):
        raise ValueError(f"{name} is of kind {info.kind}: a mixer keeps the shape of a map, want kind context or layer")
    return name, options


def create_mixer(text: str, channels: int, **options: Any) -> nn.Module:
    """A block as a mixer of maps, ``none`` for :class:`NoMixer`; options that are None are the block's own.

    Raises:
        ValueError: As of :func:`alone`, and what the block refuses.
        TypeError: An option that the block does not have.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if text == "none":
        more = sorted(given.keys() - {"device", "dtype"})
        if more:
            raise ValueError(f"mixer='none' mixes nothing and has no {', '.join(more)}")
        return NoMixer(channels)
    try:
        name, written = alone(text)
    except ValueError as error:
        raise ValueError(f"mixer={text!r}: {error}") from None
    return create_block(name, channels, **{**given, **written})


def to_grid(x: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Tokens ``(B, N, C)`` on their grid, ``(B, C, H, W)``; a square one where ``size`` does not say it.

    Raises:
        ValueError: The tokens fill no such grid.
    """
    N = x.shape[1]
    rows = (math.isqrt(N),) * 2 if size is None else tuple(size)
    if math.prod(rows) != N:
        grid = "no square grid" if size is None else f"no grid of {rows[0]}x{rows[1]}"
        raise ValueError(
            f"{N} tokens fill {grid}, and this mixer works on one: give forward their size=(rows, columns), and pool "
            "what comes out instead of a class token"
        )
    return x.transpose(1, 2).unflatten(2, rows)


def from_grid(x: Tensor) -> Tensor:
    """A map ``(B, C, H, W)`` as tokens ``(B, N, C)``."""
    return x.flatten(2).transpose(1, 2)


def mix(mixer: nn.Module, grid: Tensor) -> Tensor:
    """What a mixer adds to a map, ``(B, C, H, W)``.

    Raises:
        ValueError: It gives no map of this shape.
    """
    mixed = mixer(grid)
    if not isinstance(mixed, Tensor) or mixed.shape != grid.shape:
        gives = tuple(mixed.shape) if isinstance(mixed, Tensor) else type(mixed).__name__
        kind = type(mixer).__name__
        raise ValueError(f"a mixer keeps the shape of a map: {kind} gives {gives} for {tuple(grid.shape)}")
    return mixed
