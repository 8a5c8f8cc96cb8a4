"""Damaged files of finished trials: named, and made again from the weights without a step of training."""

import json
import os
import shutil

import numpy as np
import pytest
from image_trees import make_tree, stripes

from lookfar.study import Plan, load
from lookfar.study import run as run_study
from lookfar.study._files import sweep, write_json
from lookfar.study._locks import locked
from lookfar.study.continuing import decisive
from lookfar.study.mending import read_state
from lookfar.study.plan import trial_folder
from lookfar.study.report import write_report
from lookfar.study.worker import run_trial
from lookfar.tasks import Segmentation
from lookfar.tasks.segmentation import scores
from lookfar.training.checkpoints import load_tensors, save_arrays, save_tensors

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a trial that was really trained, for two steps."""
    root = tmp_path_factory.mktemp("study")
    data = make_tree(root / "data", [stripes(0, 1), stripes(1, 0)], val=[stripes(0, 1)] * 3, classes=["a", "b"])
    plan = Plan(str(data), ("nonlocal",), host="small", seeds=1, steps=2, batch_size=2, accelerator="cpu").resolved()
    folder = trial_folder(root, "nonlocal", 0)
    folder.mkdir(parents=True)
    config = {"candidate": "nonlocal", "seed": 0, "control_parameters": 0, "plan": plan.to_dict()}
    write_json(folder / "config.json", config)
    write_json(folder / "result.json", {"status": "done", "reason": "", **run_trial(folder)})
    return folder


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()


def matrices(shape, value=1, dtype=np.int64):
    return lambda path: save_arrays(path, confusion=np.full(shape, value, dtype))


def nan_weights(path):
    save_tensors({key: t * float("nan") if t.is_floating_point() else t for key, t in load_tensors(path).items()}, path)


def told(**values):
    return lambda path: write_json(path, json.loads(path.read_text()) | values)


DAMAGE = [
    *[
        (name, spoil)
        for name in ("final.safetensors", "confusion.npz", "ablations.npz", "samples.npz")
        for spoil in (halve, flip, os.unlink)
    ],
    ("confusion.npz", folder_in_its_place),
    ("confusion.npz", matrices((3, 2, 2), 0)),
    ("confusion.npz", matrices((3, 3, 3))),
    ("confusion.npz", matrices((2, 2, 2))),
    ("confusion.npz", matrices((3, 2, 2), np.nan, float)),
    ("final.safetensors", nan_weights),
    ("result.json", halve),
    ("result.json", lambda path: path.write_text("[1]")),
]


@pytest.mark.parametrize(("name", "spoil"), DAMAGE)
def test_damage_is_named(name, spoil, finished, tmp_path):
    folder = tmp_path / "0"
    shutil.copytree(finished, folder)
    assert read_state(folder, Segmentation()).damaged == ()
    assert read_state(folder, Segmentation()).done
    spoil(folder / name)
    assert read_state(folder, Segmentation()).damaged == (name,)


@pytest.mark.parametrize("values", [{"miou": 0.99}, {"miou": None}, {"iou": [0.1, 0.2, 0.3]}])
def test_a_result_that_its_matrices_do_not_give_is_not_believed(values, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "0")
    told(**values)(tmp_path / "0" / "result.json")
    assert read_state(tmp_path / "0", Segmentation(), thorough=False).damaged != ()


@pytest.mark.parametrize("checkpoints", [True, False])
def test_what_is_damaged_is_made_again_without_a_step(checkpoints, finished, tmp_path):
    folder = tmp_path / "trials" / "nonlocal" / "0"
    shutil.copytree(finished, folder)
    if not checkpoints:
        for path in folder.glob("step-*"):
            shutil.rmtree(path)
    for name in ("confusion.npz", "ablations.npz", "samples.npz"):
        (folder / name).unlink()
    seen = []
    result = run_trial(folder, lambda **values: seen.append(values))
    assert [values for values in seen if "loss" in values] == []
    before = json.loads((finished / "result.json").read_text())
    assert result["files"] == before["files"]
    for name in ("miou", "iou", "trained_with", "step", "parameters"):
        assert result[name] == before[name]


# ---- a study ---------------------------------------------------------------------------------------------------------


def test_a_study_mends_its_trials(fake, capsys):
    out, _ = fake
    results = run_study(PLAN, out, quiet=True)
    (out / "trials/control/1/confusion.npz").write_bytes(b"PK")
    (out / "trials/nonlocal/0/result.json").write_text("{")
    (out / "environment.json").write_text("")
    (out / "data.json").write_text("[]")
    (out / "trials/nonlocal/0/kept").touch()
    assert run_study(PLAN, out).trials == results.trials
    said = capsys.readouterr().out
    assert "control seed 1: confusion.npz damaged, made again from its weights." in said
    assert "nonlocal seed 0: result.json damaged, made again from its weights." in said
    assert "2 trials of 2 steps to run, 2 at a time, 4 of 6 are there" in said
    assert (out / "trials/nonlocal/0/kept").exists()  # begun anew it would have lost its weights


def test_a_report_names_what_is_damaged_and_shows_the_rest(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    (out / "trials/control/1/confusion.npz").write_bytes(b"PK")
    (out / "trials/nonlocal/0/result.json").write_text("{")
    (out / "trials/baseline/0/samples.npz").write_bytes(b"PK")
    (out / "trials/baseline/0/metrics.jsonl").write_bytes(b"\xff\n[]\n3\n")
    results = load(out)
    reasons = {f"{t.candidate} {t.seed}": t.reason for t in results.trials if t.status != "done"}
    assert reasons == {
        "control 1": "confusion.npz damaged: `lookfar study` makes it again",
        "nonlocal 0": "result.json damaged: `lookfar study` makes it again",
    }
    assert write_report(out).is_file()


def test_what_killed_writers_left_is_swept(fake, tmp_path):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    folder = out / "trials/control/1"
    dead = 2**22 + 7  # beyond what systems give
    left = [out / f".study.yaml.{dead}", folder / f".result.json.{dead}", folder / "samples.part"]
    for path in left:
        path.write_text("half")
    (folder / f".step-7.{dead}").mkdir()
    kept = [folder / f".config.json.{os.getpid()}", folder / ".name", out / f".report.html.0123abcd-{dead}"]
    for path in kept:
        path.write_text("")
    with locked(folder / ".lock"):  # somebody is at work there
        run_study(PLAN, out, quiet=True)
    assert [path.exists() for path in left] == [False, True, True]
    run_study(PLAN, out, quiet=True)
    assert not any(path.exists() for path in (*left, folder / f".step-7.{dead}"))
    assert all(path.exists() for path in kept)
    sweep(tmp_path / "missing")


@pytest.mark.parametrize("spoil", [os.unlink, halve, lambda path: path.write_text("[]")])
def test_a_damaged_configuration_is_written_again(fake, capsys, spoil):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    for path in (out / "trials").glob("*/*/config.json"):  # as the true trials do
        told(trained_with=decisive(json.loads(path.read_text())))(path.with_name("result.json"))
    path = out / "trials/control/1/config.json"
    before = path.read_text()
    spoil(path)
    assert run_study(PLAN, out).complete
    assert "control seed 1: config.json damaged, written again." in capsys.readouterr().out
    assert path.read_text() == before
    assert len((path.parent / "starts").read_text().split()) == 1


def test_a_configuration_that_nobody_knows_stays_lost(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    for path in (out / "trials").glob("*/*/config.json"):
        told(trained_with=decisive(json.loads(path.read_text())))(path.with_name("result.json"))
    path = out / "trials/control/1/config.json"
    told(trained_with="0")(path.with_name("result.json"))
    path.unlink()
    with pytest.raises(ValueError, match="trials/control/1 does not say how it was trained"):
        run_study(PLAN, out, quiet=True)


def test_trials_that_were_judged_by_other_masks_are_not_compared(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    for matrix, said in (([[[9, 2], [1, 7]]] * 4, "other labels"), ([[[9, 1], [1, 7]]] * 3, "4 images and 3 images")):
        confusion = np.array(matrix)
        save_arrays(out / "trials/nonlocal/1/confusion.npz", confusion=confusion)
        told(**scores(confusion))(out / "trials/nonlocal/1/result.json")
        with pytest.raises(ValueError, match=f"baseline seed 0 and nonlocal seed 1 were judged on {said}"):
            load(out)


@pytest.mark.parametrize("name", ["study.yaml", "environment.json", "data.json"])
@pytest.mark.parametrize("spoil", [halve, os.unlink, lambda path: path.write_text("[1]")])
def test_the_files_of_the_study_itself_are_written_again(fake, name, spoil):
    out, _ = fake
    results = run_study(PLAN, out, quiet=True)
    before = json.loads((out / "data.json").read_text())
    spoil(out / name)
    assert run_study(PLAN, out, quiet=True).trials == results.trials
    assert Plan.load(out / "study.yaml").seeds == 2
    assert json.loads((out / "data.json").read_text()) == before
    assert {len(path.read_text().split()) for path in out.glob("trials/*/*/starts")} == {1}


def test_classes_and_names_are_in_two_places(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    sets = {"val": [[f"{scene}_{n}", "0", "0"] for scene in "ab" for n in range(2)]}
    write_json(out / "data.json", {"classes": ["sky", "road"], "sets": sets})
    (out / "environment.json").write_text("")
    results = load(out, groups="^.")
    assert (results.classes, results.conclusions.groups.number) == (("sky", "road"), 2)
    assert write_report(out).is_file()
