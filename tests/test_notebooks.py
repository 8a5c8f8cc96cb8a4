"""The notebooks of ``examples/`` run, quickly: few steps, few images; each ends with a picture."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import notebooks
import pytest

from lookfar import study
from lookfar.study._files import write_json
from lookfar.study.plan import trial_folder
from lookfar.study.worker import run_trial

QUICK = {"STEPS": 2, "IMAGES": 12, "SEEDS": 1}


def run_here(plan, out, *, quiet):
    """A study of two trials in this process: those of its own take their time to import torch."""
    plan = replace(plan, blocks=plan.blocks[-1:], controls=(), accelerator="cpu").resolved()
    (folder := notebooks.Path(out)).mkdir(parents=True)
    plan.save(folder / "study.yaml")
    for candidate in plan.candidates:
        where = trial_folder(folder, candidate, 0)
        where.mkdir(parents=True)
        write_json(
            where / "config.json", {"candidate": candidate, "seed": 0, "control_parameters": 50, "plan": plan.to_dict()}
        )
        write_json(where / "result.json", {"status": "done", "reason": "", **run_trial(where)})
    return study.load(folder)


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_end_with_a_picture(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lookfar.study.run", run_here)
    done = notebooks.run(path, QUICK)
    sys.modules.pop("my_block", None)
    code = [cell for cell in done["cells"] if cell["cell_type"] == "code"]
    assert any("image/png" in output.get("data", {}) for output in code[-1]["outputs"])


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_those_of_this_text(path):
    """They were made by a whole run, and say nothing of the machine that made them."""
    text = path.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for output in code[-1]["outputs"])
    assert str(Path(__file__).parents[1]) not in text
    assert "/tmp/" not in text


def test_there_are_four():
    assert [path.name[0] for path in notebooks.NOTEBOOKS] == list("1234")
