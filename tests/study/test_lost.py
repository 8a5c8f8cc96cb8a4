"""Trials whose machine is gone, as the scheduler sees them: on places that only pretend."""

import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

from lookfar.study import Plan, Stopped
from lookfar.study import run as run_study
from lookfar.study.on_ray import unfit
from lookfar.study.processes import LOST, Here

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")


class Gone:
    """A trial that has said a step before its machine was gone."""

    def __init__(self):
        self.stdout = iter([json.dumps({"step": 2}) + "\n"])

    def wait(self, timeout=None):
        return LOST

    def terminate(self):
        pass

    kill = terminate


class Losing(Here):
    """Places that lose some trials so many times; how many there are changes."""

    def __init__(self, plan, lost, saving):
        super().__init__(plan, 3)
        self.saving, self.lost, self.started, self.asked = saving, Counter(lost), [], 0

    def number(self):
        self.asked += 1
        return 1 + self.asked % 3

    def start(self, slot, folder):
        name = f"{folder.parent.name} {folder.name}"
        self.started.append(name)
        if self.lost[name]:
            self.lost[name] -= 1
            if name in self.saving:
                (folder / "step-1").mkdir(exist_ok=True)
            return Gone()
        return super().start(0, folder)

    def close(self):
        pass


@pytest.fixture
def losing(fake, monkeypatch):
    made = []

    def run(saving=(), **lost):
        out, _ = fake

        def places(plan, workers, address):
            made.append(Losing(plan, lost, saving))
            return made[-1]

        monkeypatch.setattr("lookfar.study.running._cluster", places)
        return run_study(PLAN, out, on="ray"), made[-1]

    return run


def test_it_goes_on_elsewhere(losing, capsys):
    results, places = losing(saving={"control 1"}, **{"control 1": 2, "baseline 0": 3})
    assert results.complete
    assert Counter(places.started) == Counter(
        {"baseline 0": 4, "baseline 1": 1, "control 0": 1, "control 1": 3, "nonlocal 0": 1, "nonlocal 1": 1}
    )
    said = capsys.readouterr().out
    assert said.count("control seed 1: its machine is gone at step 2, it goes on elsewhere from step 1") == 2
    assert said.count("baseline seed 0: its machine is gone at step 2, it goes on elsewhere from step 0") == 3
    assert said.count("2 steps   mIoU ") == 6


def test_one_that_ends_every_machine_is_given_up(losing):
    results, places = losing(**{"baseline 0": 9})
    (failed,) = (trial for trial in results.trials if trial.status != "done")
    assert (failed.candidate, failed.seed) == ("baseline", 0)
    assert failed.reason.startswith("its machine was gone again and again")
    assert places.started.count("baseline 0") == 4


def test_it_is_stopped_with_the_others(losing, monkeypatch):
    from lookfar.study.running import Scheduler

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "_listen", interrupted)
    with pytest.raises(Stopped, match="stopped after step 0 of trial 1/6"):
        losing(**{"baseline 0": 1})


@pytest.mark.parametrize("on", ["slurm", "", "rays:x"])
def test_other_places_are_refused(fake, on):
    with pytest.raises(ValueError, match=f"on must be ray or ray:ADDRESS, got '{on}'"):
        run_study(PLAN, fake[0], on=on)


def test_ray_is_asked_for_where_it_is_missing(fake):
    code = """
import sys
sys.modules["ray"] = None
from lookfar.study.on_ray import connect
connect("")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("ValueError: Ray is not installed: pip install 'lookfar[distributed]'")


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'lookfar[distributed]'")
def test_an_address_where_nobody_answers_is_said_at_once(fake):
    code = "from lookfar.study.on_ray import connect; connect('127.0.0.1:1')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: no Ray cluster at 127.0.0.1:1: " in done.stderr.strip().splitlines()[-1]


def test_what_a_node_must_have(tmp_path):
    import numpy

    versions = {"numpy": numpy.__version__}
    assert unfit(str(tmp_path), str(tmp_path), versions) == ""
    assert "a study on Ray needs a folder that all nodes see under one path" in unfit(
        str(tmp_path / "x"), str(tmp_path), versions
    )
    assert f"has numpy {numpy.__version__}, the study was started with 0.1: want the same" in unfit(
        str(tmp_path), str(tmp_path), {"numpy": "0.1"}
    )
