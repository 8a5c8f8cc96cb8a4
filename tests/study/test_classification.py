"""A study of a classification: from the plan to the report, with timm hosts, in three seeds of few steps."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from bright import bright_data

from lookfar.study import load
from lookfar.study._files import write_json
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.preflight import preflight
from lookfar.study.report import write_report
from lookfar.study.results import write_csv
from lookfar.study.show import show
from lookfar.study.worker import run_trial


def make_study(out, plan, data, trials=None):
    """All trials of a plan, one after the other, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookfar.study.build.open_plan_data", lambda plan: data)
        ready = preflight(plan)
        out.mkdir()
        ready.plan.save(out / "study.yaml")
        write_json(out / "environment.json", ready.facts)
        write_json(out / "data.json", dict(ready.data))
        for candidate, seed in trials or ready.plan.trials:
            folder = trial_folder(out, candidate, seed)
            folder.mkdir(parents=True)
            config = {"candidate": candidate, "seed": seed, "plan": ready.plan.to_dict(), **ready.made_of}
            write_json(folder / "config.json", config)
            write_json(folder / "result.json", {"status": "done", "reason": "", **run_trial(folder)})
    return out


PLAN = Plan(
    "bright", ("nonlocal",), task="classification", seeds=3, steps=3, batch_size=4, host="small", lr=0.01,
    label_smoothing=0.1, mixup=0.2, class_weights=(1, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    data = bright_data(classes=3, train=12, val=14, size=(16, 24))
    data.val.targets[:] = torch.tensor([0] * 10 + [1] * 3 + [2])
    return make_study(tmp_path_factory.mktemp("study") / "study", PLAN, data)


def outcomes(study, candidate, seed):
    with np.load(trial_folder(study, candidate, seed) / "outcomes.npz") as file:
        return dict(file)


def test_tables_hold_what_was_judged(study):
    results = load(study)
    assert results.complete
    for row in results.summaries:
        kept = [outcomes(study, row.candidate, seed) for seed in range(3)]
        hits = [(one["truth"] == one["prediction"]).mean() for one in kept]
        assert row.score.mean == pytest.approx(100 * np.mean(hits))
        assert row.further["nll"] == pytest.approx(np.mean([-one["log_probability"].mean() for one in kept]))
        assert row.further["top5"] is None  # of three classes
        assert row.further["balanced"] is not None  # ten of one class, one of another
        matrix = results.confusion(row.candidate)
        assert matrix.sum(1).tolist() == [30, 9, 3]
        assert matrix.trace() == sum((one["truth"] == one["prediction"]).sum() for one in kept)
    assert [(of.name, of.images, round(of.share)) for of in results.by_class] == [
        ("light 0", 10, 71), ("light 1", 3, 21), ("light 2", 1, 7),
    ]  # fmt: skip
    block = results.summary("nonlocal")
    of_class = {of.name: of.differences["nonlocal"].mean for of in results.by_class}
    weighted = sum(n * of_class[f"light {k}"] for k, n in enumerate((10, 3, 1))) / 14
    assert block.difference.mean == pytest.approx(weighted)
    assert block.without.off is not None
    assert "accuracy ± 95 %" in repr(results)
    assert "beside the score" in repr(results)


def test_the_other_score_judges_the_same_trials(study, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    plan = dataclasses.replace(Plan.load(out / "study.yaml"), metric="balanced")
    plan.save(out / "study.yaml")
    results = load(out)
    assert results.complete
    for row in results.summaries:
        each = []
        for seed in range(3):
            one = outcomes(out, row.candidate, seed)
            each.append(np.mean([(one["prediction"][one["truth"] == k] == k).mean() for k in range(3)]))
        assert row.score.mean == pytest.approx(100 * np.mean(each))
        assert "accuracy" in row.further
    assert "balanced accuracy" in repr(results)


def test_its_files_say_the_same(study, capsys):
    results = load(study)
    write_csv(results, study / "results.csv")
    with (study / "results.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["accuracy"]) == results.trials[0].score
    assert float(first["nll"]) > 0
    assert {"top5", "ece", "balanced", "class accuracy light 0", "accuracy off"} <= first.keys()
    with (study / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert rows[0]["images"] == "10"
    assert len(rows[0]) == len(set(rows[0]))
    show(results)
    said = capsys.readouterr().out
    assert "NLL" in said
    assert "balanced accuracy, %" in said


def test_the_page_has_words_and_no_maps_of_labels(study):
    page = re.sub(r"base64,[^\"]+", "", write_report(study).read_text(encoding="utf-8"))
    assert "Accuracy in per cent on the validation images" in page
    assert "<dt>truth</dt><dd>light " in page
    assert "averages over all positions before it names a class" in page
    for word in ("own class", "Unlabelled", "Errors only", "pixels of", "of images, in", "were resized to what"):
        assert word not in page, word
    assert "10 images" in page
    assert "What is taken for what" in page
    assert "confusion matrix of nonlocal" in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["exact"]
    assert data["images"][0]["truth"].startswith("light ")
    assert not any(
        "share" in one or "found" in one for block in data["blocks"] for of in block["of"].values() for one in of
    )


def test_images_on_which_candidates_differ_stand_first(study, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    for seed in range(3):
        for candidate in ("baseline", "control", "nonlocal"):
            path = trial_folder(out, candidate, seed) / "samples.npz"
            with np.load(path) as file:
                arrays = dict(file)
            arrays["prediction"][:] = 0
            if candidate == "nonlocal":
                arrays["prediction"][7] = 1
            np.savez(path, **arrays)
    name = str(arrays["name"][7])
    page = write_report(out).read_text(encoding="utf-8")
    assert re.search(r'<article class="sample[^>]*>\s*<h3>(.*?)</h3>', page)[1] == name
    assert 'class="bad"' in page


def test_trained_networks_come_back(study, monkeypatch):
    data = bright_data(classes=3, train=12, val=14, size=(16, 24))
    monkeypatch.setattr("lookfar.study.build.open_plan_data", lambda plan: data)
    network, _, blocks = load(study).network("nonlocal", seed=1)
    assert len(blocks) == 1
    kept = outcomes(study, "nonlocal", 1)
    images, _ = next(data.val_batches(14))
    assert network(images).argmax(1).tolist() == kept["prediction"].tolist()


# ---- hosts of timm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_timm_hosts_with_blocks_are_compared(host, tmp_path):
    data = bright_data(classes=2, train=8, val=6, size=(64, 64))
    plan = Plan("bright", ("nonlocal",), task="classification", seeds=1, steps=2, batch_size=4, host=host)
    out = make_study(tmp_path / "study", plan, data, [("baseline", 0), ("nonlocal", 0)])
    results = load(out)
    row = results.summary("nonlocal")
    assert row.score is not None
    assert row.parameters > results.summary("baseline").parameters
    assert row.without.off is not None
    with np.load(trial_folder(out, "nonlocal", 0) / "samples.npz") as file:
        assert ("map" in file) == (host != "test_vit" or not str(file["reason"]))
    page = write_report(out).read_text(encoding="utf-8")
    assert ("averages over all positions before it names" in page) == (host != "test_vit")


# ---- what does not fit -----------------------------------------------------------------------------------------------


def refused(plan, data=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookfar.study.build.open_plan_data", lambda plan: data or bright_data(classes=3))
        with pytest.raises(ValueError) as caught:
            preflight(plan)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "segmentation"},
            "segmentation cannot be learned from bright, where images have one label each: want --task classification",
        ),
        ({"score": "original"}, "--score original is for maps of labels: classification has no size of files"),
        ({"class_weights": (1, 2)}, "2 class_weights for 3 classes"),
        ({"mixup": 0.2, "batch_size": 5}, "want an even batch_size, got 5"),
        ({"metric": "iou"}, "metric must be accuracy or balanced, got 'iou'"),
        ({"label_smoothing": 2.0}, "label_smoothing must be a number from 0 to 1"),
        ({"width": 32}, "width is that of a head for maps"),
        ({"host": "small", "output_stride": 16}, "'small' has output stride 8, got 16"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_in_one_line(changes, message):
    plan = dataclasses.replace(PLAN, mixup=0.0, label_smoothing=0.0, class_weights=None)
    assert message in refused(dataclasses.replace(plan, **changes))


def test_masks_are_not_classified():
    said = refused(Plan("scenes:lookup", ("nonlocal",), task="classification"), bright_data(target="mask"))
    assert "classification cannot be learned from scenes:lookup, where every pixel is labelled: want --task seg" in said
    said = refused(Plan("scenes:lookup", ("nonlocal",), mixup=0.2))
    assert said == "segmentation has no option 'mixup': it is for classification"


def test_few_positions_are_said_before_the_first_step():
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookfar.study.build.open_plan_data", lambda plan: bright_data(size=(32, 32)))
        preflight(Plan("bright", ("nonlocal",), task="classification", host="resnet18", steps=3), lines.append)
    assert any(line.startswith("The map at backbone.layer3 is 2×2: few positions") for line in lines)


def test_the_data_say_what_is_learned():
    assert Plan("scenes:red", ("nonlocal",)).resolved().task == "classification"
    assert Plan("scenes:cue", ("nonlocal",)).resolved().task == "segmentation"
    plan = Plan("scenes:red", ("nonlocal",), host="resnet18").resolved()
    assert (plan.output_stride, plan.lr) == (None, 1e-3)
