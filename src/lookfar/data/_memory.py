"""What was found in files, remembered by their times and sizes, so that only the first look takes long."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

PATIENCE = 2.0  # seconds after which a wait says what it waits for


class Looked(Protocol):
    """What may be looked at: files on disk, and a hash by which it is found again."""

    @property
    def paths(self) -> tuple[Path, ...]: ...

    def __hash__(self) -> int: ...


class Record(Protocol):
    """What was found: a dataclass of plain values; ``error`` says why a file cannot be used."""

    @property
    def error(self) -> str: ...


F = TypeVar("F", bound=Looked)
R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Memory(Generic[R]):
    """Where it is remembered.

    Attributes:
        path: Of the file; None remembers nothing.
        version: Of what is remembered; another one is forgotten.
        record: The dataclass of what was found.
    """

    path: Path | None
    version: int
    record: type[R]

    def look(
        self,
        files: Sequence[F],
        look: Callable[[F], R],
        words: str = "",
        enough: Callable[[R], bool] = lambda _: True,
    ) -> dict[F, R]:
        """What every file holds: remembered where it has not changed, else by ``look``, in threads.

        Args:
            files: In the order of the result.
            look: Looks at one.
            words: What a line on the terminal says when it takes longer than two seconds; empty for none.
            enough: Whether what is remembered of a file will do.
        """
        known = self._read()
        found: dict[F, R] = {}
        unknown: list[tuple[F, str]] = []
        for file in files:
            stamp = _stamp(file.paths)
            then = known.get(_key(file))
            if then and stamp and stamp == then[0] and enough(then[1]):
                found[file] = then[1]
            else:
                unknown.append((file, stamp))
        if unknown:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                looks = pool.map(look, [file for file, _ in unknown])
                for (file, stamp), result in zip(unknown, _waiting(looks, len(unknown), words)):
                    found[file] = result
                    if not result.error:  # the cause may be fixed without touching the file
                        known[_key(file)] = stamp, result
            self._write(known)
        return {file: found[file] for file in files}

    def _read(self) -> dict[str, tuple[str, R]]:
        """Paths of a file -> its stamp when it was looked at, and what was found."""
        if self.path is None:
            return {}
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] == self.version:
                names = {field.name for field in fields(self.record)}  # pyright: ignore[reportArgumentType]
                return {k: (stamp, self._found(entries, names)) for k, (stamp, entries) in content["files"].items()}
        return {}

    def _found(self, entries: Mapping[str, Any], names: set[str]) -> R:
        if entries.keys() != names:
            raise ValueError("entries of another version")
        return self.record(**{k: tuple(value) if isinstance(value, list) else value for k, value in entries.items()})

    def _write(self, known: Mapping[str, tuple[str, R]]) -> None:
        if self.path is None:
            return
        content = {
            "version": self.version,
            "files": {key: (stamp, vars(found)) for key, (stamp, found) in known.items()},
        }
        with suppress(OSError):  # without it the next look takes longer, nothing else
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(content), encoding="utf-8")
            draft.replace(self.path)  # trials that run side by side read a whole file


def memory_file(kind: str, root: Path) -> Path | None:
    """Where a kind of look at a data set is remembered; None where there is no place for it."""
    base = os.environ.get("LOOKFAR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    return folder / "lookfar" / f"{kind}-{name}.json"


def _key(file: Looked) -> str:
    return "|".join(map(str, file.paths))


def _stamp(paths: Sequence[Path]) -> str:
    """Times and sizes of files; empty where one is missing.

    The time of the last change counts beside that of the last writing, which programs set as they like.
    """
    try:
        stats = [path.stat() for path in paths]
    except (OSError, ValueError):
        return ""
    return " ".join(f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_size}" for stat in stats)


def _waiting(results: Iterable[T], total: int, words: str) -> Iterator[T]:
    """Pass results on, with a bar on stderr once the wait is long; without one where stderr is no terminal."""
    if not words or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
