"""Trials as processes: started, heard, and what is to be said of one that died."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookfar._tables import signal_name
from lookfar.study._files import read_json

WORKER = (sys.executable, "-m", "lookfar.study.worker")


@dataclass
class RunningTrial:
    """A trial that this call of the study has to do, and its process while it runs.

    Attributes:
        candidate: As the plan writes it.
        seed: Of the trial.
        folder: Where it writes.
        number: Its place in the order of the plan, from 1.
        process: None before it is started.
        slot: Which of the places side by side it takes.
        step: The last one heard of.
        seen: The last value of everything that it has reported.
        started: On the monotonic clock.
        paced: The first step heard of since it was started, and when.
    """

    candidate: str
    seed: int
    folder: Path
    number: int
    process: subprocess.Popen[str] | None = None
    slot: int = 0
    step: int = 0
    seen: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    paced: tuple[int, float] | None = None

    def start(self, slot: int, environment: Mapping[str, str], messages: "Messages") -> None:
        """Start its process; what it writes arrives in ``messages``, None at its end."""
        self.slot, self.started = slot, time.monotonic()
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*WORKER, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | dict(environment),
                text=True,
                start_new_session=True,  # Ctrl-C comes to the study alone, which asks its trials to stop
            )
        threading.Thread(target=self._read, args=(self.process, messages), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]", messages: "Messages") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            messages.put((self, line))
        messages.put((self, None))

    def hear(self, line: str) -> None:
        """Take in one line of its output; what is no JSON is passed over."""
        with contextlib.suppress(ValueError):
            self.seen |= json.loads(line)
            self.step = self.seen.get("step", self.step)
            if self.paced is None and "step" in self.seen:
                self.paced = (self.step, time.monotonic())

    def close(self) -> int:
        """Wait for the end of its process and close the pipes; the exit status."""
        assert self.process is not None
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def saved_step(self) -> int:
        """The step of its newest checkpoint; the plan's last one where training is over."""
        if (self.folder / "result.json").exists() or (self.folder / "final.safetensors").exists():
            return read_json(self.folder / "config.json").get("plan", {}).get("steps") or 0
        return max((int(p.name[5:]) for p in self.folder.glob("step-*") if p.name[5:].isdigit()), default=0)


Messages = queue.Queue[tuple[RunningTrial, str | None]]


def cause_of_death(code: int) -> str:
    """Why a process ended without a result, from its exit status."""
    if code >= 0:
        return f"ended with status {code} and no result; its log.txt may say why"
    name = signal_name(-code)
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else "; its log.txt may say why"
    return f"killed by {name}{hint}"
