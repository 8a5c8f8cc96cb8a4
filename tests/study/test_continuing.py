"""A study is one study: what was trained otherwise is never gone on with or compared, and what is new is added."""

import json
import os
import shutil
import sys

import pytest
from image_trees import make_tree, noise, save, stripes

from lookfar import cli
from lookfar.study import Plan, load
from lookfar.study import run as run_study
from lookfar.study._files import read_json
from lookfar.study.preflight import controls_for

PLAN = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu")


def starts(out):
    """How often each trial was started."""
    found = (out / "trials").glob("*/*/starts")
    return {f"{p.parts[-3]} {p.parts[-2]}": len(p.read_text().split()) for p in found}


def command(capsys, monkeypatch, *arguments):
    """Exit status and what was said on stderr."""
    monkeypatch.setattr(sys, "argv", ["lookfar", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_an_edited_plan_is_refused_by_name(fake, capsys, monkeypatch):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    path = out / "study.yaml"
    text = path.read_text()
    before = starts(out)
    for entry, there, asked in [
        ("steps", "2", "40"), ("lr", "0.003", "0.5"), ("host", "small", "resnet18"), ("threads", "1", "2"),
        ("optimizer", "adamw", "sgd"), ("output_stride", "8", "16"), ("class_weights", "null", "[1.0, 2.0]"),
    ]:  # fmt: skip
        assert f"{entry}: {there}\n" in text
        path.write_text(text.replace(f"{entry}: {there}\n", f"{entry}: {asked}\n"))
        for arguments in (("study", path), ("report", out)):
            code, error = command(capsys, monkeypatch, *arguments)
            assert code == 2, (entry, arguments, error)
            assert f"{entry}: " in error.replace("\n", " ")
            assert len(error.splitlines()) <= 3
            assert max(map(len, error.splitlines())) <= 80
        path.write_text(text)
    assert starts(out) == before
    assert run_study(PLAN, out, quiet=True).complete
    assert load(out).complete


def test_what_changes_no_trial_may_change(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    other = Plan(
        "scenes:lookup", ("nonlocal",), seeds=2, steps=2, accelerator="cpu",
        margin=1.0, groups="none", checkpoint_every=1, tensorboard=True,
    )  # fmt: skip
    assert run_study(other, out, quiet=True).plan.margin == 1.0
    assert set(starts(out).values()) == {1}


def test_the_data_of_study_yaml_are_those_of_the_trials(fake, capsys, monkeypatch):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    path = out / "study.yaml"
    path.write_text(path.read_text().replace("data: scenes:lookup", "data: scenes:cue"))
    code, error = command(capsys, monkeypatch, "report", out)
    assert code == 2
    assert "data: scenes:lookup there, scenes:cue in study.yaml" in " ".join(error.split())


def test_a_trial_in_anothers_folder_is_refused(fake):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    shutil.rmtree(out / "trials/nonlocal/1")
    shutil.copytree(out / "trials/baseline/1", out / "trials/nonlocal/1")
    for again in (lambda: run_study(PLAN, out, quiet=True), lambda: load(out)):
        with pytest.raises(ValueError, match="trials/nonlocal/1 holds baseline seed 1"):
            again()


def test_a_trial_with_steps_left_is_compared_too(fake):
    out, wishes = fake
    wishes(**{"nonlocal 1": "kill"})
    run_study(PLAN, out, quiet=True)
    for done in ("baseline", "control", "nonlocal"):
        shutil.rmtree(out / "trials" / done / "0")
    shutil.rmtree(out / "trials/baseline/1")
    shutil.rmtree(out / "trials/control/1")
    other = Plan("scenes:lookup", ("nonlocal",), seeds=2, steps=3, accelerator="cpu")
    (out / "trials/nonlocal/1/step-1").mkdir()
    with pytest.raises(ValueError, match=r"nonlocal seed 1 was trained otherwise.*steps: 2 there, 3 asked for"):
        run_study(other, out, quiet=True)
    (out / "trials/nonlocal/1/step-1").rmdir()  # nothing is left that other steps would spoil
    wishes()
    assert run_study(other, out, quiet=True).complete


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_files(fake, tmp_path, monkeypatch):
    """A study on three training and two validation images, already run once."""
    monkeypatch.setenv("LOOKFAR_CACHE", str(tmp_path / "cache"))
    masks = [stripes(0, 1, 2), stripes(2, 1, 0), stripes(1, 0, 2)]
    root = make_tree(tmp_path / "data", masks, val=masks[:2], classes=["a", "b", "c"])
    out, _ = fake

    def again(**entries):
        plan = {"data": str(root), "blocks": ("nonlocal",), "seeds": 1, "steps": 2, "accelerator": "cpu", **entries}
        return run_study(Plan(**plan), out, quiet=True)

    again()
    return root, out, again


def other_mask(root):
    save(root / "train/masks/train_1.png", stripes(0, 0, 1, 2))


def other_mask_of_the_same_size_and_time(root):
    path = root / "val/masks/val_1.png"
    stat = path.stat()
    save(path, stripes(2, 1, 0)[::-1] * 0 + stripes(0, 1, 2)[:, ::-1])
    path.write_bytes(path.read_bytes().ljust(stat.st_size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def image_removed(root):
    for kind in ("images", "masks"):
        (root / f"val/{kind}/val_1.png").unlink()


def image_added(root):
    save(root / "train/images/more.png", noise(9, 24, 32, 3))
    save(root / "train/masks/more.png", stripes(0, 1))


def image_renamed(root):
    for kind in ("images", "masks"):
        (root / f"train/{kind}/train_2.png").rename(root / f"train/{kind}/zzz.png")


def other_image(root):
    save(root / "train/images/train_0.png", noise(77, 24, 32, 3))


def other_classes(root):
    (root / "classes.txt").write_text("a\nbird\nc\n")


def one_class_more(root):
    (root / "classes.txt").write_text("a\nb\nc\nd\n")


@pytest.mark.parametrize(
    ("change", "entries", "said"),
    [
        (other_mask, {}, "masks of train changed: train_1"),
        (other_mask_of_the_same_size_and_time, {}, "masks of val changed: val_1"),
        (image_removed, {}, r"val: 1 missing \(val_1\)"),
        (image_added, {}, r"train: 1 new \(more\)"),
        (image_renamed, {}, r"train: 1 name changed \(train_2 there, zzz now\)"),
        (other_image, {}, "images of train changed: train_0"),
        (other_classes, {}, "class 1: b there, bird now"),
        (one_class_more, {}, "classes: 3 there, 4 now"),
        (None, {"size": (12, 16)}, "size: 24x32 there, 12x16 now"),
        (None, {"ignore": (2,)}, "masks of train changed"),
        (None, {"in_chans": 1}, "in_chans: 3 there, 1 now"),
        (None, {"val": "0.34"}, "train: 1 missing"),
    ],
)
def test_other_data_are_refused_by_name(on_files, change, entries, said):
    root, out, again = on_files
    before = starts(out)
    if change is not None:
        change(root)
    with pytest.raises(ValueError, match=said) as refused:
        again(**entries)
    assert len(str(refused.value)) < 230
    assert starts(out) == before


def test_equal_data_are_not_refused(on_files, tmp_path):
    root, _, again = on_files
    for path in root.rglob("*.png"):
        os.utime(path)
    again()
    path = root / "train/masks/train_1.png"
    save(path, stripes(2, 1, 0), compress_level=1)
    again()
    again(size=(24, 32), classes=3)  # said in other words
    moved = root.rename(tmp_path / "elsewhere")
    assert again(data=str(moved)).complete
    assert load(tmp_path / "study").plan.data == str(moved)


def test_trials_on_different_data_are_not_compared(on_files):
    _, out, _ = on_files
    path = out / "trials/nonlocal/0/config.json"
    path.write_text(json.dumps({**read_json(path), "data": "0"}))
    with pytest.raises(ValueError, match="baseline seed 0 and nonlocal seed 0 were trained with other data"):
        load(out)


# ---- growing ---------------------------------------------------------------------------------------------------------


def test_a_study_grows_by_seeds_and_blocks(fake, capsys):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    more = Plan("scenes:lookup", ("nonlocal", "cbam"), seeds=3, steps=2, accelerator="cpu")
    results = run_study(more, out)
    assert "6 trials of 2 steps to run" in capsys.readouterr().out
    assert results.complete
    assert results.plan.candidates == ("baseline", "control", "nonlocal", "cbam")
    assert len(results.trials) == 12
    assert set(starts(out).values()) == {1}


def test_a_study_never_shrinks(fake, capsys):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    results = run_study(Plan("scenes:lookup", ("cbam",), seeds=1, steps=2, accelerator="cpu"), out)
    assert results.plan.blocks == ("nonlocal", "cbam")
    assert (results.plan.seeds, results.complete) == (2, True)
    assert "nonlocal: finished here before" in capsys.readouterr().out
    assert set(starts(out).values()) == {1}


def test_a_block_that_never_finished_may_be_left_out(fake):
    out, wishes = fake
    wishes(**{"cbam 0": "raise", "cbam 1": "kill"})
    assert not run_study(Plan("scenes:lookup", ("nonlocal", "cbam"), seeds=2, steps=2), out, quiet=True).complete
    results = run_study(PLAN, out, quiet=True)
    assert results.complete
    assert results.plan.blocks == ("nonlocal",)


def test_controls_stay_as_they_are_when_a_study_grows():
    def smallest_267(name, size):
        return max(size, 267)

    first = controls_for({"nonlocal": 8480, "cbam": 400}, smallest_267, {})
    assert first == {"control": 400, "control(parameters=8480)": 8480}
    again = {"cbam": 400, "nonlocal": 8480}
    assert controls_for(again, smallest_267, first) == first
    # one of half to twice a control's size has its control, others get one of their own
    near = {"channel_attention": 201, "double_attention": 5000, "criss_cross": 16000}
    assert controls_for(again | near, smallest_267, first) == first
    far = again | {"channel_attention": 1, "criss_cross": 1700, "cbam@layer2": 400}
    grown = controls_for(far, smallest_267, first)
    new = {"control(parameters=1)": 1, "control(parameters=1700)": 1700, "control(parameters=400)@layer2": 400}
    assert grown == first | new
    assert controls_for(far, smallest_267, grown) == grown


def test_the_folder_is_the_plan_of_what_grows(fake, capsys, monkeypatch):
    out, _ = fake
    run_study(PLAN, out, quiet=True)
    for arguments in (("study", out, "--seeds", "3"), ("study", "--out", out, "--blocks", "cbam")):
        code, error = command(capsys, monkeypatch, *arguments)
        assert (code, error) == (0, "")
    results = load(out)
    assert (results.plan.seeds, results.plan.blocks, results.plan.steps) == (3, ("nonlocal", "cbam"), 2)
    assert results.complete
    assert set(starts(out).values()) == {1}
