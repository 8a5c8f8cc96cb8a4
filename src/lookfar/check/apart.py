"""A stranger's module asked in a process of its own, so that whatever it does there is an answer: exit, hang, crash."""

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from lookfar._options import positive
from lookfar._tables import shorten, signal_name
from lookfar.check import run
from lookfar.check.outcome import Outcome, Report, Row, broken, not_asked
from lookfar.check.run import PROMISES, RUNS, check_names

CHILD = (sys.executable, "-m", "lookfar.check.child")
LOADING = 180.0  # seconds to import torch and the file and to build the module once
GRACE = 10.0  # seconds beyond a promise's time, in which the child may say itself that it is up
ERRORS = {kind.__name__: kind for kind in (ValueError, TypeError, FileNotFoundError, OSError)}


def check_apart(
    target: str,
    channels: int = 64,
    size: Sequence[int] | None = None,
    *,
    options: Sequence[str] = (),
    only: Sequence[str] = (),
    classes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """:func:`~lookfar.check.check_module` in child processes: one that ends, hangs or crashes has broken the promise.

    Args:
        target: As text, which the child can read too.
        channels: As in :func:`~lookfar.check.check_module`, like the others.
        size: Of the input.
        options: Of the constructor.
        only: Names of the promises to ask.
        classes: Of a function that builds a whole network: the number of classes that it is asked for.
        progress: Called with the title of every promise before it is asked.

    Raises:
        ValueError: The module cannot be loaded or built, also where that ends or hangs its process.
        FileNotFoundError: The file does not exist.
        TypeError: An option that the module does not take.

    >>> report = check_apart("squeeze_excitation", 32, only=["images"])
    >>> [(row.promise, row.outcome.status) for row in report.rows]
    [('images', 'holds')]
    """
    check_names(only)
    positive("channels", channels)
    wanted = [p.name for p in PROMISES if not only or p.name in only]
    rows: dict[str, Row] = {}
    written, asked, hangs = target, tuple(size or ()), False
    while left := [name for name in wanted if name not in rows]:
        request = {"target": target, "channels": channels, "size": size, "options": list(options)}
        request |= {"only": left, "hangs": hangs, "classes": classes}
        with _Child(request) as child:
            for message in child.messages():
                if "error" in message:
                    kind, text = message["error"]
                    raise ERRORS[kind](text)
                if "target" in message:
                    written, asked = message["target"], tuple(message["size"])
                if "asking" in message:
                    progress(message["title"])
                if "row" in message:
                    row = message["row"]
                    rows.setdefault(row["promise"], Row(row["promise"], row["title"], Outcome(**row["outcome"])))
            cause = child.cause
        if not cause:
            break
        hangs = hangs or child.late
        if child.at == "loading":
            raise ValueError(f"cannot load {target}: {cause}")
        if "runs" not in rows:
            rows["runs"] = Row("runs", RUNS, broken(cause))
            rows |= {p.name: Row(p.name, p.title, not_asked("it does not run")) for p in PROMISES if p.name in wanted}
        else:
            unanswered = [p for p in PROMISES if p.name in wanted and p.name not in rows]
            # one that ended between two promises is held against the next, so that this comes to an end
            for p in [p for p in unanswered if p.name == child.at] or unanswered[:1]:
                late = p.slow and child.late
                rows[p.name] = Row(p.name, p.title, not_asked(cause) if late else broken(cause))
    names = ["runs"] * (not only or rows["runs"].outcome.status == "broken") + wanted
    return Report(written, channels, asked, tuple(rows[name] for name in names))


class _Child:
    """One process that answers.

    Attributes:
        at: What it is at: ``loading``, ``runs``, the name of a promise.
        cause: Why it ended before its end; an empty string where it came to it.
        late: Whether its time was up.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = {**request, "word": secrets.token_hex(8)}
        self.at, self.cause, self.late = "loading", "", False

    def __enter__(self) -> "_Child":
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # it is ended with everything that it has started
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self.request).encode() + b"\n")
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends; :attr:`cause` then says how."""
        lines: queue.Queue[bytes | None] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=_read, args=(self._process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + LOADING
        while True:
            try:
                line = lines.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                self.late = True
                self._kill()
                self.cause = f"had not ended after {self._limit() if self.at != 'loading' else LOADING:g} s"
                return
            if line is None:
                self.cause = self._death()
                return
            message = self._ours(line)
            if "end" in message or "error" in message:
                yield message
                return
            if "asking" in message:
                self.at = message["asking"]
                deadline = time.monotonic() + self._limit() + GRACE
            if message:
                yield message

    def _ours(self, line: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and message.get("word") == self.request["word"]:
                return message
        return {}

    def _limit(self) -> float:
        if self.at == "runs":
            return 2 * run.FIRST  # in two precisions
        return next(run.seconds_for(p) for p in PROMISES if p.name == self.at)

    def _death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with status {code}, as os._exit({code}) does{self._last_words()}"
        name = signal_name(-code)
        why = {"SIGSEGV": "native code or endless recursion", "SIGKILL": "as the system does when memory runs out"}
        return f"its process was killed by {name}" + (f", {why[name]}" if name in why else "") + self._last_words()

    def _last_words(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - 4096, 0))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f" ({shorten(last, 80)})" if last else ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def _read(pipe: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            lines.put(line)
    lines.put(None)
