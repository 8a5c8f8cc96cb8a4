"""Where the system says no (a full disk, a file in a folder's place), one line is said, and what was finished stays."""

import errno
import importlib
import json
import os
import resource
import sys

import pytest
import torch

from lookfar import cli
from lookfar.study import Plan, load, worker
from lookfar.study import run as run_study
from lookfar.study._files import write_json, write_text
from lookfar.training.checkpoints import Checkpoint, save_arrays, save_checkpoint

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")
LONG = "x" * 5000


def command(capsys, monkeypatch, *arguments):
    """Exit status and what was said on stderr."""
    monkeypatch.setattr(sys, "argv", ["lookfar", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err


def study(out):
    return ("study", "--data", "scenes:lookup", "--blocks", "nonlocal", "--seeds", 1, "--steps", 2, "--out", out)


def in_the_place_of_results(out):
    (out / "results.csv").mkdir(parents=True)
    return study(out)


def in_the_place_of_the_plan(out):
    (out / "study.yaml").mkdir(parents=True)
    return study(out)


def in_the_place_of_trials(out):
    out.mkdir(exist_ok=True)
    (out / "trials").touch()
    return study(out)


def in_the_place_of_a_candidate(out):
    (out / "trials").mkdir(parents=True)
    (out / "trials/nonlocal").touch()
    return study(out)


def in_the_place_of_the_study(out):
    (out.parent / "file").touch()
    return study(out.parent / "file")


def above_the_study(out):
    (out.parent / "file").touch()
    return study(out.parent / "file" / "below")


def long_study(out):
    return study(out / LONG)


def long_plan(out):
    return "study", out / f"{LONG}.yaml"


def long_report(out):
    return "report", out / LONG


@pytest.mark.parametrize(
    "prepare",
    [
        in_the_place_of_results, in_the_place_of_the_plan, in_the_place_of_trials, in_the_place_of_a_candidate,
        in_the_place_of_the_study, above_the_study, long_study, long_plan, long_report,
    ],
)  # fmt: skip
def test_one_line(fake, capsys, monkeypatch, prepare):
    out, _ = fake
    code, error = command(capsys, monkeypatch, *prepare(out))
    assert error.startswith("lookfar: ")
    assert len(error.splitlines()) <= 3
    assert len(error) < 250
    # newer versions of Python say of a name that is too long that nothing is there
    assert code == 1 or (code == 2 and "long" in prepare.__name__ and "no " in error)


def test_nothing_is_left_of_a_study_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match="Did you mean nonlocal"):
        run_study(Plan("scenes:lookup", ("nonlokal",)), tmp_path / "runs" / "new", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["result.json", "config.json", "environment.json", "study.yaml", "results.csv"])
def test_what_was_finished_stays_on_a_full_disk(fake, capsys, monkeypatch, name):
    out, wishes = fake
    wishes(**{"nonlocal 1": "kill"})  # whose result the study writes

    def full(path, text):
        if path.name == name and (name != "config.json" or "nonlocal" in path.parts):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_text(path, text)

    for module in ("_files", "plan", "results"):
        monkeypatch.setattr(f"lookfar.study.{module}.write_text", full)
    code, error = command(capsys, monkeypatch, *study(out), "--seeds", 2, "--workers", 1)
    assert code == 1
    assert error.startswith("lookfar: No space left on device: ")
    assert error.count("\n") == 1
    monkeypatch.setattr("lookfar.study._files.write_text", write_text)
    monkeypatch.setattr("lookfar.study.plan.write_text", write_text)
    monkeypatch.setattr("lookfar.study.results.write_text", write_text)
    wishes()
    assert run_study(PLAN, out, quiet=True).complete
    begun = {path.parts[-3:-1]: len(path.read_text().split()) for path in out.glob("trials/*/*/starts")}
    assert {trial for trial, times in begun.items() if times > 1} <= {("nonlocal", "1")}


@pytest.mark.parametrize("name", ["results.csv", "report.html"])
def test_a_report_of_a_folder_that_cannot_be_written_prints_its_table(fake, capsys, monkeypatch, name):
    out, _ = fake
    run_study(PLAN, out, quiet=True)

    def refused(path, text):
        if path.name == name:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        write_text(path, text)

    for module in ("results", "report"):
        found = importlib.import_module(f"lookfar.study.{module}")  # the package has a function of one's name
        monkeypatch.setattr(found, "write_text", refused)
    monkeypatch.setattr(sys, "argv", ["lookfar", "report", str(out)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 1
    assert said.err.startswith("lookfar: Read-only file system: ")
    assert said.err.count("\n") == 1
    assert "nonlocal" in said.out
    assert "Report:" not in said.out


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("step-3", lambda folder, many: save_checkpoint(folder, Checkpoint(3, {}, {"m": many}, {}))),
        ("facts.npz", lambda folder, many: save_arrays(folder / "facts.npz", many=many.numpy())),
        ("data.json", lambda folder, many: write_json(folder / "data.json", many.tolist())),
    ],
)
def test_an_error_names_the_file_that_there_is_no_room_for(tmp_path, name, write):
    """Neither a temporary file nor, as torch has it, a position; a limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(tmp_path, torch.rand(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_met_a_full_disk_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_reporting_on_stdout", lambda: lambda **_: None)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "step-3/weights.safetensors")

    monkeypatch.setattr(worker, "run_trial", full)
    assert worker.main(tmp_path) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {
        "status": "failed", "killed": True, "reason": "No space left on device: step-3/weights.safetensors",
    }  # fmt: skip
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr(worker, "write_json", full)
    assert worker.main(tmp_path) == 1  # the study says it


@pytest.mark.parametrize("spoil", ["unlink", "empty", "list", "other"])
def test_a_finished_trial_without_its_configuration_is_not_gone_on_with(fake, spoil):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    path = out / "trials/control/1/config.json"
    path.unlink()
    if spoil != "unlink":
        path.write_text({"empty": "", "list": "[]", "other": "{}"}[spoil])
    with pytest.raises(ValueError, match="trials/control/1 does not say how it was trained"):
        run_study(PLAN, out, quiet=True)
    assert load(out).complete
