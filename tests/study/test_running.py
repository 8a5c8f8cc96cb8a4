"""The scheduler, with trials that only pretend: failures, stops, kills, folders in use; then one real study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_trees import SIZE, make_tree, noise

from lookfar.study import Plan, Stopped, afterwards, load
from lookfar.study import run as run_study
from lookfar.study.ablations import KINDS, load_ablations
from lookfar.study.afterwards import missing
from lookfar.study.plan import trial_folder
from lookfar.study.preparing import in_use
from lookfar.study.processes import environments

running = sys.modules["lookfar.study.running"]

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")


def starts(out: Path, candidate: str, seed: int) -> int:
    return len((trial_folder(out, candidate, seed) / "starts").read_text().split())


def test_runs_all_and_repeats_nothing(fake, capsys):
    out, _ = fake
    results = run_study(PLAN, out, workers=3)
    assert results.complete
    assert (out / "results.csv").exists()
    said = capsys.readouterr().out
    assert said.startswith("lookfar study · scenes:lookup · 1 block × 2 seeds · 2 steps")
    assert said.count("2 steps   mIoU ") == 6
    assert "\x1b" not in said
    again = run_study(PLAN, out, workers=3)
    assert again.trials == results.trials
    assert [starts(out, c, s) for c, s in results.plan.trials] == [1] * 6
    assert "all 6 trials are there" in capsys.readouterr().out
    config = json.loads((trial_folder(out, "control", 1) / "config.json").read_text())
    assert (config["candidate"], config["seed"], config["control_parameters"]) == ("control", 1, 7)
    assert Plan.from_dict(config["plan"]) == PLAN.resolved()


def test_quiet_says_nothing(fake, capsys):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    assert capsys.readouterr().out == ""


def test_a_failure_is_recorded_and_tried_again(fake, capsys):
    out, wishes = fake
    wishes(**{"nonlocal 0": "raise", "control 1": "kill"})
    results = run_study(PLAN, out, workers=2)
    reasons = {(t.candidate, t.seed): t.reason for t in results.trials if t.status == "failed"}
    assert reasons["nonlocal", 0] == "ValueError: no"
    assert reasons["control", 1].startswith("killed by SIGKILL")
    assert len(reasons) == 2
    assert sum(t.status == "done" for t in results.trials) == 4
    assert "failed: ValueError: no" in capsys.readouterr().out
    (trial_folder(out, "nonlocal", 0) / "step-1").mkdir()  # what an error leaves is not gone on from,
    (trial_folder(out, "control", 1) / "step-1").mkdir()  # what a kill leaves is
    wishes()
    assert run_study(PLAN, out, workers=2).complete
    assert not (trial_folder(out, "nonlocal", 0) / "step-1").exists()
    assert (trial_folder(out, "control", 1) / "step-1").exists()
    assert starts(out, "baseline", 0) == 1


def test_a_folder_in_use_is_refused(fake):
    out, _ = fake
    with in_use(out), pytest.raises(ValueError, match=rf"being run \(process {os.getpid()}\)"):
        run_study(PLAN, out, quiet=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="a study needs a folder"):
        run_study(PLAN, tmp_path / "file", quiet=True)


def test_workers_must_be_positive(fake):
    out, _ = fake
    with pytest.raises(ValueError, match="workers must be an integer from 1 to 1024 or None, got 0"):
        run_study(PLAN, out, workers=0, quiet=True)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_an_interrupt_stops_the_trials_and_says_where(fake, monkeypatch):
    out, wishes = fake
    wishes(**{"control 0": "hang"})
    folder = trial_folder(out, "control", 0)
    listen = running.Scheduler._listen

    def interrupted(self):
        if (folder / "starts").exists():
            (folder / "step-1").mkdir(exist_ok=True)
            raise KeyboardInterrupt
        listen(self)

    monkeypatch.setattr(running.Scheduler, "_listen", interrupted)
    with pytest.raises(Stopped, match=r"stopped after step 1 of trial 2/6; the same command goes on from there"):
        run_study(PLAN, out, workers=1, quiet=True)
    assert not alive(int((folder / "starts").read_text()))
    monkeypatch.undo()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def test_a_trial_ends_with_its_study():
    code = """if True:
        import time
        from lookfar.study import worker
        worker.end_with_parent()
        print(1, flush=True)
        time.sleep(300)
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.close()  # what the system does when the study dies, however that happens
        assert process.wait(60) == 130


def test_a_real_study(tmp_path):
    """The command, stopped by Ctrl-C in its first trial, then gone on with to the end."""
    out = tmp_path / "study"
    masks = [noise(n, *SIZE, top=3) for n in range(12)]
    data = str(make_tree(tmp_path / "photos", masks[:6], val=masks[6:], classes=["wall", "floor", "door"]))
    command = [
        *(sys.executable, "-m", "lookfar.cli", "study", "--data", data, "--host", "small", "--blocks", "nonlocal"),
        *("--steps", "200", "--seeds", "1", "--batch-size", "2", "--workers", "1", "--out", str(out)),
    ]
    metrics = trial_folder(out, "baseline", 0) / "metrics.jsonl"
    # a suite that runs in the background of a shell is started with Ctrl-C ignored, and its children with it
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeding) as first:
        wait_for(lambda: metrics.exists() and metrics.read_text(), 300)
        first.send_signal(signal.SIGINT)
        _, error = first.communicate(timeout=300)
    assert first.returncode == 130, error
    step = max(int(path.name[5:]) for path in metrics.parent.glob("step-*"))
    assert error.strip() == f"lookfar: stopped after step {step} of trial 1/3; the same command goes on from there"

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(10, 201, 10))
    results = load(out)
    assert results.complete
    row = results.summary("nonlocal")
    assert row.verdict == "seed noise not measured"
    assert "seed noise not measured" in row.sentence
    assert "seed noise not measured" in done.stdout
    of_block, of_control, host = (results.summary(n).parameters for n in ("nonlocal", "control", "baseline"))
    assert of_block > host
    assert of_control - host == pytest.approx(of_block - host, rel=0.1)
    assert str(out / "report.html") in done.stdout
    assert (out / "report.html").stat().st_size > 10_000
    without = row.without
    assert None not in (without.mean, without.other, without.constant, without.off)
    assert 0.2 < row.latency.ratio_low <= row.latency.ratio <= row.latency.ratio_high
    assert results.summary("baseline").latency.ratio == 1
    assert "measured alone after the last trial" in done.stdout
    # what the command would measure again: nothing; then what was lost, from the final weights
    assert missing(out, results.plan) == ([], [])
    ablations = trial_folder(out, "nonlocal", 0) / "ablations.npz"
    lost = load_ablations(ablations)
    ablations.write_bytes(ablations.read_bytes()[:100])
    times = json.loads((out / "latency.json").read_text())
    times["machine"]["processor"] = "another"
    (out / "latency.json").write_text(json.dumps(times))
    without, timed = missing(out, results.plan)
    assert without == [("nonlocal", 0)]
    assert timed == [("baseline", 0), ("control", 0), ("nonlocal", 0)]
    afterwards.main(out)
    assert missing(out, results.plan) == ([], [])
    again = load_ablations(ablations)
    assert lost[0].keys() == again[0].keys() == set(KINDS)
    assert all(np.array_equal(lost[0][kind], again[0][kind]) for kind in lost[0])
    environment = json.loads((out / "environment.json").read_text())
    assert environment["command"].startswith(f"lookfar study --data {data} --host small")
    assert environment["data"]["classes"] == list(results.classes)
    assert environment["runs"] == 2


def test_gpus_are_dealt_out(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan = Plan("scenes:lookup", ("nonlocal",), accelerator="cuda", devices=2)
    slots = environments(plan, None)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(plan, None)] == ["3,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ValueError, match="a trial takes 2 GPUs, but there are 1"):
        environments(plan, None)
