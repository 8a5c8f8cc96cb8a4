"""Read every file of a data set once before the first step: wrong labels otherwise surface as CUDA asserts.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lookfar.data._base import IGNORE
from lookfar.data._reading import READ_ERRORS, read_mask, read_picture

VERSION = 1  # of what is remembered
PATIENCE = 2.0  # seconds after which a wait says what it waits for

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image and its mask; ``name`` is what users read."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Found:
    """What one image and its mask hold; ``error`` says why they cannot be used."""

    size: tuple[int, int] = (0, 0)
    bands: int = 0
    mode: str = ""
    peak: float = 255.0  # largest value where the image is not 8-bit
    mask_mode: str = ""
    values: tuple[int, ...] = ()  # in the mask, as they stand in the file
    error: str = ""


def look(pair: Pair) -> Found:
    """Decode a pair completely; a truncated file shows only at its end."""
    path = pair.mask
    try:
        mask, mask_mode = read_mask(path)
        path = pair.image
        picture = read_picture(path, mask.shape)
    except READ_ERRORS as error:
        return Found(error=f"{path.name} ({_reason(error)})")
    pixels = picture.pixels
    if pixels.shape[:2] != mask.shape:
        sizes = [f"{h}×{w}" for h, w in (pixels.shape[:2], mask.shape)]
        return Found(error=f"{path.name} (image {sizes[0]}, mask {sizes[1]})")
    values = np.flatnonzero(np.bincount(mask.ravel())).tolist()
    peak = 255.0 if pixels.dtype == np.uint8 else float(pixels.max())
    height, width, bands = pixels.shape
    return Found((height, width), bands, picture.mode, peak, mask_mode, tuple(values))


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return "no image" if text.startswith("cannot identify image file") else text


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
                if not result.error:  # what ails a file may be cured without touching it
                    known[_key(pair)] = stamp, result
        _write_cache(memory, known)
    return {pair: found[pair] for pair in pairs}


def _waiting(results: Iterable[T], total: int, progress: bool) -> Iterator[T]:
    """Pass results on; a bar on stderr once the wait is long, nothing where nobody watches."""
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


def labels_of(values: Iterable[int], labels: Mapping[int, int], ignore: Sequence[int]) -> dict[int, int]:
    """Value in the file -> label: ``ignore`` becomes 255, ``labels`` translates, others stay."""
    return {v: IGNORE if v in ignore else labels.get(v, v) for v in values}


def check_masks(
    found: Mapping[Pair, Found], labels: Mapping[int, int], ignore: Sequence[int], classes: int | None
) -> tuple[int, list[str]]:
    """The number of classes, and what is to be said about the masks, one line each.

    Args:
        found: Of every usable pair.
        labels: Value in the file -> label, where they differ.
        ignore: Values without a label.
        classes: Their number; without it, one more than the largest label.

    Raises:
        ValueError: Masks hold a label that does not exist, or fewer than two.
    """
    files: dict[int, list[str]] = {}
    for pair, result in found.items():
        for value in result.values:
            files.setdefault(value, []).append(pair.mask.name)
    meaning = labels_of(sorted(files), labels, ignore)
    used = sorted({label for label in meaning.values() if label != IGNORE})
    lines = [
        f"mask value {value} in {_count(files[value], 'file')} → ignored."
        for value, label in meaning.items()
        if label == IGNORE
    ]
    beyond = [value for value, label in meaning.items() if label != IGNORE and label >= (classes or IGNORE)]
    if beyond:
        limit = "only 255 classes are possible" if classes is None else f"only {classes} classes given"
        wrong = [f"mask value {v} in {_count(files[v], 'file')} ({shorten(files[v])}): {limit}." for v in beyond[:8]]
        if len(beyond) > 8:
            wrong.append(f"{len(beyond) - 8} further values.")
        masks = len({name for value in beyond for name in files[value]})
        cure = f"{_count(masks, 'mask')} {'holds' if masks == 1 else 'hold'} a class that does not exist. "
        options = " ".join(f"--ignore {v}" for v in beyond[:8])
        raise ValueError(" ".join([*lines, *wrong, f"{cure}Correct them, or give {options}."]))
    if len(used) < 2:
        hint = " Give the foreground the value 1: 255 means ignored." if set(files) == {0, IGNORE} else ""
        raise ValueError(f"nothing to tell apart: the masks hold the values {sorted(files)}, want two classes.{hint}")
    return classes or used[-1] + 1, lines


def _count(what: Sequence[object] | int, word: str) -> str:
    number = what if isinstance(what, int) else len(what)
    return f"{grouped(number)} {word}{'' if number == 1 else 's'}"


def grouped(number: int) -> str:
    """Thousands apart: 1 204."""
    return f"{number:,}".replace(",", " ")


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")


def _key(pair: Pair) -> str:
    return f"{pair.image}|{pair.mask}"


def _stamp(pair: Pair) -> str:
    """Times and sizes of both files; empty where one is missing."""
    try:
        stats = [path.stat() for path in (pair.image, pair.mask)]
    except OSError:
        return ""
    return " ".join(f"{stat.st_mtime_ns} {stat.st_size}" for stat in stats)


def _cache_file(root: Path) -> Path | None:
    base = os.environ.get("LOOKFAR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    name = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    return folder / "lookfar" / f"scan-{name}.json"


def _read_cache(path: Path | None) -> dict[str, tuple[str, Found]]:
    """Paths of a pair -> its stamp when it was looked at, and what was found."""
    if path is None:
        return {}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION:
            entries = content["files"].items()
            return {
                key: (stamp, Found(**{**found, "size": tuple(found["size"]), "values": tuple(found["values"])}))
                for key, (stamp, found) in entries
            }
    return {}


def _write_cache(path: Path | None, known: Mapping[str, tuple[str, Found]]) -> None:
    if path is None:
        return
    content = {"version": VERSION, "files": {key: (stamp, asdict(found)) for key, (stamp, found) in known.items()}}
    with suppress(OSError):  # a place that cannot be written only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(path)  # trials that run side by side read a whole file
