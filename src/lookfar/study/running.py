"""Run a study: what is missing in its folder, trials side by side, stopped and continued."""

import contextlib
import errno
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lookfar._options import Range, check
from lookfar.study._files import Taken, locked, read_if_whole, sweep, write_json
from lookfar.study.afterwards import missing
from lookfar.study.continuing import asked_of_data, check_same, grow
from lookfar.study.mending import WEIGHTS, State, read_state, restore_configs
from lookfar.study.plan import Plan, default_folder, trial_folder
from lookfar.study.processes import Messages, RunningTrial, cause_of_death
from lookfar.study.progress import Board, make_console
from lookfar.study.provenance import commit, machine, readable_paths
from lookfar.study.results import Results, load, write_csv
from lookfar.study.sources import keep as keep_sources
from lookfar.study.words import counted, join, thousands

if TYPE_CHECKING:
    from lookfar.study.preflight import ReadyPlan

PATIENCE = 60  # seconds that a trial has to write a checkpoint when it is asked to stop


class Stopped(KeyboardInterrupt):
    """The study was interrupted; the message says where, and that the same command goes on from there."""


def run(plan: Plan, out: str | Path | None = None, *, workers: int | None = None, quiet: bool = False) -> Results:
    """Run what a study still misses and return its tables.

    Args:
        plan: What to compare; entries that are None get defaults that fit the data.
        out: The study's folder; by default ``runs/`` and the name of the data.
        workers: Trials side by side; by default one a core, or one a GPU.
        quiet: Show no progress; else it is live on a terminal, and a line a trial elsewhere.

    Raises:
        ValueError: The plan cannot work, differs from the folder's, or the folder is in use.
        FileNotFoundError: Data, or weights, that are not there.
        Stopped: Interrupted or terminated; running trials wrote a checkpoint first.
    """
    from lookfar.blocks._importing import being_imported
    from lookfar.study.preflight import preflight

    if file := being_imported():  # for a block that it holds; every trial would begin another study
        raise ValueError(f"{file} starts a study when it is imported: put that under `if __name__ == '__main__':`")
    folder = Path(out) if out is not None else default_folder(plan.data)
    board = Board(make_console(quiet=quiet))
    board.head(plan, folder)
    with _interruptible(), _in_use(folder):
        restored = restore_configs(folder)
        plan, controls, notes = grow(plan.resolved(), folder)
        for line in (*restored, *notes):
            board.note(line)
        check_same(plan, folder)  # said before the long wait
        with board.waiting("reading the data, building every candidate once"):
            ready = preflight(plan, board.note, controls)
        check_same(ready.plan, folder, ready.made_of, data=ready.data)
        sweep(folder)
        _keep_plan(ready, folder)
        keep_sources(ready.plan.sources, folder)
        slots = _slots(ready.plan, workers)
        _run_missing(ready, folder, slots, board)
        _measure_afterwards(folder, ready.plan, slots[0], board)
    results = load(folder)
    write_csv(results)
    return results


def _run_missing(ready: "ReadyPlan", folder: Path, slots: Sequence[dict[str, str]], board: Board) -> None:
    plan = ready.plan
    trials = [
        RunningTrial(candidate, seed, trial_folder(folder, candidate, seed), number)
        for number, (candidate, seed) in enumerate(plan.trials, 1)
    ]
    for trial in trials:
        sweep(trial.folder)
    task = plan.find_task(folder)
    states = {trial.number: read_state(trial.folder, task) for trial in trials}
    missing = [t for t in trials if not states[t.number].done or states[t.number].damaged]
    for trial in missing:
        if damaged := states[trial.number].damaged:
            again = "trained again from its last checkpoint" if WEIGHTS in damaged else "made again from its weights"
            board.note(f"{trial.candidate} seed {trial.seed}: {join(damaged)} damaged, {again}.")
    expected = {}
    if missing:
        with board.waiting("measuring a step of every candidate"):
            expected = ready.expected(list(dict.fromkeys(t.candidate for t in missing)))
    board.begin(plan, ready.question, len(trials), missing, len(slots), expected)
    if not missing:
        if ready.facts.keys() - read_if_whole(folder / "environment.json").keys():  # lost: no trial will write it again
            _environment(folder, plan, ready.facts, len(slots))
        return
    for trial in missing:
        _prepare(trial, ready, states[trial.number])
    environment = _environment(folder, plan, ready.facts, min(len(slots), len(missing)))
    started = time.monotonic()
    try:
        Scheduler(missing, slots, board, len(trials)).run()
    finally:
        environment |= {"seconds": environment.get("seconds", 0.0) + time.monotonic() - started, "finished": _now()}
        write_json(folder / "environment.json", environment)


class Scheduler:
    """Keeps as many trials running as there are slots, until all are done."""

    def __init__(
        self, trials: Sequence[RunningTrial], slots: Sequence[dict[str, str]], board: Board, total: int
    ) -> None:
        self.slots, self.board, self.total = slots, board, total
        self.waiting, self.running = list(trials), []
        self.messages: Messages = queue.Queue()

    def run(self) -> None:
        """Run them.

        Raises:
            Stopped: Interrupted; the running trials have ended.
        """
        with self.board:
            try:
                while self.waiting or self.running:
                    free = [n for n in range(len(self.slots)) if n not in {t.slot for t in self.running}]
                    for slot in free[: len(self.waiting)]:
                        trial = self.waiting.pop(0)
                        trial.start(slot, self.slots[slot], self.messages)
                        self.running.append(trial)
                    self._listen()
                    self.board.show(self.running, self.waiting)
            except KeyboardInterrupt:
                raise Stopped(self._stop()) from None
            finally:
                for trial in self.running:  # an error of ours: nothing may run on without its study
                    if trial.process is not None:
                        trial.process.kill()

    def _listen(self) -> None:
        """Take in what trials report for a quarter of a second."""
        end = time.monotonic() + 0.25
        while (left := end - time.monotonic()) > 0:
            try:
                trial, line = self.messages.get(timeout=left)
            except queue.Empty:
                return
            if line is None:
                self._end(trial)
                return
            trial.hear(line)

    def _end(self, trial: RunningTrial) -> None:
        code = trial.close()
        self.running.remove(trial)
        result = read_if_whole(trial.folder / "result.json")
        if not result:
            result = {"status": "failed", "reason": cause_of_death(code), "killed": True}
            write_json(trial.folder / "result.json", result)
        self.board.ended(trial, result, time.monotonic() - trial.started, self.total)

    def _stop(self) -> str:
        """Ask the running trials to stop, wait until they have, and say where."""
        self.board.stopping()
        stopped = [(t, t.process) for t in self.running if t.process is not None]
        for _, process in stopped:
            process.terminate()
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(KeyboardInterrupt):  # asked a second time: at once
            for _, process in stopped:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(end - time.monotonic(), 0))
        for trial, process in stopped:
            process.kill()
            trial.close()
        self.running = []
        places = [f"step {thousands(t.saved_step())} of trial {t.number}/{self.total}" for t, _ in stopped]
        return f"stopped after {join(places)}; the same command goes on from there"


def _measure_afterwards(folder: Path, plan: Plan, environment: dict[str, str], board: Board) -> None:
    """What trials that run side by side cannot measure, in a process of its own.

    Raises:
        Stopped: Interrupted.
    """
    if not any(missing(folder, plan)):
        return
    with subprocess.Popen(
        [sys.executable, "-m", "lookfar.study.afterwards", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            with board.waiting("measuring latency, with nothing beside it"):
                errors = process.stderr.read() if process.stderr else ""  # and standard input stays open
        except KeyboardInterrupt:
            process.kill()
            raise Stopped("stopped while latency was measured; the same command measures it again") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = (errors.strip().splitlines() or [cause_of_death(process.returncode)])[-1]
        board.note(f"Latency could not be measured: {last}")


def _prepare(trial: RunningTrial, ready: "ReadyPlan", state: State) -> None:
    """A folder to start in, or to go on in."""
    for name in state.damaged:
        _remove(trial.folder / name)
    if state.result and not state.done and not state.result.get("killed"):
        # the same steps would fail in the same way from a checkpoint, and its weights may be what is wrong
        shutil.rmtree(trial.folder)
    trial.folder.mkdir(parents=True, exist_ok=True)
    _remove(trial.folder / "result.json")
    write_json(
        trial.folder / "config.json",
        {"candidate": trial.candidate, "seed": trial.seed, **ready.made_of, "plan": ready.plan.to_dict()},
    )


def _remove(path: Path) -> None:
    """A file, or a folder in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _keep_plan(ready: "ReadyPlan", folder: Path) -> None:
    """Write ``study.yaml``, and ``data.json`` with what the trials are trained on."""
    write_json(folder / "data.json", {**ready.data, "asked": asked_of_data(ready.plan)})
    ready.plan.save(folder / "study.yaml")


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a study's folder. Folders that are made for it go again where nothing comes to lie in them."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(errno.ENOTDIR, "a file, and a study needs a folder", str(folder)) from None
    try:
        with locked(folder / ".lock"):
            yield
    except Taken as taken:
        who = f" (process {taken.owner})" if taken.owner else ""
        raise ValueError(f"{folder} is being run{who}: wait for it, or give another --out") from None
    finally:
        with contextlib.suppress(OSError):
            if new and [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
            for path in new:
                path.rmdir()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _slots(plan: Plan, workers: int | None) -> list[dict[str, str]]:
    """The environment of each place in which a trial can run: its threads, its GPUs."""
    threads = {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    check("workers", workers, Annotated[int | None, Range(1, 1024)])
    if plan.accelerator != "cuda":
        fitting = max(_cores() // (plan.threads * plan.devices), 1) if plan.accelerator == "cpu" else 1
        return [threads] * (workers or fitting)
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
    groups = [gpus[i : i + plan.devices] for i in range(0, len(gpus) - plan.devices + 1, plan.devices)]
    if not groups:
        raise ValueError(f"a trial takes {counted(plan.devices, 'GPU')}, but there are {len(gpus)}")
    count = workers or len(groups)
    return [threads | {"CUDA_VISIBLE_DEVICES": ",".join(groups[n % len(groups)])} for n in range(count)]


def _cores() -> int:
    """Cores that this process may use: those of its affinity, no more than a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(round(int(quota) / int(period)), 1))
    return cores


def _environment(folder: Path, plan: Plan, facts: dict[str, Any], workers: int) -> dict[str, Any]:
    """What ``environment.json`` says; the first run's command and start stay."""
    before = read_if_whole(folder / "environment.json")
    runs = before.pop("sittings", 0)  # its name in folders that an earlier version began
    packages = {}
    for name in ("lookfar", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    environment = {
        **before,
        **facts,
        "command": before.get("command") or _command(),
        "versions": {"python": platform.python_version(), **packages},
        "platform": platform.platform(),
        "machine": machine(),
        "commit": commit(),
        "paths": readable_paths([plan.data, plan.val, plan.also_val, plan.host_weights, str(folder)]),
        "cores": _cores(),
        "workers": workers,
        "started": before.get("started") or _now(),
        "runs": before.get("runs", runs) + 1,
    }
    write_json(folder / "environment.json", environment)
    return environment


def _command() -> str:
    """How this study was started, as it would be typed."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    if name in ("lookfar", "cli") and sys.argv[1:2] == ["study"]:
        return shlex.join(["lookfar", *sys.argv[1:]])
    return "lookfar.study.run(plan, out)"


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
