"""The handwritten digits as images in a folder for each class, from the command line's plan to a finished trial."""

import sys

import numpy as np
import pytest
from image_trees import noise, save
from sklearn.datasets import load_digits

from lookfar import cli
from lookfar.study._files import write_json
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.preflight import preflight
from lookfar.study.worker import run_trial


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """All 1797, as 8-bit grey."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    for number, (pixels, label) in enumerate(zip(found.images, found.target)):
        save(root / str(label) / f"{number:04}.png", (pixels / 16 * 255).round().astype(np.uint8))
    return root


def test_the_digits_run_through_a_trial(tmp_path, digits):
    plan = Plan(str(digits), ("nonlocal",), seeds=1, steps=2, batch_size=8, host="small", flip=False)
    notes = []
    ready = preflight(plan, notes.append)
    assert ready.plan.task == "classification"
    assert any(note.startswith("1 438 train, 359 val; 10 classes") for note in notes), notes
    assert not any("same file" in note for note in notes)
    study = tmp_path / "study"
    study.mkdir()
    ready.plan.save(study / "study.yaml")
    write_json(study / "environment.json", ready.facts)
    write_json(study / "data.json", dict(ready.data))
    folder = trial_folder(study, "nonlocal", 0)
    folder.mkdir(parents=True)
    config = {"candidate": "nonlocal", "seed": 0, "plan": ready.plan.to_dict(), **ready.made_of}
    write_json(folder / "config.json", config)
    result = run_trial(folder)
    assert 0 <= result["accuracy"] <= 1
    with np.load(folder / "outcomes.npz") as outcomes:
        assert {len(array) for array in outcomes.values()} == {359}


def test_changed_images_do_not_go_on(tmp_path):
    for number in range(8):
        save(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", noise(number, 16, 16, 3))
    plan = Plan(str(tmp_path / "set"), ("nonlocal",), seeds=1, steps=1, batch_size=2, host="small")
    before = preflight(plan)
    save(tmp_path / "set/a/0.png", noise(50, 16, 16, 3))
    after = preflight(plan)
    assert before.made_of["data"] != after.made_of["data"]


@pytest.mark.parametrize("fault", ["one class", "the same file in two classes", "1 file cannot be used"])
def test_a_fault_ends_the_command(tmp_path, monkeypatch, capsys, fault):
    for number in range(8):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", noise(number, 16, 16, 3))
    if fault == "one class":
        (tmp_path / "b").rename(tmp_path / ".b")
    elif "same" in fault:
        (tmp_path / "a/8.png").write_bytes((tmp_path / "b/1.png").read_bytes())
    else:
        (tmp_path / "a/8.png").write_bytes((tmp_path / "b/1.png").read_bytes()[:99])
    command = ["study", "--data", f"classify:{tmp_path}", "--blocks", "nonlocal", "--out", str(tmp_path / "runs/out")]
    monkeypatch.setattr(sys, "argv", ["lookfar", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert fault in " ".join(said.split())
    assert len(said.splitlines()) <= 3
