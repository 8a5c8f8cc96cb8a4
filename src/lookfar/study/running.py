"""Run a study: what is missing in its folder, trials side by side, stopped and continued."""

import _thread
import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study._files import read_if_whole, write_json
from lookfar.study._locks import owner_of
from lookfar.study.afterwards import missing
from lookfar.study.plan import Plan, default_folder
from lookfar.study.preparing import (
    config_of,
    in_use,
    missing_of,
    now,
    open_trial,
    prepare,
    trials_of,
    write_environment,
)
from lookfar.study.processes import LOST, TAKEN, Here, Messages, Places, RunningTrial, cause_of_death
from lookfar.study.progress import Board, make_console
from lookfar.study.results import Results, load, write_csv
from lookfar.study.words import join, thousands

if TYPE_CHECKING:
    from lookfar.study.on_ray import Cluster
    from lookfar.study.preflight import ReadyPlan

LOSSES = 3  # of a trial's machine, without a further checkpoint in between: it may be the trial that ends them
PATIENCE = 60  # seconds that a trial has to write a checkpoint when it is asked to stop


class Stopped(KeyboardInterrupt):
    """The study was interrupted; the message says where, and that the same command goes on from there."""


def run(
    plan: Plan,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    on: str | None = None,
    quiet: bool = False,
) -> Results:
    """Run what a study still misses and return its tables.

    Args:
        plan: What to compare; entries that are None get defaults that fit the data.
        out: The study's folder; by default ``runs/`` and the name of the data.
        workers: Trials side by side; by default one a core, or one a GPU.
        on: Where they run: ``ray`` or ``ray:ADDRESS`` for a Ray cluster; by default this machine.
        quiet: Show no progress; else it is live on a terminal, and a line a trial elsewhere.

    Raises:
        ValueError: The plan cannot work, differs from the folder's, or the folder is in use.
        FileNotFoundError: Data, or weights, that are not there.
        Stopped: Interrupted or terminated; running trials wrote a checkpoint first.
    """
    from lookfar.blocks._importing import being_imported

    if file := being_imported():  # for a block that it holds; every trial would begin another study
        raise ValueError(f"{file} starts a study when it is imported: put that under `if __name__ == '__main__':`")
    address = _ray_address(on)
    folder = Path(out) if out is not None else default_folder(plan.data)
    board = Board(make_console(quiet=quiet))
    board.head(plan, folder)
    with interruptible(), in_use(folder, lost=_thread.interrupt_main):
        ready = prepare(plan, folder, board)
        if address is None:
            places = Here(ready.plan, workers)
            _run_missing(ready, folder, places, board)
            _measure_afterwards(folder, ready.plan, places.environments[0], board)
        else:
            with contextlib.closing(_cluster(ready.plan, workers, address)) as places:
                _run_missing(ready, folder, places, board)
            command = f"lookfar study {shlex.quote(str(folder))}"
            board.note(f"Latency is measured by `{command}`, on one machine with nothing beside it.")
    results = load(folder)
    write_csv(results)
    return results


def _ray_address(on: str | None) -> str | None:
    """What follows ``ray:``; None for this machine."""
    if on is None:
        return None
    kind, _, address = on.partition(":")
    if kind != "ray":
        raise ValueError(f"on must be ray or ray:ADDRESS, got {on!r}")
    return address


def _cluster(plan: Plan, workers: int | None, address: str) -> "Cluster":
    from lookfar.study.on_ray import Cluster

    return Cluster(plan, workers, address)


def _run_missing(ready: "ReadyPlan", folder: Path, places: Places, board: Board) -> None:
    plan, task = ready.plan, ready.plan.find_task(folder)
    trials = trials_of(plan, folder)
    missing = missing_of(trials, task, board)
    expected = {}
    if missing:
        with board.waiting("measuring a step of every candidate"):
            expected = ready.expected(list(dict.fromkeys(t.candidate for t in missing)))
    board.begin(plan, ready.question, len(trials), missing, places.number(), expected)
    if not missing:
        if ready.facts.keys() - read_if_whole(folder / "environment.json").keys():  # lost: no trial will write it again
            write_environment(folder, plan, ready.facts, places.number())
        return
    for trial in missing:
        open_trial(trial, task, config_of(trial, ready))
    environment = write_environment(folder, plan, ready.facts, min(places.number(), len(missing)))
    started = time.monotonic()
    try:
        Scheduler(missing, places, board).run()
    finally:
        environment |= {"seconds": environment.get("seconds", 0.0) + time.monotonic() - started, "finished": now()}
        write_json(folder / "environment.json", environment)


class Scheduler:
    """Keeps as many trials running as there are places, until all are done."""

    def __init__(self, trials: Sequence[RunningTrial], places: Places, board: Board) -> None:
        self.places, self.board = places, board
        self.elsewhere: list[RunningTrial] = []  # which other processes run
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
                    number = self.places.number()
                    free = [n for n in range(number) if n not in {t.slot for t in self.running}]
                    # of a cluster that has lost nodes, not all that was started may have ended yet
                    for slot in free[: min(len(self.waiting), max(number - len(self.running), 0))]:
                        trial = self.waiting.pop(0)
                        trial.start(slot, self.places, self.messages)
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
        if code == TAKEN:  # nothing of that trial is ours
            self.elsewhere.append(trial)
            who = f" ({owner})" if (owner := owner_of(trial.folder / ".lock")) else ""
            self.board.note(f"{trial.candidate} seed {trial.seed} is being run elsewhere{who}")
            return
        result = read_if_whole(trial.folder / "result.json")
        if not result and code == LOST and self._again(trial):
            return
        if not result:
            reason = getattr(trial.process, "why", "") or cause_of_death(code)
            result = {"status": "failed", "reason": reason, "killed": True}
            write_json(trial.folder / "result.json", result)
        self.board.ended(trial, result, time.monotonic() - trial.started)

    def _again(self, trial: RunningTrial) -> bool:
        """Let a trial go on elsewhere whose machine is gone; not one that is lost again and again at one step."""
        step = trial.saved_step()
        trial.losses = 1 if step > trial.lost_at else trial.losses + 1
        trial.lost_at = step
        if trial.losses > LOSSES:
            return False
        at, name = thousands(max(trial.step, step)), f"{trial.candidate} seed {trial.seed}"
        self.board.note(f"{name}: its machine is gone at step {at}, it goes on elsewhere from step {thousands(step)}")
        trial.forget()
        self.waiting.insert(0, trial)
        return True

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
        places = [f"step {thousands(t.saved_step())} of trial {t.label}" for t, _ in stopped]
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
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
