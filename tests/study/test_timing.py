"""How long a study says it will take, before the start and while it runs."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from tiny_run import tiny_data

from lookfar.study import progress, timing
from lookfar.study.plan import Plan
from lookfar.study.processes import RunningTrial
from lookfar.study.progress import Board

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=100, batch_size=4, eval_every=50, accelerator="cpu")


class Slow(torch.nn.Module):
    """A convolution that takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.conv = seconds, torch.nn.Conv2d(3, 4, 1)

    def forward(self, x):
        time.sleep(self.seconds)
        return self.conv(x)


def test_a_measured_step_says_how_long_a_trial_takes(monkeypatch):
    monkeypatch.setattr(timing, "START", 0.0)
    data, threads = tiny_data(), torch.get_num_threads()
    found = timing.expected_seconds(["a", "b"], lambda name: Slow(0.05 if name == "a" else 0.1), PLAN, data)
    # 100 steps, and 3 times 10 images in batches of 4
    assert found["a"] > 5.3  # and more on a busy machine
    assert found["b"] > 10.6
    assert torch.get_num_threads() == threads
    nothing = [replace(PLAN, steps=10), replace(PLAN, accelerator="cuda"), replace(PLAN, devices=2)]
    assert all(timing.expected_seconds(["a"], lambda _: Slow(0), plan, data) == {} for plan in nothing)


def test_measuring_itself_takes_no_long(monkeypatch):
    measured = []
    monkeypatch.setattr(timing, "_seconds", lambda network, plan, data: measured.append(network) or network.seconds)
    clock = iter([0.0, 1.0, 31.0])
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    networks = {"a": Slow(4.0), "b": Slow(6.0), "c": Slow(9.0)}
    found = timing.expected_seconds(list(networks), networks.__getitem__, PLAN, tiny_data())
    assert found == {"a": 4.0, "b": 6.0, "c": 5.0}
    assert measured == [networks["a"], networks["b"]]


def board_and_trials():
    console = Console(highlight=False, width=120, force_terminal=False, record=True)
    return Board(console), [RunningTrial(c, s, Path(), n) for n, (c, s) in enumerate(PLAN.trials, 1)]


def test_the_time_is_said_before_the_start(capsys):
    board, trials = board_and_trials()
    board.begin(PLAN, "Look.", 6, trials, 2, {"baseline": 60.0, "control": 60.0, "nonlocal": 180.0})
    assert "6 trials of 100 steps to run, 2 at a time · about 5 min" in board.console.export_text()
    board, trials = board_and_trials()
    board.begin(PLAN, "Look.", 6, trials, 2)
    assert "about" not in board.console.export_text()


def test_each_trial_says_once_how_long_it_takes_where_no_bars_are_drawn(monkeypatch, capsys):
    board, trials = board_and_trials()
    board.begin(PLAN, "Look.", 6, trials, 1, {"baseline": 20.0, "control": 20.0, "nonlocal": 40.0})
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    trial, *waiting = trials
    trial.started, trial.step, trial.paced = now - 12, 20, (0, now - 10)
    for _ in range(3):
        board.show([trial], waiting)
    said = board.console.export_text().splitlines()
    told = [line for line in said if "left" in line]
    # 80 steps of half a second, and what was measured for the others made longer as this one is: 52 for 20 seconds
    assert len(told) == 1
    assert told[0].startswith("  seed 0  baseline")
    assert "step 20/100   0:40 left, about 7 min for all" in told[0]
    # too early to say
    waiting[0].started, waiting[0].step, waiting[0].paced = now, 3, (0, now - 1)
    board.show([waiting[0]], waiting[1:])
    assert not [line for line in board.console.export_text().splitlines() if "control" in line]
