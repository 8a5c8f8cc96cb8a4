"""Sizes of the maps on which blocks are measured: how they are written, and how many axes a block wants."""

import math
from collections.abc import Sequence

from torch import nn

from lookfar._options import refused_by
from lookfar.blocks import block_info, parse_block
from lookfar.blocks._own import parse_address

SIZE = (64, 64)


def parse_size(text: str) -> tuple[int, ...]:
    """A size as it is written on the command line; one number is a sequence, three are a video.

    >>> parse_size("97x129"), parse_size("4096")
    ((97, 129), (4096,))

    Raises:
        ValueError: Anything else.
    """
    parts = text.lower().replace("×", "x").split("x")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            "size must be positive whole numbers such as 64x64 (4096 for a sequence, 16x16x16 for a video), "
            f"got {text!r}"
        )
    return tuple(int(part) for part in parts)


def axes_of(block: str | nn.Module) -> int | None:
    """How many axes the maps of a block have; None where it says nothing and may take any."""
    if not isinstance(block, str):
        return None
    if address := parse_address(block):
        return address.options.get("dims")
    name, options = parse_block(block)
    info = block_info(name)
    if "dims" in info.options:
        return options.get("dims", info.options["dims"].default)
    return None if info.kind == "tokens" else 2


def size_for(block: str | nn.Module, size: Sequence[int] | None = None) -> tuple[int, ...]:
    """``size``, or the default in as many axes as the block has.

    >>> size_for("nonlocal"), size_for("nonlocal(dims=3)"), size_for("nonlocal(dims=1)", [100])
    ((64, 64), (16, 16, 16), (100,))

    Raises:
        ValueError: A size with other axes than the block's.
    """
    axes = axes_of(block)
    if size is None:
        return in_axes(SIZE, axes or 2)
    size = checked_size(size)
    if axes is not None and len(size) != axes:
        hint = f"; with dims={len(size)} it takes that" if _can_have(block, len(size)) else ""
        raise ValueError(
            f"size must have the {axes} ax{'i' if axes == 1 else 'e'}s of {block}, such as "
            f"{'x'.join(map(str, in_axes(SIZE, axes)))}, got {'x'.join(map(str, size))}{hint}"
        )
    return size


def _can_have(block: str | nn.Module, axes: int) -> bool:
    """Whether a block that is named could be built for this many axes."""
    if not isinstance(block, str) or parse_address(block) is not None:
        return False
    option = block_info(parse_block(block)[0]).options.get("dims")
    return option is not None and all(refused.value != axes for refused in refused_by(option.annotation))


def in_axes(size: tuple[int, int], axes: int) -> tuple[int, ...]:
    """As many positions in one, two or three axes."""
    H, W = size
    return {1: (H * W,), 2: (H, W), 3: (16, H // 4, W // 4)}[axes]


def checked_size(size: Sequence[int]) -> tuple[int, ...]:
    size = (size,) if isinstance(size, int) else size
    if not size or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in size):
        raise ValueError(f"size must be positive whole numbers such as (64, 64), got {size!r}")
    if math.prod(size) > 2**31:
        raise ValueError(f"size must have at most 2^31 positions, got {'x'.join(map(str, size))}")
    return tuple(size)
