"""The process in which a stranger's module is asked: ``python -m lookfar.check.child``, started by :mod:`.apart`.

It reads one JSON object from standard input, the questions, and writes its answers to what was standard output, one
JSON object a line; what the module itself reads and writes are other files. Standard input stays open as long as the
parent lives: where it ends, so does this process.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Say = Callable[..., None]

ROOM = 0.8  # of the memory that is free, the rest is for others
MOST = 8 * 2**30  # bytes: filling more takes longer than it tells


def main() -> None:
    say, request = _talk_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    from lookfar.check.run import prepare, rows_of, undisturbed  # torch is loaded here, after the pipes are safe

    _limit_memory()
    try:
        subject = prepare(
            request["target"], request["channels"], request["size"], request["options"], request["classes"]
        )
    except (ValueError, TypeError, OSError) as error:
        say(error=[_kind(error), str(error)])
        return
    except BaseException as error:
        say(error=["ValueError", f"cannot load {request['target']}: {type(error).__name__}: {error}"])
        return

    def asking(name: str, title: str) -> None:
        say(asking=name, title=title)

    say(target=subject.target.written(subject.channels), size=subject.size)
    with undisturbed():
        for row in rows_of(subject, request["only"], asking, hangs=request["hangs"]):
            say(row=asdict(row))
    say(end=True)


def _kind(error: Exception) -> str:
    known = (FileNotFoundError, TypeError, ValueError, OSError)
    return next(kind.__name__ for kind in known if isinstance(error, kind))


def _talk_to_parent() -> tuple[Say, dict[str, Any]]:
    """Take the pipes away from whatever runs here later."""
    parent, channel = os.dup(0), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    text = b""
    while not text.endswith(b"\n"):
        text += (more := os.read(parent, 1))
        if not more:
            os._exit(1)
    request = json.loads(text)

    def say(**values: Any) -> None:
        # a module may find the pipe and write to it: lines without the word are not ours
        print(json.dumps({"word": request["word"], **values}), file=channel, flush=True)

    def watch() -> None:
        while os.read(parent, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return say, request


def _limit_memory() -> None:
    """What asks for more than there is gets a MemoryError; the system would end something of its own choice."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        free = _free_memory()
        if free is not None:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            wanted = _kilobytes(Path("/proc/self/status"), "VmData") + min(int(ROOM * free), MOST)
            wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _free_memory() -> int | None:
    """Bytes that this process could still take: of the machine, and of its container."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(_kilobytes(Path("/proc/meminfo"), "MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        most, now = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        found.append(int(most) - int(now))
    return max(min(found), 0) if found else None


def _kilobytes(path: Path, name: str) -> int:
    """The bytes of a line ``name:  123 kB``."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{path} has no line {name}")


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # threads and exit handlers of the module have nothing more to say
