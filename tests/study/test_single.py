"""One trial of a plan alone, as array jobs run it: several at once in a new folder, and what each of them says."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from image_trees import SIZE, make_tree, noise

from lookfar import cli
from lookfar.study import Plan, load
from lookfar.study._locks import PREPARES, locked
from lookfar.study.plan import trial_folder
from lookfar.study.preparing import in_use
from lookfar.study.single import run_trial

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")
# as an array job of one task has them
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "study",
         "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node1"}  # fmt: skip


def starts(out, candidate, seed):
    path = trial_folder(out, candidate, seed) / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def test_trials_are_counted_from_0_in_the_order_of_the_plan(fake, capsys):
    out, _ = fake
    assert run_trial(PLAN, out, 4) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("(--trial 4)")
    plan = Plan.load(out / "study.yaml")
    assert [starts(out, *trial) for trial in plan.trials] == [0, 0, 0, 0, 1, 0]
    assert plan.trials[4] == ("control", 1)
    assert run_trial(PLAN, out, 4) == 0
    assert capsys.readouterr().out == "  trial 4, control seed 1, is done\n"
    assert starts(out, "control", 1) == 1
    for number in (6, 10**9):
        with pytest.raises(ValueError, match=f"trial must be from 0 to 5, the last of the plan, got {number}"):
            run_trial(PLAN, out, number)
    assert capsys.readouterr().out == ""


def test_one_that_failed_begins_anew_and_one_that_was_killed_goes_on(fake):
    out, wishes = fake
    wishes(**{"baseline 0": "raise", "control 0": "kill"})
    assert [run_trial(PLAN, out, number) for number in (0, 1)] == [1, 1]
    left = [trial_folder(out, name, 0) / "step-1" for name in ("baseline", "control")]
    for folder in left:
        folder.mkdir()
    wishes()
    assert [run_trial(PLAN, out, number) for number in (0, 1)] == [0, 0]
    assert [folder.exists() for folder in left] == [False, True]


def test_the_plan_is_tried_once(fake, monkeypatch):
    out, _ = fake
    run_trial(PLAN, out, 0)
    monkeypatch.setattr("lookfar.study.preflight.preflight", None)
    assert run_trial(PLAN, out, 1) == 0
    assert run_trial(Plan("scenes:lookup", ("nonlocal",), steps=2, seeds=1), out, 2) == 0  # which is part of it
    assert run_trial(Plan.load(out / "study.yaml"), out, 3) == 0
    for plan in (
        Plan("scenes:lookup", ("nonlocal", "cbam"), steps=2, seeds=1),
        Plan("scenes:lookup", ("nonlocal",), steps=2, seeds=3),
        Plan("scenes:lookup", ("nonlocal",), steps=2, seeds=2, margin=1.0),
    ):
        with pytest.raises(TypeError):  # asks more than lies there
            run_trial(plan, out, 1)


def test_another_plan_is_refused(fake):
    out, _ = fake
    run_trial(PLAN, out, 0)
    with pytest.raises(ValueError, match="baseline seed 0 was trained otherwise here: steps: 2 there, 3 asked for"):
        run_trial(Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=3, accelerator="cpu"), out, 0)


def test_whoever_prepares_is_waited_for_and_whoever_runs_the_study_is_not(fake):
    out, _ = fake
    with in_use(out), pytest.raises(ValueError, match="is being run"):
        run_trial(PLAN, out, 0)
    asked = []

    def wait(owner, seconds):
        asked.append(owner.doing)
        return False

    with in_use(out, doing=PREPARES), pytest.raises(ValueError, match="is being run"), in_use(out, wait=wait):
        pass
    assert asked == [PREPARES]


def test_one_that_is_being_run_is_left_alone(fake, capsys, monkeypatch):
    out, _ = fake
    run_trial(PLAN, out, 0)
    folder = trial_folder(out, "control", 0)
    monkeypatch.setattr("lookfar.study.processes.WORKER", (sys.executable, "-m", "lookfar.study.worker"))
    monkeypatch.setattr("lookfar.study.single.PATIENCE", 0)
    capsys.readouterr()
    before = (folder / "config.json").stat().st_mtime_ns
    with locked(folder / ".lock"):
        assert run_trial(PLAN, out, 1) == 75
    assert capsys.readouterr().out == f"  control seed 0 is being run elsewhere (process {os.getpid()})\n"
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trial", "-1"], "trial must be an integer of at least 0 or None, got -1"),
        (["--trial", "one"], "trial must be an integer, got 'one'"),
        (["--trial", "0", "--workers", "2"], "--trial runs one trial here: it goes without --workers"),
        (["--trial", "0", "--prepare"], "--trial runs one trial here: it goes without --prepare"),
    ],
)
def test_what_trial_does_not_take(monkeypatch, capsys, tmp_path, options, said):
    command = ["lookfar", "study", "--data", "scenes:lookup", "--blocks", "cbam", "--out", str(tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_an_array_job_gives_what_the_pool_gives(tmp_path):
    """Three trials and one of them twice, all started at once in a folder that is not there yet."""
    masks = [noise(n, *SIZE, top=3) for n in range(8)]
    data = str(make_tree(tmp_path / "photos", masks[:4], val=masks[4:], classes=["wall", "floor", "door"]))
    command = [
        *(sys.executable, "-m", "lookfar.cli", "study", "--data", data, "--host", "small", "--blocks", "nonlocal"),
        *("--steps", "3", "--seeds", "1", "--batch-size", "2", "--accelerator", "cpu", "--out"),
    ]
    arrays, pool = tmp_path / "arrays", tmp_path / "pool"
    array = [*command, str(arrays), "--trial"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ | SLURM}
    jobs = [subprocess.Popen([*array, number], **pipes) for number in ("0", "1", "2", "1")]
    said = [job.communicate(timeout=300)[0] for job in jobs]
    codes = [job.returncode for job in jobs]
    assert codes[0] == codes[2] == 0, said
    assert sorted([codes[1], codes[3]]) in ([0, 0], [0, 75]), said
    assert sum("lookfar study" in text for text in said) == 1  # who has prepared the folder
    assert sum("mIoU" in text for text in said) == 3  # no trial was run twice
    assert not list(arrays.glob("**/.*"))

    subprocess.run([*command, str(pool), "--workers", "2"], check=True, capture_output=True, timeout=300)
    assert load(arrays).complete
    for trial in load(pool).plan.trials:
        one, other = trial_folder(arrays, *trial), trial_folder(pool, *trial)
        assert (one / "final.safetensors").read_bytes() == (other / "final.safetensors").read_bytes()
        assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
        with np.load(one / "confusion.npz") as a, np.load(other / "confusion.npz") as b:
            assert np.array_equal(a["confusion"], b["confusion"])
    report = subprocess.run([*command[:3], "report", str(arrays)], capture_output=True, text=True, check=True)
    assert "seed noise not measured" in report.stdout
