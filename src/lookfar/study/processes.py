"""Trials as processes: where they run, how they are started and heard, and what is to be said of one that died."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from lookfar._options import Range, check
from lookfar._tables import signal_name
from lookfar.study._files import read_json
from lookfar.study.plan import Plan
from lookfar.study.words import counted

WORKER = (sys.executable, "-m", "lookfar.study.worker")
TAKEN = 75  # exit status of a trial that runs elsewhere already: sysexits.h has it for "try again later"
LOST = 256  # what no process ends with: it is not known what became of it, since its machine is gone


class Process(Protocol):
    """What runs a trial, as :class:`subprocess.Popen` is used for it."""

    @property
    def stdout(self) -> Iterable[str] | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Places(Protocol):
    """Where trials run."""

    def number(self) -> int:
        """How many can run side by side, as things are."""
        ...

    def start(self, slot: int, folder: Path) -> Process:
        """Start the trial in a folder in one of these places; its errors go to ``log.txt`` there."""
        ...


class Here:
    """This machine."""

    def __init__(self, plan: Plan, workers: int | None) -> None:
        self.environments = environments(plan, workers)

    def number(self) -> int:
        return len(self.environments)

    def start(self, slot: int, folder: Path) -> "subprocess.Popen[str]":
        return start(folder, self.environments[slot])


def start(folder: Path, environment: Mapping[str, str], cwd: str | None = None) -> "subprocess.Popen[str]":
    """Start the trial in a folder on this machine."""
    # a trial is one task of its own, however the study was started: of SLURM's, Fabric would take the number of tasks
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            [*WORKER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=inherited | dict(environment),
            cwd=cwd,
            text=True,
            start_new_session=True,  # Ctrl-C comes to the study alone, which asks its trials to stop
        )


@dataclass
class RunningTrial:
    """A trial that this call of the study has to do, and its process while it runs.

    Attributes:
        candidate: As the plan writes it.
        seed: Of the trial.
        folder: Where it writes.
        number: Its place in the order of the plan, from 1.
        label: That place, as it is shown.
        process: None before it is started.
        slot: Which of the places side by side it takes.
        step: The last one heard of.
        seen: The last value of everything that it has reported.
        started: On the monotonic clock.
        paced: The first step heard of since it was started, and when.
        losses: How often its machine was gone, with the last checkpoint at step ``lost_at``.
    """

    candidate: str
    seed: int
    folder: Path
    number: int
    label: str = ""
    process: Process | None = None
    slot: int = 0
    step: int = 0
    seen: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    paced: tuple[int, float] | None = None
    losses: int = 0
    lost_at: int = -1

    def start(self, slot: int, places: Places, messages: "Messages") -> None:
        """Start its process; what it writes arrives in ``messages``, None at its end."""
        self.slot, self.started = slot, time.monotonic()
        self.process = places.start(slot, self.folder)
        threading.Thread(target=self._read, args=(self.process, messages), daemon=True).start()

    def _read(self, process: Process, messages: "Messages") -> None:
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
        for pipe in (getattr(self.process, "stdin", None), self.process.stdout):
            close = getattr(pipe, "close", None)
            if close is not None:
                with contextlib.suppress(OSError):
                    close()
        return code

    def forget(self) -> None:
        """Be as before the start."""
        self.process, self.step, self.seen, self.paced = None, 0, {}, None

    def saved_step(self) -> int:
        """The step of its newest checkpoint; the plan's last one where training is over."""
        if (self.folder / "result.json").exists() or (self.folder / "final.safetensors").exists():
            return read_json(self.folder / "config.json").get("plan", {}).get("steps") or 0
        return max((int(p.name[5:]) for p in self.folder.glob("step-*") if p.name[5:].isdigit()), default=0)


Messages = queue.Queue[tuple[RunningTrial, str | None]]


def cause_of_death(code: int) -> str:
    """Why a process ended without a result, from its exit status."""
    if code == LOST:
        return "its machine was gone again and again; the others' logs may say why"
    if code >= 0:
        return f"ended with status {code} and no result; its log.txt may say why"
    name = signal_name(-code)
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else "; its log.txt may say why"
    return f"killed by {name}{hint}"


def environments(plan: Plan, workers: int | None) -> list[dict[str, str]]:
    """The environment of each place of this machine in which a trial can run: its threads, its GPUs."""
    threads = threads_of(plan)
    check("workers", workers, Annotated[int | None, Range(1, 1024)])
    if plan.accelerator != "cuda":
        fitting = max(cores() // (plan.threads * plan.devices), 1) if plan.accelerator == "cpu" else 1
        return [threads] * (workers or fitting)
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
    groups = [gpus[i : i + plan.devices] for i in range(0, len(gpus) - plan.devices + 1, plan.devices)]
    if not groups:
        raise ValueError(f"a trial takes {counted(plan.devices, 'GPU')}, but there are {len(gpus)}")
    count = workers or len(groups)
    return [threads | {"CUDA_VISIBLE_DEVICES": ",".join(groups[n % len(groups)])} for n in range(count)]


def threads_of(plan: Plan) -> dict[str, str]:
    """How many threads a trial takes, in its environment."""
    return {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def cores() -> int:
    """Cores that this process may use: those of its affinity, no more than a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(round(int(quota) / int(period)), 1))
    return cores
