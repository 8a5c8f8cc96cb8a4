"""Files of a study that several processes touch: written in one piece, locked while somebody works on them."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None


_TEMPORARY = re.compile(r"\..+\.(\d+)")


def write_text(path: Path, text: str) -> None:
    """Write a file that is there in full or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # names of files need not be UTF-8; that must not cost what stands beside them
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk it would stand in the way of what comes after
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one piece; nan is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where the file is missing.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        from lookfar.data._words import cut, shown  # loads torch

        raise ValueError(f"{cut(shown(str(path)), 120)} is damaged: it holds no JSON object")
    return value


def read_if_whole(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where the file is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def sweep(folder: Path) -> None:
    """Remove what writers left half-written that are gone: ``.NAME.PROCESS`` and ``samples.part``."""
    for path in folder.iterdir() if folder.is_dir() else ():
        left = _TEMPORARY.fullmatch(path.name)
        if not (left and not _lives(int(left[1]))) and path.name != "samples.part":
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lives(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


class Taken(RuntimeError):
    """Another living process holds the lock; ``owner`` is its process id, or an empty string."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is held by process {owner or 'unknown'}")
        self.owner = owner


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a file's lock; it ends with the process, however that dies.

    Raises:
        Taken: Somebody else holds it, and ``wait`` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.seek(0)
                raise Taken(path, file.read().strip()) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
