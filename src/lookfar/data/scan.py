"""Read every file of a data set once before the first step: otherwise wrong labels surface as CUDA asserts.

What was found is remembered, so that only the first look takes long.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookfar.data._memory import Memory, memory_file
from lookfar.data._reading import Mask, Picture, read_mask, read_picture
from lookfar.data._words import name_of, shown

VERSION = 3  # of what is remembered
VALUES = 4096  # different ones in a mask; classes have fewer


@dataclass(frozen=True)
class File:
    """An image; ``name`` is what users read."""

    name: str
    image: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of it."""
        return (self.image,)


@dataclass(frozen=True)
class Pair(File):
    """An image and its mask."""

    mask: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.image, self.mask)


@dataclass(frozen=True)
class Head:
    """What an image holds, whatever the options are; ``error`` says why it cannot be used.

    Attributes:
        size: Height and width, as stored.
        turn: Its EXIF orientation.
        bands: How many.
        mode: Pillow's word for them.
        depth: Its kind of numbers: ``8-bit``, ``16-bit``, ``floating-point``.
        peak: Largest value where it is not 8-bit.
        digest: Equal for equal images.
        error: Of the file that cannot be used.
    """

    size: tuple[int, int] = (0, 0)
    turn: int = 1
    bands: int = 0
    mode: str = ""
    depth: str = "8-bit"
    peak: float = 255.0
    digest: str = ""
    error: str = ""


@dataclass(frozen=True)
class Found(Head):
    """What one image and its mask hold; the mask's entries are filled where the image is at fault.

    Attributes:
        mask_size: Height and width of the mask, as stored.
        mask_turn: Its EXIF orientation.
        mask_mode: How it holds its values.
        coloured: Values are colours, 0xRRGGBB.
        values: In the mask, as they stand in the file, sorted.
        counts: Pixels of each.
        colours: Of each where they are indices of a palette.
        palette: Equal for equal palettes.
        mask_digest: Equal for masks of equal values.
    """

    mask_size: tuple[int, int] = (0, 0)
    mask_turn: int = 1
    mask_mode: str = ""
    coloured: bool = False
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    colours: tuple[int, ...] = ()
    palette: str = ""
    mask_digest: str = ""


def look(pair: Pair) -> Found:
    """Decode a pair completely; a truncated file shows only at its end."""
    path, seen = pair.mask, {}
    try:
        mask = read_mask(path)
        seen = describe_mask(mask)
        path = pair.image
        return Found(**seen, **describe_image(read_picture(path, mask.values.shape)))
    except Exception as error:  # decoders raise whatever they like, MemoryError and warnings as errors too
        return Found(**seen, error=f"{name_of(path)} ({reason(error)})")


def describe_mask(mask: Mask) -> dict[str, Any]:
    """The entries of :class:`Found` that come from a mask."""
    values, counts = tally(mask.values)
    colours = () if mask.palette is None else tuple(mask.palette[values].tolist())
    return {
        "mask_size": mask.values.shape,
        "mask_turn": mask.turn,
        "mask_mode": mask.mode,
        "coloured": mask.coloured,
        "values": tuple(values.tolist()),
        "counts": tuple(counts.tolist()),
        "colours": colours,
        "palette": "" if mask.palette is None else hashlib.blake2b(mask.palette.tobytes(), digest_size=8).hexdigest(),
        "mask_digest": digest_of(mask.values),
    }


def describe_image(picture: Picture) -> dict[str, Any]:
    """The entries of :class:`Head`."""
    pixels = picture.pixels
    return {
        "size": pixels.shape[:2],
        "turn": picture.turn,
        "bands": pixels.shape[-1],
        "mode": picture.mode,
        "depth": picture.depth,
        "peak": 255.0 if pixels.dtype == np.uint8 else float(pixels.max()),
        "digest": digest_of(pixels),
    }


def digest_of(pixels: NDArray) -> str:
    """Equal for arrays of equal shape, kind and numbers."""
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def tally(values: NDArray) -> tuple[NDArray, NDArray]:
    """The different values of a mask and how often each occurs, without a wide copy of all of it."""
    flat = values.ravel()
    totals: dict[int, int] = {}
    for start in range(0, len(flat), 2**20):
        part = flat[start : start + 2**20]
        if part.dtype.itemsize <= 2:  # counting is much quicker than sorting
            counts = np.bincount(part)
            found = np.flatnonzero(counts)
            counts = counts[found]
        else:
            found, counts = np.unique(part, return_counts=True)
        for value, count in zip(found, counts):
            totals[int(value)] = totals.get(int(value), 0) + int(count)
        if len(totals) > VALUES:
            raise ValueError(f"more than {VALUES} different values; want the numbers or colours of classes")
    order = sorted(totals)
    return np.array(order, dtype=np.int64), np.array([totals[value] for value in order], dtype=np.int64)


def reason(error: BaseException) -> str:
    """Why a file cannot be used, in a few printable words."""
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError):
        text = "not enough memory"
    text = shown(str(text))
    return text if len(text) <= 120 else f"{text[:119]}…"


def scan(pairs: Sequence[Pair], root: Path, *, progress: bool = True) -> dict[Pair, Found]:
    """What every pair holds, from memory where its files have not changed.

    Args:
        pairs: Images and masks.
        root: Of the data set; names the file in which the result is remembered.
        progress: Show a line on a terminal when it takes longer than two seconds.
    """
    memory = Memory(memory_file("scan", root), VERSION, Found)
    return memory.look(pairs, look, "Reading images and masks" if progress else "")
