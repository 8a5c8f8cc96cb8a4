"""Files of a study that several processes touch: written in one piece."""

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lookfar.study._locks import lives, machine

DAY = 86_400.0  # seconds after which nobody writes on a file of another machine
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)")


def write_text(path: Path, text: str) -> None:
    """Write a file that is there in full or not at all."""
    temporary = path.with_name(f".{path.name}.{_here()}-{os.getpid()}")
    try:
        # names of files need not be UTF-8; that must not cost what stands beside them
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk it would stand in the way of what comes after
        if isinstance(error, OSError):
            error.filename = str(path)  # the temporary name is no user's, and without room there is none
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
    """Remove what writers left half-written that are gone: ``.NAME.MACHINE-PROCESS`` and ``samples.part``.

    The files of training have no machine in their names: this is for whoever holds the lock of a trial's folder.
    """
    for path in leftovers(folder):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def leftovers(folder: Path) -> list[Path]:
    """What :func:`sweep` would remove."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        left = _TEMPORARY.fullmatch(path.name)
        if path.name == "samples.part" or (left and _is_left(path, left[1], int(left[2]))):
            found.append(path)
    return found


def _is_left(path: Path, where: str | None, process: int) -> bool:
    if where in (None, _here()):
        return process != os.getpid() and not lives(process)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > DAY
    return False


@cache
def _here() -> str:
    """This machine, in eight signs: numbers of processes are its own."""
    return hashlib.blake2b(machine().encode(), digest_size=4).hexdigest()
