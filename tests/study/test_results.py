"""Intervals and verdicts: by hand-computed numbers, and by how often they are right."""

import csv
import json
import math

import numpy as np
import pytest

from lookfar.study import load
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.results import (
    counts_of,
    interval,
    judge,
    miou_of,
    resampled_miou,
    seeds_needed,
    write_csv,
)
from lookfar.study.rows import Interval
from lookfar.study.text import sentences, table_lines
from lookfar.study.words import points, signed
from lookfar.training import scores


def test_miou_is_that_of_training():
    confusion = np.random.default_rng(0).integers(0, 50, (7, 4, 4))
    confusion[:, 3] = confusion[:, :, 3] = 0  # a class that never occurs
    confusion[:, 2] = 0  # one that is only predicted
    assert miou_of(counts_of(confusion).sum(0)) == pytest.approx(100 * scores(confusion)["miou"])


def test_interval_by_hand():
    # mean 2, s^2 = 1, S = 3: t(0.975, 2) = 4.302653, half = t sqrt(1 / 3 + 0.25)
    got = interval([1.0, 2.0, 3.0], 0.25)
    assert got.mean == 2
    assert got.seed_sd == 1
    assert got.half == pytest.approx(4.302653 * math.sqrt(1 / 3 + 0.25), rel=1e-6)
    assert (got.low, got.high) == (2 - got.half, 2 + got.half)


def test_one_seed_tells_of_images_alone():
    got = interval([5.0], 0.04)
    assert got.half == pytest.approx(1.959964 * 0.2, rel=1e-6)
    assert not got.seed_noise_measured
    verdict, sentence = judge(got, 100)
    assert verdict == ""
    assert "seed noise not measured" in sentence


def test_seeds_needed_by_hand():
    # s = 1, v = 0: t(0.975, 4) / sqrt(5) = 1.2417, t(0.975, 5) / sqrt(6) = 1.0494, t(0.975, 6) / sqrt(7) = 0.9248
    assert seeds_needed(1.0, 0.0, 1.0) == 7
    assert seeds_needed(1.0, 0.0, 1.05) == 6
    assert seeds_needed(1.0, 0.0, 1e9) == 2
    # 1.96 sqrt(v) = 0.98: half-widths approach it, but never get below
    assert seeds_needed(1.0, 0.25, 0.97) is None
    assert seeds_needed(1.0, 0.25, 1.0) is not None


@pytest.mark.parametrize("target", [0.3, 0.6, 2.0])
def test_seeds_needed_is_the_least(target):
    from scipy import stats

    def half(S):
        return stats.t.ppf(0.975, S - 1) * math.sqrt(1.7**2 / S + 0.01)

    S = seeds_needed(1.7, 0.01, target)
    assert half(S) <= target < half(S - 1)


def test_verdicts():
    assert judge(Interval(2.0, 0.5, 3, 0.2, 0.0), 50) == ("better", "better by 2.0 ± 0.5 mIoU at 3 seeds")
    assert judge(Interval(-2.0, 0.5, 3, 0.2, 0.0), 50)[0] == "worse"
    # s such that the half-width is 0.6 at 3 seeds; 0.3 needs t(0.975, S - 1) s / sqrt(S) <= 0.3 with s = 0.2415: S = 5
    s = 0.6 * math.sqrt(3) / 4.302653
    word, sentence = judge(Interval(0.4, 0.6, 3, s, 0.0), 50)
    assert word == "no difference"
    assert sentence == "no difference detectable: ±0.6 mIoU at 3 seeds; 0.3 would need about 5"
    sentence = judge(Interval(0.1, 0.6, 3, 0.0, 0.024), 50)[1]
    assert sentence.endswith("0.3 is not reachable with 50 images")
    assert judge(Interval(0.0, 0.0, 3, 0.0, 0.0), 50)[1] == "no difference: the same on all 50 images at 3 seeds"


def test_numbers_are_written_with_their_uncertainty():
    assert points(12.345, 0.6) == "12.3"
    assert points(12.345, 0.04) == "12.35"
    assert points(12.345) == "12.3"
    assert signed(-1.25, 1.0) == "−1.2"
    assert signed(0.04, 1.0) == "+0.0"
    assert signed(-0.04, 1.0) == "+0.0"


def test_bootstrap_variance_of_a_known_case():
    # one class right or wrong per image: mIoU of two classes is a smooth function of the share right; delta method
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.7
    confusion = np.zeros((400, 2, 2), int)
    confusion[:, 0, 0] = 1000
    confusion[right, 1, 1] = 10
    confusion[~right, 1, 0] = 10
    drawn = resampled_miou(counts_of(confusion), resamples=4000)
    # IoU of class 1 is the share right: its standard deviation is sqrt(p (1 - p) / n), halved by the mean of two
    p = right.mean()
    assert drawn.std() == pytest.approx(50 * math.sqrt(p * (1 - p) / 400), rel=0.1)


# ---- a folder --------------------------------------------------------------------------------------------------------


def write_trial(study, candidate, seed, confusion, **result):
    folder = trial_folder(study, candidate, seed)
    folder.mkdir(parents=True)
    values = scores(confusion)
    np.savez_compressed(folder / "confusion.npz", confusion=confusion)
    cost = {"parameters": 1000, "flops": 2e9, "latency_ms": 1.5 + seed, "memory_mb": 3.0, "seconds": 9.0, "step": 10}
    (folder / "result.json").write_text(json.dumps({"status": "done", "reason": "", **values, **cost, **result}))


def confusion_of(accuracy, rng, images=30):
    """Two classes of 100 pixels an image, each right with this probability."""
    right = rng.binomial(100, accuracy, (images, 2))
    confusion = np.zeros((images, 2, 2), np.int64)
    confusion[:, [0, 1], [0, 1]] = right
    confusion[:, [0, 1], [1, 0]] = 100 - right
    return confusion


@pytest.fixture
def study(tmp_path):
    plan = Plan("scenes:lookup", ("nonlocal", "cbam", "criss_cross"), seeds=3)
    plan.save(tmp_path / "study.yaml")
    (tmp_path / "environment.json").write_text(json.dumps({"data": {"classes": ["odd", "even"]}}))
    rng = np.random.default_rng(0)
    for seed in range(3):
        write_trial(tmp_path, "baseline", seed, confusion_of(0.7, rng))
        write_trial(tmp_path, "control", seed, confusion_of(0.7, rng))
        write_trial(tmp_path, "nonlocal", seed, confusion_of(0.9, rng), miou_off=0.4)
    write_trial(tmp_path, "cbam", 0, confusion_of(0.7, rng))
    folder = trial_folder(tmp_path, "cbam", 1)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "failed", "reason": "out of memory: 3 GiB"}))
    return tmp_path


def test_load_gives_tables(study):
    results = load(study)
    assert len(results.trials) == 5 * 3
    assert [row.candidate for row in results.summaries] == ["nonlocal", "cbam", "criss_cross", "control", "baseline"]
    assert not results.complete
    best = results.summary("nonlocal")
    of_seed = [t.miou for t in results.trials if t.candidate == "nonlocal"]
    assert best.miou.mean == pytest.approx(np.mean(of_seed))
    assert best.verdict == "better"
    assert best.miou_off == pytest.approx(40)
    assert best.latency_ms == 2.5  # the median over seeds
    assert results.summary("control").verdict == "no difference"
    assert results.summary("baseline").difference is None
    with pytest.raises(ValueError, match="there are nonlocal"):
        results.summary("other")


def test_differences_are_paired_by_seed(study):
    results = load(study)
    of = {(t.candidate, t.seed): t.miou for t in results.trials}
    differences = [of["nonlocal", seed] - of["baseline", seed] for seed in range(3)]
    got = results.summary("nonlocal").difference
    assert got.mean == pytest.approx(np.mean(differences))
    assert got.seed_sd == pytest.approx(np.std(differences, ddof=1))


def test_failed_and_missing_trials_appear(study):
    results = load(study)
    row = results.summary("cbam")
    assert (row.done, row.failed, row.reason) == (1, 1, "out of memory: 3 GiB")
    assert row.difference.seeds == 1
    assert row.verdict == ""
    row = results.summary("criss_cross")
    assert (row.done, row.failed, row.miou, row.difference) == (0, 0, None, None)


def test_csv_has_a_row_a_trial(study):
    results = load(study)
    rows = list(csv.DictReader(write_csv(results).read_text().splitlines()))
    assert len(rows) == 15
    first = rows[0]
    assert (first["candidate"], first["seed"], first["status"]) == ("baseline", "0", "done")
    assert float(first["miou"]) == results.trials[0].miou
    assert float(first["iou even"]) == results.trials[0].iou[1]
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["reason"] == "out of memory: 3 GiB"
    assert failed["miou"] == ""


def test_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study.yaml is missing"):
        load(tmp_path)


def test_gain_over_the_control_is_told(study):
    results = load(study)
    of = {(t.candidate, t.seed): t.miou for t in results.trials}
    row = results.summary("nonlocal")
    assert row.over_control.mean == pytest.approx(np.mean([of["nonlocal", s] - of["control", s] for s in range(3)]))
    assert results.summary("control").over_control is None
    assert "and better than plain convolutions of the same size" in repr(results)


def test_text_fits_where_it_is_shown(study):
    results = load(study)
    for width in (80, 120):
        lines = table_lines(results.summaries, width)
        assert max(map(len, lines)) <= width
        assert "nonlocal" in lines[1]
    assert len(table_lines(results.summaries, 80)) > len(table_lines(results.summaries, 120))
    said = "\n".join(sentences(results.summaries, results.trials))
    assert "cbam: " in said
    assert "1 of 2 trials failed (out of memory: 3 GiB)" in said
    assert "Switched off at test time, nonlocal loses" in said


# ---- what makes a difference uncertain -------------------------------------------------------------------------------


def confusion_with(right):
    """Images whose first class is always right, and whose second is right on this share of 1000 pixels.

    The first class has so many pixels that mIoU is 50 + 50 times the mean share, whatever images are drawn.
    """
    right = np.round(1000 * np.asarray(right)).astype(np.int64)
    confusion = np.zeros((len(right), 2, 2), np.int64)
    confusion[:, 0, 0] = 10**9
    confusion[:, 1, 1], confusion[:, 1, 0] = right, 1000 - right
    return confusion


def study_of(folder, shares):
    """A study of trials with these shares; ``shares`` maps a candidate to one array (images,) a seed."""
    seeds = len(shares["baseline"])
    plan = Plan("scenes:lookup", tuple(name for name in shares if name != "baseline"), seeds=seeds)
    plan.save(folder / "study.yaml")
    for candidate, of_seeds in shares.items():
        for seed, right in enumerate(of_seeds):
            write_trial(folder, candidate, seed, confusion_with(right))
    return load(folder)


def test_images_on_which_seeds_err_in_turn_make_nothing_uncertain(tmp_path):
    """What counts is the mean over seeds of each image, not how much images differ under one of them."""
    first = np.arange(40) % 2
    shares = {"baseline": [np.full(40, 0.4)] * 2, "nonlocal": [first, 1 - first]}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.difference.mean == pytest.approx(5, abs=0.01)
    assert row.difference.half < 0.01
    assert row.verdict == "better"


def test_images_that_are_hard_for_both_make_no_difference_uncertain(tmp_path):
    """The same images are drawn for both sides of a difference."""
    hard = np.arange(40) % 4 / 4
    shares = {"baseline": [hard] * 2, "nonlocal": [hard + 0.1] * 2}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.miou.half > 5
    assert row.difference.half < 0.01
    assert row.difference.mean == pytest.approx(5, abs=0.01)


def test_images_that_differ_make_a_difference_uncertain(tmp_path):
    """As an average over images is: half = t(0.975, 1) times its standard error, where seeds agree."""
    gain = np.arange(100) % 2 * 0.4
    shares = {"baseline": [np.full(100, 0.5)] * 2, "nonlocal": [0.5 + gain] * 2}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.difference.half == pytest.approx(12.7062 * 50 * gain.std() / math.sqrt(100), rel=0.1)


def test_intervals_cover_as_often_as_they_say(tmp_path):
    """Seeds shift all images, images have a noise of their own that seeds share: 95 % of intervals hold the truth."""
    rng = np.random.default_rng(2)
    rounds, S, images, truth, seed_sd, image_sd = 100, 3, 40, 0.1, 0.02, 0.06
    covered = 0
    for n in range(rounds):
        hard = 0.5 + 0.1 * rng.standard_normal(images)
        gain = truth + seed_sd * rng.standard_normal(S)[:, None] + image_sd * rng.standard_normal(images)
        (tmp_path / str(n)).mkdir()
        shares = {"baseline": [hard] * S, "nonlocal": np.clip(hard + gain, 0, 1)}
        got = study_of(tmp_path / str(n), shares).summary("nonlocal").difference
        covered += got.low <= 50 * truth <= got.high
    assert covered >= 0.9 * rounds
