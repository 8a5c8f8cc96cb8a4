"""Locks of folders that machines may share: a file that only one process can create, touched while that one lives.

One thing is asked of the file system: of several that create a file with O_EXCL, one succeeds. ``flock`` is not, which
network file systems have half or not at all, and where they have it, it may outlive its machine.

A lock is abandoned where its holder is known to be gone. On the holder's own machine the system says whether that
process lives (by its number and when it began, since numbers come again). Elsewhere its signs of life say so: it
touches the file every BEAT seconds. One that has none for STALE seconds, by the file system's own clock, is watched
for WATCH seconds more, by the clock of whoever waits, so that neither clocks that differ nor a server that was away
take a lock from its holder. A holder that was taken for dead all the same (its machine slept) finds its lock gone and
stops.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

BEAT = 10.0
STALE = 60.0
WATCH = 25.0

PREPARES = "prepares"  # what a process does that will be over soon: others wait for it


@dataclass(frozen=True)
class Owner:
    """Who holds a lock; empty where that cannot be read.

    Attributes:
        token: Of this one lock.
        machine: Differs between machines, their starts, and containers on one.
        host: Name of the machine.
        process: Its number there.
        born: When it began, as the system counts; empty where the system does not say.
        doing: What for.
    """

    token: str = ""
    machine: str = ""
    host: str = ""
    process: int = 0
    born: str = ""
    doing: str = ""

    def __str__(self) -> str:
        if not self.process:
            return "an unknown process"
        return f"process {self.process}" + (f" on {self.host}" if self.machine != machine() else "")


class Taken(RuntimeError):
    """Somebody else holds the lock: ``owner``."""

    def __init__(self, path: Path, owner: Owner) -> None:
        super().__init__(f"{path} is held by {owner}")
        self.owner = owner


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    wait: Callable[[Owner, float], bool] = lambda owner, seconds: False,
    doing: str = "",
    lost: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Hold a lock; whoever dies with it leaves a file that the next one removes.

    Args:
        path: Of the lock; it exists as long as the lock is held.
        wait: Whether to go on waiting, given who holds it and for how many seconds that has lasted.
        doing: What others read in it.
        lost: Called by another thread where the lock has been taken away; None for short work.

    Raises:
        Taken: Somebody else holds it, and ``wait`` said no.
    """
    mine = Owner(uuid.uuid4().hex, machine(), platform.node(), os.getpid(), _born(os.getpid()) or "", doing)
    started, pause = time.monotonic(), 0.02
    while not _create(path, mine):
        owner = owner_of(path)
        if owner is None or (_is_abandoned(path, owner) and _remove(path, owner)):
            continue
        if not wait(owner, time.monotonic() - started):
            raise Taken(path, owner)
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    over = threading.Event()
    if lost is not None:
        threading.Thread(target=_beat, args=(path, mine, over, lost), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if owner_of(path) == mine:
            with contextlib.suppress(OSError):
                path.unlink()


def owner_of(path: Path) -> Owner | None:
    """Who holds a lock; None where nobody does."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    try:
        held = json.loads(text)
        return Owner(machine=machine(), process=held) if isinstance(held, int) else Owner(**held)  # of earlier versions
    except (ValueError, TypeError):  # being written
        return Owner()


def _create(path: Path, mine: Owner) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        if path.is_dir():
            raise
        return False
    except FileNotFoundError:  # its folder went again, with whoever had made it
        return False
    try:
        os.write(file, json.dumps(asdict(mine)).encode())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)
    return True


def _beat(path: Path, mine: Owner, over: threading.Event, lost: Callable[[], object]) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):  # a server that is away: nobody else gets at the file either
            if owner_of(path) == mine:
                os.utime(path)
            elif not over.is_set():
                lost()
                return


# ---- locks that were left --------------------------------------------------------------------------------------------


def _is_abandoned(path: Path, owner: Owner) -> bool:
    if owner.machine and owner.machine == machine():
        born = _born(owner.process)
        if born is None or (born and owner.born and born != owner.born):
            return True
        if born and owner.born:  # it lives, though it may be stopped
            return False
    if _silence(path) < STALE:
        return False
    seen, end = _touched(path), time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(min(BEAT, WATCH) / 10)
        if _touched(path) != seen:
            return False
    return True


def _touched(path: Path) -> tuple[float, str] | None:
    """When a lock was last touched, and which one it is; opened, since a network file system remembers what it saw."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None


def _silence(path: Path) -> float:
    """Seconds since a lock was touched: two times of the file system, whatever this machine's clock says."""
    probe = path.with_name(f".{path.name.strip('.')}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
    touched = _touched(path)
    return 0.0 if touched is None else now - touched[0]


def _remove(path: Path, owner: Owner) -> bool:
    """Remove an abandoned lock, if it is still that one; a guard keeps others from it meanwhile."""
    guard = path.with_name(f"{path.name}.broken")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        if _silence(guard) > STALE:  # its maker died within these lines
            guard.unlink(missing_ok=True)
        return False
    try:
        if owner_of(path) == owner:
            path.unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


# ---- processes of this machine ---------------------------------------------------------------------------------------


@cache
def machine() -> str:
    """Of this machine since its start, as its processes see one another; empty where they cannot be asked for."""
    if os.name != "posix":
        return ""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return " ".join(parts)


def lives(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _born(process: int) -> str | None:
    """When a process of this machine began; empty where the system does not say, None where there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file system, or another user's process
        return "" if lives(process) else None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
