"""A task that lookfar does not have runs through study, statistics, report and resuming: the proof of the seam."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import SIZE, make_tree, noise
from tiny_run import tiny_data, tiny_network

from lookfar.blocks._own import find_own, parse_address
from lookfar.study import load
from lookfar.study._files import write_json
from lookfar.study.answer import answer
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.preflight import preflight
from lookfar.study.promises import check_task
from lookfar.study.report import write_report
from lookfar.study.results import write_csv
from lookfar.study.sources import keep
from lookfar.study.worker import run_trial
from lookfar.tasks import Host, find_task

HERE = Path(__file__).parent
PROGRAM = str(HERE.parent / "tiny_run.py")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three seeds of four steps, planned and run from the folder in which the task stands."""
    root = tmp_path_factory.mktemp("own")
    shutil.copy(HERE / "own_task.py", root / "own_task.py")
    masks = [noise(n, *SIZE, top=2) for n in range(12)]
    make_tree(root / "data", masks[:6], val=masks[6:], classes=["even", "odd"])
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    plan = Plan(
        "data", ("global_context",), task="own_task.py:Regression", seeds=3, steps=4, batch_size=4, host="small",
    )  # fmt: skip
    ready = preflight(plan)
    out = root / "study"
    out.mkdir()
    ready.plan.save(out / "study.yaml")
    keep(ready.plan.sources, out)
    write_json(out / "environment.json", ready.facts)
    for candidate, seed in ready.plan.trials:
        folder = trial_folder(out, candidate, seed)
        folder.mkdir(parents=True)
        config = {"candidate": candidate, "seed": seed, "plan": ready.plan.to_dict(), **ready.made_of}
        write_json(folder / "config.json", config)
        write_json(folder / "result.json", {"status": "done", "reason": "", **run_trial(folder)})
    yield out
    patch.undo()


def test_its_file_belongs_to_the_plan(study):
    plan = Plan.load(study / "study.yaml")
    assert plan.task == "own_task.py:Regression"
    assert [source.split()[0] for source in plan.sources] == ["own_task.py"]


def test_trials_keep_what_it_judges_and_nothing_else(study):
    for candidate, seed in Plan.load(study / "study.yaml").trials:
        folder = trial_folder(study, candidate, seed)
        assert not (folder / "confusion.npz").exists()
        with np.load(folder / "outcomes.npz") as file:
            assert list(file) == ["error"]
            assert file["error"].shape == (6,)
            mean = file["error"].mean()
        result = json.loads((folder / "result.json").read_text())
        assert result["mae"] == pytest.approx(mean)
        assert "outcomes.npz" in result["files"]
        with np.load(folder / "samples.npz") as file:
            assert file["truth"].shape == file["prediction"].shape == (6,)
            assert float(file["truth"][0]) == pytest.approx(0.5, abs=0.1)


def test_tables_are_in_its_unit_and_lower_is_better(study):
    results = load(study)
    assert results.complete
    rows = [row for row in results.summaries if row.candidate not in ("baseline", "control")]
    assert [row.candidate for row in results.summaries] == ["global_context", "control", "baseline"]
    for row in results.summaries:
        of = [100 * _errors(study, row.candidate, seed).mean() for seed in range(3)]
        assert row.score.mean == pytest.approx(np.mean(of))
    row, baseline = rows[0], results.summary("baseline")
    assert row.difference.mean == pytest.approx(row.score.mean - baseline.score.mean)
    assert row.difference.gain == -row.difference.mean
    assert {row.without.off, row.without.constant} != {None}
    if row.verdict in ("better", "worse"):
        assert (row.verdict == "better") == (row.difference.mean < 0)
    assert "mean absolute error ± 95 %" in repr(results)
    assert results.by_class == ()
    assert results.classes == ()
    assert results.confusion("baseline") is None


def _errors(study, candidate, seed):
    with np.load(trial_folder(study, candidate, seed) / "outcomes.npz") as file:
        return file["error"]


@pytest.mark.parametrize(("more", "verdict"), [(-0.05, "better"), (0.05, "worse")])
def test_sentences_say_what_is_better(study, tmp_path, more, verdict):
    """Errors of one block made smaller, or larger, than those of the baseline, under every seed."""
    out = tmp_path / "study"
    shutil.copytree(study, out)
    for seed in range(3):
        error = _errors(out, "baseline", seed) + more + 0.001 * seed
        folder = trial_folder(out, "global_context", seed)
        np.savez(folder / "outcomes.npz", error=error)
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", {**result, "mae": error.mean()})
    results = load(out)
    row = results.summary("global_context")
    assert row.verdict == verdict
    assert (row.difference.mean < 0) == (verdict == "better")
    assert row.once.wins == (3 if verdict == "better" else 0)
    assert row.off_and_constant.startswith("switched off at test time, mean absolute error is ")
    said = answer(results).headline
    if verdict == "better":
        assert said.startswith("global_context lowers mean absolute error by ")
        assert "against the network without a block" in said
    else:
        assert said.startswith("No block helps: global_context adds ")
    assert results.summaries[0] is row  # references stand last, whatever they score


def test_the_headline_says_what_plain_convolutions_lower_too(study, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    for seed in range(3):
        for candidate, less in (("global_context", 0.08), ("control", 0.05)):
            error = _errors(out, "baseline", seed) - less + 0.001 * seed
            folder = trial_folder(out, candidate, seed)
            np.savez(folder / "outcomes.npz", error=error)
            result = json.loads((folder / "result.json").read_text())
            write_json(folder / "result.json", {**result, "mae": error.mean()})
    results = load(out)
    assert results.summary("control").verdict == "better"
    said = answer(results).headline
    assert re.fullmatch(
        r"global_context lowers mean absolute error by 7\.9 ± [\d.]+ against the network without a block.*; "
        r"plain convolutions 4\.9 ± [\d.]+\.",
        said,
    ), said


def test_its_words_are_in_tables_and_report(study):
    results = load(study)
    write_csv(results, study / "results.csv")
    with (study / "results.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["mae"]) == results.trials[0].score
    assert "mae off" in first
    assert not any("iou" in name or name == "accuracy" for name in first)
    page = re.sub(r"base64,[^\"]+", "", write_report(study).read_text(encoding="utf-8"))
    assert "mean absolute error, %" in page
    assert "Say how much of an image is odd." in page
    assert "Down and to the left is better" in page
    assert "This task has no classes." in page
    assert "IoU" not in page
    with np.load(trial_folder(study, "baseline", 0) / "samples.npz") as file:
        assert f"<dd>{file['truth'][0]}</dd>" in page
    assert "Errors only" not in page


def test_trained_networks_come_back_also_when_its_file_was_edited(study):
    path = Path("own_task.py")
    text = path.read_text()
    try:
        path.write_text(text.replace("stride=2", "stride=3").replace("100 *", "1000 *"))
        results = load(study)  # judged as it was
        assert results.summary("baseline").score.mean < 100
        network, data, _ = results.network("global_context", seed=1)
        assert network(data.normalise(data.val[0][0][None])).shape == (1, 1, 1, 1)
        assert network.backbone.stride == (2, 2)
    finally:
        path.write_text(text)


def test_killed_and_resumed_it_is_what_it_would_have_been(tmp_path):
    shutil.copy(HERE / "own_task.py", tmp_path / "own_task.py")
    settings = {"steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3, "checkpoint_every": 2}
    command = [sys.executable, PROGRAM, "--settings", json.dumps({**settings, "accelerator": "cpu"})]
    command += ["--task", "own_task.py:Regression"]
    results = []
    for folder, *deaths in (("whole",), ("killed", "5")):
        for at in deaths:
            killed = subprocess.run([*command, folder, "--kill-at", at], cwd=tmp_path, capture_output=True, check=False)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = subprocess.run([*command, folder], cwd=tmp_path, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    whole, again = results
    assert whole["mae"] == again["mae"]
    assert (tmp_path / "whole/final.safetensors").read_bytes() == (tmp_path / "killed/final.safetensors").read_bytes()
    with np.load(tmp_path / "whole/outcomes.npz") as a, np.load(tmp_path / "killed/outcomes.npz") as b:
        assert np.array_equal(a["error"], b["error"])


def test_it_is_judged_at_one_size_and_without_weights_of_classes(study):
    plan = Plan.load(study / "study.yaml")
    with pytest.raises(ValueError, match="--score original is for maps of labels: regression has no size of files"):
        preflight(dataclasses.replace(plan, score="original"))
    with pytest.raises(ValueError, match="class_weights are for classes, and regression has none"):
        preflight(dataclasses.replace(plan, class_weights=(1, 2)))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("own_task.py:NoTask", ValueError, "own_task.py:NoTask is not a task: want a class that inherits from"),
        ("own_task.py:Regresion", ValueError, "own_task.py:Regresion is not a task"),
        ("own_task.py:Silent", ValueError, "own_task.py:Silent does not say metric and words"),
        ("own_task.py", ValueError, "which class of own_task.py"),
        ("missing.py:Task", FileNotFoundError, "missing.py"),
        (
            "regression",
            ValueError,
            "no task is called 'regression': want segmentation or classification, or FILE.py:CLASS",
        ),
    ],
)
def test_what_is_no_task_is_said(text, error, message, tmp_path, monkeypatch):
    shutil.copy(HERE / "own_task.py", tmp_path / "own_task.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        find_task(text)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("loss", lambda self, output, targets, weights: output.mean(), "its loss must be two tensors of one number"),
        (
            "loss",
            lambda self, output, targets, weights: (output.square(), output.mean()),
            "its loss must be two tensors",
        ),
        ("loss", lambda self, *_: (torch.ones(()), torch.ones(())), "no gradient of its loss reaches the network"),
        ("judge", lambda self, output, targets: {"error": output.mean()}, r"for 2 samples it gives error float32 \(\)"),
        ("judge", lambda self, output, targets: {}, "for 2 samples it gives nothing"),
        ("judge", lambda self, output, targets: {"error": [1, 2]}, "judge must give tensors, by name"),
        (
            "judge",
            lambda self, output, targets: {"a": output, "b": output},
            r"regression keeps a, b: facts\(\) must say",
        ),
        ("judge", lambda self, output, targets: 1 / 0, "ZeroDivisionError: division by zero"),
        ("score", lambda self, facts, weights: facts.mean(), r"for 3 sets it gives \(\)"),
        ("scores", lambda self, judged: {"loss": 1.0}, "scores must hold its metric, 'mae'"),
    ],
)
def test_what_a_study_cannot_use_is_said_before_the_first_step(name, wrong, message):
    task = find_task(f"{HERE / 'own_task.py'}:Regression")
    plan, data, network = Plan("data", ("nonlocal",), task="own_task.py:Regression"), tiny_data(), tiny_network()
    check_task(plan, task, network, data)
    before = [tensor.clone() for tensor in network.state_dict().values()]
    broken = type("Broken", (type(task),), {"name": "regression", name: wrong})()
    with pytest.raises(ValueError, match=f"own_task.py:Regression cannot be studied: .*{message}"):
        check_task(plan, broken, network, data)
    assert all(map(torch.equal, before, network.state_dict().values()))


def test_a_task_without_a_host_takes_one_of_the_users_own(tmp_path, monkeypatch):
    text = "from lookfar.tasks import Task, Words\n\n\nclass Bare(Task):\n    metric, words = 'x', Words('x')\n"
    build = "def build(in_chans):\n    from torch import nn\n\n    return nn.Conv2d(in_chans, 1, 1)\n"
    (tmp_path / "bare.py").write_text(f"{text}\n\n{build}")
    monkeypatch.chdir(tmp_path)
    task, data = find_task("bare.py:Bare"), tiny_data()
    with pytest.raises(ValueError, match=r"bare has no host of its own: give --host FILE\.py:NAME"):
        task.host(Host("small"), data)
    own = find_own(parse_address("bare.py:build"))
    assert task.host(Host("bare.py:build", own), data).weight.shape == (1, 3, 1, 1)
