"""A trained network comes out of a trial's folder as it was scored, blocks and hosts of the user's own too."""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import make_photos

from lookfar.check import check_module
from lookfar.insertion import insertions
from lookfar.study import Plan, load, load_trial, report
from lookfar.study import run as run_study
from lookfar.study.plan import trial_folder
from lookfar.study.trained import find_trial
from lookfar.study.worker import run_trial
from lookfar.tasks import Segmentation
from lookfar.training import evaluate

HERE = Path(__file__).parent
OWN = "own_block.py:MyBlock(position='a@b', reduction=2)"


def in_this_process(target, channels, size, *, only, classes=None):
    """What tests of `check` try in another process."""
    assert classes is None or target.startswith("own_block.py")
    if classes is not None:
        target = f"{target}(num_classes={classes})"
    return check_module(target, channels, size, only=only)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data and files of the user's own, and two finished studies of three steps."""
    home = tmp_path_factory.mktemp("home")
    make_photos(home / "photos", train=3, val=3)
    for name in ("own_block.py", "own_helper.py"):
        shutil.copy(HERE / name, home / name)
    settings = {"data": "photos", "seeds": 1, "steps": 3, "batch_size": 2, "accelerator": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr("lookfar.check.check_apart", in_this_process)
        patch.setattr("lookfar.study.running.Scheduler.run", _run_here)
        run_study(Plan(blocks=(OWN, "nl@layer2"), host="small", **settings), "ours", quiet=True)
        run_study(Plan(blocks=("cbam",), host="own_block.py:build", place="0", **settings), "theirs", quiet=True)
    return home


def _run_here(self):
    """Trials one after the other in this process: starting one takes longer than training it."""
    for trial in self.waiting:
        result = run_trial(trial.folder)
        (trial.folder / "result.json").write_text(json.dumps({"status": "done", "reason": "", **result}))


@pytest.fixture
def there(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    ("study", "candidate", "blocks"),
    [("ours", OWN, 1), ("ours", "nonlocal@layer2", 1), ("ours", "baseline", 0), ("theirs", "cbam", 1)],
)
def test_the_network_is_the_one_that_was_scored(there, study, candidate, blocks):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    folder = trial_folder(Path(study), candidate, 0)
    network, data, names = load_trial(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert [one.name for one in insertions(network)] == list(names)
    assert len(names) == blocks
    with np.load(folder / "confusion.npz") as file:
        assert np.array_equal(file["confusion"], evaluate(network, data, Segmentation(), batch_size=2)["confusion"])


def test_candidates_are_found_by_what_they_are_called(there):
    results = load("ours")
    trials = results.trials
    own = find_trial(trials, OWN, 0)
    assert find_trial(trials, "MyBlock", 0) == own
    assert find_trial(trials, "./own_block.py:MyBlock(reduction=2, position='a@b')", 0) == own
    assert find_trial(trials, "nl@layer2", 0) == trial_folder(Path("ours"), "nonlocal@layer2", 0)
    with pytest.raises(ValueError, match=r"no candidate 'baselin'.*Did you mean baseline"):
        results.network("baselin")
    with pytest.raises(ValueError, match="baseline has seeds 0, got 3"):
        results.network("baseline", seed=3)


def test_what_cannot_be_loaded_says_why(there, tmp_path):
    with pytest.raises(ValueError, match=r"ours is a study: give one of its trials, such as ours/trials/"):
        load_trial("ours")
    with pytest.raises(FileNotFoundError, match="no trial in photos"):
        load_trial("photos")
    folder = shutil.copytree(trial_folder(Path("ours"), "baseline", 0), tmp_path / "s" / "trials" / "baseline" / "0")
    result = json.loads((folder / "result.json").read_text())
    weights = (folder / "final.safetensors").read_bytes()
    (folder / "final.safetensors").unlink()
    with pytest.raises(ValueError, match=r"final.safetensors is missing or damaged"):
        load_trial(folder)
    (folder / "final.safetensors").write_bytes(weights)
    shutil.copytree("photos", tmp_path / "moved")
    elsewhere = load_trial(folder, data=tmp_path / "moved")
    assert torch.equal(elsewhere.data.val[0][0], load_trial(folder).data.val[0][0])
    assert load_trial(folder, data=elsewhere.data).data is elsewhere.data
    for status, message in (({**result, "status": "failed", "reason": "nan"}, r"failed \(nan\)"), ({}, "not finished")):
        (folder / "result.json").write_text(json.dumps(status))
        with pytest.raises(ValueError, match=message):
            load_trial(folder)


def test_data_that_are_gone_are_needed_only_for_their_images(there, tmp_path, monkeypatch):
    """A study that was trained on one machine is used on another, or its data were tidied away."""
    from lookfar.explorer.subjects import open_subject
    from lookfar.use import open_network

    study = Path(shutil.copytree("ours", tmp_path / "ours"))
    folder = trial_folder(study, "nonlocal@layer2", 0)
    before, data, _ = load_trial(folder)
    image = data.val[0][0][None]
    for name in ("own_block.py", "own_helper.py"):
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not at photos any more: give --data.*lookfar study .*ours --data PA"):
        load_trial(folder)
    with pytest.raises(FileNotFoundError, match="not at photos any more"):
        run_study(Plan.load(study / "study.yaml"), study, quiet=True)
    network, described, names = load_trial(folder, images=False)
    assert (len(described.val), len(names)) == (0, 1)
    x = described.normalise(image)
    assert torch.equal(network(x), before(data.normalise(image)))
    opened = open_network(folder, images=False)
    assert (opened.classes, opened.peak) == (tuple(data.classes), None)
    subject = open_subject(str(folder))
    assert subject.samples() == []
    shutil.copytree(there / "photos", tmp_path / "moved")
    run_study(replace(Plan.load(study / "study.yaml"), data="moved"), study, quiet=True)  # which trains nothing
    assert json.loads((folder / "config.json").read_text())["plan"]["data"] == "photos"
    assert torch.equal(load_trial(folder).data.val[0][0], image[0])


def test_a_trial_is_not_taken_for_a_study(there):
    with pytest.raises(FileNotFoundError, match=r"ours/trials/\S+/0 is a trial: give its study, ours$"):
        load(trial_folder(Path("ours"), "baseline", 0))


def test_an_example_of_a_trial_has_a_block(there):
    from lookfar.study.trained import trial_in

    with pytest.raises(ValueError, match=r"with 5 trials: give one of them, such as \S*(MyBlock|nonlocal)\S*/0$"):
        trial_in("ours")


def test_a_network_is_built_from_the_files_that_it_was_trained_with(there):
    """Edited since: weights go into the code that they were trained in, and no trial is trained in other code."""
    for study, candidate in (("ours", OWN), ("theirs", "cbam")):
        folder = trial_folder(Path(study), candidate, 0)
        before, data, _ = load_trial(folder)
        x = next(data.val_batches(2))[0]
        texts = {name: (there / name).read_text() for name in ("own_block.py", "own_helper.py")}
        try:
            (there / "own_helper.py").write_text("SCALE = 0.25\n")
            (there / "own_block.py").write_text(texts["own_block.py"].replace("nn.ReLU()", "nn.Tanh()"))
            after = load_trial(folder).network
            plan = Plan.load(there / study / "study.yaml")
            with pytest.raises(ValueError, match=r"own_block.py: edited since; give another --out"):
                run_study(plan, study, quiet=True)
            assert load(study).complete  # what is finished can be read and reported
        finally:
            for name, text in texts.items():
                (there / name).write_text(text)
        assert torch.equal(before(x), after(x))


def test_the_lines_of_the_report_load_a_network_in_a_new_process(there):
    page = report("ours").read_text()
    lines = next(
        html.unescape(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL) if "network," in text
    )
    assert lines.count("\n") == 2
    end = "\nprint(type(network).__name__, tuple(predicted.shape), len(blocks))"
    ended = subprocess.run([sys.executable, "-c", lines + end], capture_output=True, text=True, check=False)
    assert ended.stdout == "Segmenter (3, 24, 32) 1\n", ended.stderr
