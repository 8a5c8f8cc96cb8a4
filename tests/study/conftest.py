"""Trials that only pretend, for what surrounds them: a study of them takes a second."""

import json
import sys
from pathlib import Path

import pytest

from lookfar.data.fingerprint import fingerprint
from lookfar.study.build import open_plan_data
from lookfar.study.preflight import ReadyPlan

FAKE = Path(__file__).with_name("fake_trial.py")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder for a study whose trials do as ``wishes`` say."""
    monkeypatch.setattr("lookfar.study.processes.WORKER", (sys.executable, str(FAKE)))

    def look(plan, note, controls=None):
        plan = plan.resolved()
        data = {} if plan.data.startswith("scenes") else fingerprint(open_plan_data(plan))
        return ReadyPlan(plan, "A task.", 7, {}, data)

    monkeypatch.setattr("lookfar.study.preflight.preflight", look)
    out = tmp_path / "study"
    out.mkdir()

    def wishes(**by_trial):
        (out / "wishes.json").write_text(json.dumps(by_trial))

    wishes()
    return out, wishes
