"""Classes by themselves: the same statistics as of the mean, on one class at a time."""

import csv

import numpy as np
import pytest
from study.fake_study import make_fake_study

from lookfar.study.by_class import by_class, confusions, is_shown
from lookfar.study.groups import groups_of
from lookfar.study.results import load, write_csv
from lookfar.tasks import Segmentation
from lookfar.tasks.segmentation import counts_of


def study_of(draw, *, gain, seeds=3, images=20, K=4):
    """Counts of a baseline and a block that names class 1 better; class 3 is never shown, class 2 in one image."""
    counts = {}
    truth = draw.integers(500, 900, (images, K))
    truth[:, 3] = 0
    truth[1:, 2] = 0
    for name, better in {"baseline": 0.0, "block": gain}.items():
        for seed in range(seeds):
            confusion = np.zeros((images, K, K), int)
            for k in range(3):
                right = 0.7 + (better if k == 1 else 0) + draw.normal(0, 0.01, images)
                confusion[:, k, k] = truth[:, k] * right
                confusion[:, k, 0] += truth[:, k] - confusion[:, k, k]
            counts[name, seed] = counts_of(confusion)
    return counts


def test_the_class_that_gains_is_shown_and_no_other():
    counts = study_of(np.random.default_rng(0), gain=0.1)
    groups = groups_of([str(i) for i in range(20)], "none")
    zero, one, rare, never = by_class(Segmentation(), ["a", "b", "c"], counts, groups)
    assert [of.name for of in (zero, one, rare, never)] == ["a", "b", "c", "class 3"]
    d = one.differences["block"]
    iou = [
        100 * counts[name, seed][:, 0, 1].sum() / counts[name, seed][:, 1, 1].sum()
        for name in ("block", "baseline")
        for seed in range(3)
    ]
    assert d.of_seed == pytest.approx(np.subtract(iou[:3], iou[3:]))
    assert is_shown(d, groups)
    assert d.single.low > 5
    # what one image says is known of one image
    assert rare.images == 1
    assert rare.differences["block"].groups == 1
    assert not is_shown(rare.differences["block"], groups)
    assert never.images == 0
    assert not never.scores
    assert sum(of.share for of in (zero, one, rare, never)) == pytest.approx(100)


def test_two_seeds_show_nothing():
    counts = study_of(np.random.default_rng(0), gain=0.1, seeds=2)
    groups = groups_of([str(i) for i in range(20)], "none")
    assert not is_shown(by_class(Segmentation(), ["a"], counts, groups)[1].differences["block"], groups)
    assert by_class(Segmentation(), ["a"], {}, groups) == ()


def test_few_false_alarms():
    """Of intervals of a class without a gain about one in twenty leaves zero out."""
    draw = np.random.default_rng(5)
    groups = groups_of([str(i) for i in range(20)], "none")
    false = [
        is_shown(by_class(Segmentation(), [], study_of(draw, gain=0.0), groups)[1].differences["block"], groups)
        for _ in range(60)
    ]
    assert sum(false) <= 8


def test_confusions_are_of_other_classes_and_not_small():
    matrix = np.array([[90, 10, 0], [0, 995, 5], [1, 1, 2]])
    assert confusions(matrix, ["a", "b", "c"]) == [("c", "a", 25.0), ("c", "b", 25.0), ("a", "b", 10.0)]


def test_the_table_of_classes(tmp_path):
    folder = make_fake_study(tmp_path / "study", images=6, size=(32, 32), grid=(4, 4), maps=False, metrics=False)
    results = load(folder)
    write_csv(results)
    rows = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
    assert len(rows) == 5 * 4
    of = results.by_class[1]
    row = next(r for r in rows if r["class"] == of.name and r["candidate"] == "nonlocal")
    assert float(row["difference low"]) == pytest.approx(of.differences["nonlocal"].single.low)
    assert float(row["iou"]) == pytest.approx(of.scores["nonlocal"].mean)
