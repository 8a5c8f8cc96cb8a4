"""Read every file of a data set once before the first step: otherwise wrong labels surface as CUDA asserts.

What was found is remembered by the time and size of the files, so that only the first look takes long.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookfar.data._reading import Mask, Picture, read_mask, read_picture
from lookfar.data._words import name_of, shown

VERSION = 3  # of what is remembered
PATIENCE = 2.0  # seconds after which a wait says what it waits for
VALUES = 4096  # different ones in a mask; classes have fewer

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image and its mask; ``name`` is what users read."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Found:
    """What one image and its mask hold, whatever the options are; ``error`` says why they cannot be used.

    Attributes:
        size: Height and width of the image, as stored.
        turn: Its EXIF orientation.
        bands: Of the image.
        mode: Pillow's word for them.
        depth: Its kind of numbers: ``8-bit``, ``16-bit``, ``floating-point``.
        peak: Largest value where the image is not 8-bit.
        digest: Equal for equal images.
        mask_size: Height and width of the mask, as stored.
        mask_turn: Its EXIF orientation.
        mask_mode: How it holds its values.
        coloured: Values are colours, 0xRRGGBB.
        values: In the mask, as they stand in the file, sorted.
        counts: Pixels of each.
        colours: Of each where they are indices of a palette.
        palette: Equal for equal palettes.
        mask_digest: Equal for masks of equal values.
        error: Of the file that cannot be used; the mask's entries are filled where the image is at fault.
    """

    size: tuple[int, int] = (0, 0)
    turn: int = 1
    bands: int = 0
    mode: str = ""
    depth: str = "8-bit"
    peak: float = 255.0
    digest: str = ""
    mask_size: tuple[int, int] = (0, 0)
    mask_turn: int = 1
    mask_mode: str = ""
    coloured: bool = False
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    colours: tuple[int, ...] = ()
    palette: str = ""
    mask_digest: str = ""
    error: str = ""


def look(pair: Pair) -> Found:
    """Decode a pair completely; a truncated file shows only at its end."""
    path, seen = pair.mask, {}
    try:
        mask = read_mask(path)
        seen = describe_mask(mask)
        path = pair.image
        return Found(**seen, **_describe_image(read_picture(path, mask.values.shape)))
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


def _describe_image(picture: Picture) -> dict[str, Any]:
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
    memory = _cache_file(root)
    known = _read_cache(memory)
    found: dict[Pair, Found] = {}
    unknown: list[tuple[Pair, str]] = []
    for pair in pairs:
        stamp = _stamp(pair)
        then, result = known.get(_key(pair), ("", Found()))
        if stamp and stamp == then:
            found[pair] = result
        else:
            unknown.append((pair, stamp))
    if unknown:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            looks = pool.map(look, [pair for pair, _ in unknown])
            for (pair, stamp), result in zip(unknown, _waiting(looks, len(unknown), progress)):
                found[pair] = result
                if not result.error:  # the cause may be fixed without touching the file
                    known[_key(pair)] = stamp, result
        _write_cache(memory, known)
    return {pair: found[pair] for pair in pairs}


def _waiting(results: Iterable[T], total: int, progress: bool) -> Iterator[T]:
    """Pass results on, with a bar on stderr once the wait is long; without one where stderr is no terminal."""
    if not progress or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Reading images and masks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    start = time.monotonic()
    try:
        for result in results:
            yield result
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - start > PATIENCE:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()


def _key(pair: Pair) -> str:
    return f"{pair.image}|{pair.mask}"


def _stamp(pair: Pair) -> str:
    """Times and sizes of both files; empty where one is missing.

    The time of the last change counts beside that of the last writing, which programs set as they like.
    """
    try:
        stats = [path.stat() for path in (pair.image, pair.mask)]
    except (OSError, ValueError):
        return ""
    return " ".join(f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_size}" for stat in stats)


def _cache_file(root: Path) -> Path | None:
    base = os.environ.get("LOOKFAR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    return folder / "lookfar" / f"scan-{name}.json"


def _read_cache(path: Path | None) -> dict[str, tuple[str, Found]]:
    """Paths of a pair -> its stamp when it was looked at, and what was found."""
    if path is None:
        return {}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION:
            return {key: (stamp, _found(entries)) for key, (stamp, entries) in content["files"].items()}
    return {}


def _found(entries: Mapping[str, Any]) -> Found:
    names = {field.name for field in fields(Found)}
    if entries.keys() != names:
        raise ValueError("entries of another version")
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in entries.items()}
    return Found(**values)


def _write_cache(path: Path | None, known: Mapping[str, tuple[str, Found]]) -> None:
    if path is None:
        return
    content = {"version": VERSION, "files": {key: (stamp, asdict(found)) for key, (stamp, found) in known.items()}}
    with suppress(OSError):  # without it the next scan takes longer, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(path)  # trials that run side by side read a whole file
