"""Intervals, verdicts and plans: by published tables, by hand, and by how often they are right."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lookfar.study.comparisons import Comparisons, Difference
from lookfar.study.groups import groups_of
from lookfar.study.intervals import Interval, dunnett
from lookfar.study.measured import Measured, measure
from lookfar.study.noise import moderated_variances, sample_covariance, sample_degrees
from lookfar.study.prospects import once, seeds_needed
from lookfar.study.verdicts import Terms, against_control, judge, trained_once, which_is_best
from lookfar.study.words import percent, plus_minus, points, signed
from lookfar.tasks import Segmentation

WORDS = Segmentation.words
TERMS = Terms(WORDS)


# ---- quantiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "row"),
    [
        (5, [3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97]),
        (10, [2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24]),
        (20, [2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95]),
    ],
)
def test_dunnett_is_the_published_table(degrees, row):
    """Dunnett 1964, two-sided 5 %, two to nine comparisons."""
    assert [round(dunnett(k, degrees), 2) for k in range(2, 10)] == row


@pytest.mark.parametrize(("comparisons", "degrees"), [(2, 1), (5, 2), (10, 4), (4, 400)])
def test_dunnett_by_its_definition(comparisons, degrees):
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((400_000, 1))
    largest = np.abs(rng.standard_normal((400_000, comparisons)) - reference).max(1) / math.sqrt(2)
    scale = np.sqrt(rng.chisquare(degrees, 400_000) / degrees)
    assert np.mean(largest / scale <= dunnett(comparisons, degrees)) == pytest.approx(0.95, abs=0.002)


def test_one_comparison_is_students():
    assert dunnett(1, 2) == pytest.approx(4.302653, abs=1e-6)


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_moderated_variances_are_right_on_average():
    """Own variances differ fiftyfold, seeds shift all: the pooled quarter-weight aside, each is its own."""
    rng = np.random.default_rng(1)
    sd, S = np.array([0.5, 1.0, 1.0, 3.5]), 3
    found = np.mean(
        [
            moderated_variances(rng.standard_normal((4, S)) * sd[:, None] + 5 * rng.standard_normal(S))
            for _ in range(5_000)
        ],
        0,
    )
    pooled = np.mean(sd**2)
    # cutting at 0 adds a little to the quiet ones
    assert found == pytest.approx((2 * pooled + 2 * sd**2) / 4, rel=0.15)


def test_moderated_variances_by_hand():
    scores = np.zeros((4, 2))
    scores[0] = [-3, 3]  # residuals are 3/4 of it, the others carry 1/4 each
    own = np.array([2 * 2.25**2, *[2 * 0.75**2] * 3])
    pooled = own.sum() / 3
    unbiased = np.maximum(2 * (own - own.sum() / 12), 0)
    assert pooled == pytest.approx(4.5)  # of four variances 18, 0, 0, 0 the mean
    assert moderated_variances(scores) == pytest.approx((2 * pooled + unbiased) / 3)


def test_samples_are_not_counted_twice():
    """What samples do to all seeds is their variance; what they do to one run is a seed's noise already."""
    rng = np.random.default_rng(2)
    shared, alone = [], []
    for _ in range(200):
        of_all, of_run = rng.standard_normal(30), rng.standard_normal((3, 30))
        facts = {("a", s): of_all + 2 * of_run[s] for s in range(3)}
        m = measure(facts, weighted_mean, range(30), resamples=200)
        shared.append(sample_covariance(m.draws, 30)[0, 0])
        m = measure({("a", s): of_run[s] for s in range(3)}, weighted_mean, range(30), resamples=200)
        alone.append(sample_covariance(m.draws, 30)[0, 0])
    assert np.mean(shared) == pytest.approx(1 / 30, rel=0.15)
    assert np.mean(alone) == pytest.approx(0, abs=0.003)
    assert np.mean(np.array(alone) < 0) > 0.3  # unbiased, so it must fall below 0 as well


def test_a_few_large_images_leave_few_degrees():
    rng = np.random.default_rng(6)

    def degrees(sizes, groups):
        found = []
        for _ in range(60):
            facts = {(c, s): rng.standard_normal(len(sizes)) for c in "abc" for s in range(2)}
            m = measure(facts, lambda f, w: w @ (f * sizes) / (w @ sizes), groups)
            found.append(sample_degrees(m.draws, m.drawn, m.groups))
        return np.array(found)

    equal = degrees(np.ones(40), range(40))
    assert np.median(equal) > 33
    assert equal.max() == 39  # never more than groups - 1
    one = degrees(np.where(np.arange(40) == 7, 200.0, 1.0), range(40))
    assert np.median(one) < 4
    assert (degrees(np.ones(3), range(3)) == 2).all()
    # groups count, not the images in them
    assert degrees(np.ones(40), [i // 8 for i in range(40)]).max() == 4


# ---- from facts ------------------------------------------------------------------------------------------------------


def weighted_mean(facts, weights):
    return weights @ facts / weights.sum(1)


def make_measured(scores, *, groups=1, draws=None):
    scores = np.asarray(scores, float)
    names = ("baseline", "control", *(f"b{k}" for k in range(len(scores) - 2)))
    if draws is None:
        draws = np.repeat(scores[..., None], 2, -1)
    return Measured(names, scores, draws, groups)


def test_groups_are_drawn_whole_and_alike_for_all():
    facts = {("a", 0): np.array([1.0, 1.0, 3.0, 3.0]), ("b", 0): np.array([2.0, 2.0, 6.0, 6.0])}
    m = measure(facts, weighted_mean, ["x", "x", "y", "y"])
    assert set(np.unique(m.draws[0])) == {1.0, 2.0, 3.0}
    np.testing.assert_array_equal(m.draws[1], 2 * m.draws[0])
    assert m.groups == 2
    # two groups: the mean of two draws has half the variance of one, 1/2 * 1 (population), times G / (G - 1)
    assert sample_covariance(m.draws[:1], 2)[0, 0] == pytest.approx(1.0, rel=0.1)


def test_a_score_that_is_no_number_counts_as_no_trial():
    facts = {("baseline", 0): np.ones(3), ("b", 0): np.array([1.0, np.nan, 1.0]), ("b", 1): np.ones(3)}
    m = measure(facts, weighted_mean, range(3), resamples=10)
    assert np.isnan(m.scores).tolist() == [[False, True], [True, False]]
    c = Comparisons(m, "baseline", 1)
    assert c.difference("b") is None  # no seed that both have
    assert c.mean("b").mean == 1.0


def test_draws_without_a_score_are_left_out_for_all():
    def mean_of_known(facts, weights):
        known = weights * np.isfinite(facts)
        with np.errstate(invalid="ignore"):
            return known @ np.nan_to_num(facts) / known.sum(1)

    values = np.array([1.0, 3.0, np.nan, np.nan])
    m = measure({("a", 0): values, ("b", 0): values + 1}, mean_of_known, range(4), resamples=500)
    assert 400 < m.draws.shape[-1] < 500  # one draw in sixteen holds no known sample
    np.testing.assert_allclose(m.draws[1], m.draws[0] + 1)


def test_no_trial_at_all():
    c = Comparisons(measure({}, weighted_mean, range(3)), "baseline", 2)
    assert c.difference("b") is None
    assert c.best(["b"]) is None


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_few_candidates_by_students_t():
    # differences 1, 2, 3: mean 2, s^2 = 1, half = t(0.975, 2) sqrt(1 / 3)
    d = Comparisons(make_measured([[5, 5, 5], [5, 6, 5], [6, 7, 8]]), "baseline", 1).difference("b0")
    assert d.of_seed == (1, 2, 3)
    assert not d.moderated
    assert (d.mean, d.degrees) == (2, 2)
    assert d.half == d.single.half == pytest.approx(4.302653 * math.sqrt(1 / 3), rel=1e-6)


def test_both_parts_have_their_own_degrees():
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((3, 5)) * 2
    facts = {(name, s): samples[c] + rng.standard_normal() for c, name in enumerate("abc") for s in range(3)}
    m = measure(facts, weighted_mean, range(5))
    d = Comparisons(m, "a", 1).difference("b")
    v = (samples[1] - samples[0]).var(ddof=1) / 5
    assert d.sample_variance == pytest.approx(v, rel=0.15)  # by resampling
    want = 4.302653**2 * np.var(d.of_seed, ddof=1) / 3 + stats.t.ppf(0.975, 4) ** 2 * d.sample_variance
    assert d.half == pytest.approx(math.sqrt(want), rel=1e-5)
    assert d.seeds_alone.half == pytest.approx(4.302653 * np.std(d.of_seed, ddof=1) / math.sqrt(3), rel=1e-5)


def test_moderated_and_simultaneous():
    rng = np.random.default_rng(4)
    m = make_measured(rng.standard_normal((5, 3)))
    d = Comparisons(m, "baseline", 3).difference("b1")
    a, b = moderated_variances(m.scores)[[3, 0]]
    variance = max(a + b, np.var(m.scores[3] - m.scores[0], ddof=1))
    assert d.moderated
    degrees = math.floor(10 * 4 * (a + b) ** 2 / (a**2 + b**2)) / 10
    assert 4 < d.degrees == degrees < 8
    assert d.half == pytest.approx(dunnett(3, degrees) * math.sqrt(variance / 3))
    assert d.single.half == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(variance / 3))
    alone = Comparisons(m, "baseline", 3).difference("control", alone=True)
    assert alone.interval == alone.single


def test_a_pair_that_scatters_more_than_its_parts_is_believed():
    d = Comparisons(make_measured(np.array([[0.0, 1, 2], [1, 1, 1], [2, 1, 0], [1, 1, 1]])), "baseline", 2).difference(
        "b0"
    )
    assert d.moderated
    assert d.seed_variance == np.var([2, 0, -2], ddof=1)


def test_a_missing_seed_is_nobody_elses_loss():
    rng = np.random.default_rng(5)
    whole = rng.standard_normal((6, 3))
    holed = whole.copy()
    holed[5, 1] = np.nan
    with_it, without = (Comparisons(make_measured(x), "baseline", 4) for x in (holed, whole[:5]))
    for name in ("b0", "b1", "b2"):
        assert with_it.difference(name) == without.difference(name)
    d = with_it.difference("b3")
    assert (d.seeds, d.degrees, d.moderated) == (2, 1, False)
    assert d.seed_variance == pytest.approx(np.var([d.of_seed], ddof=1))


def test_the_baselines_seeds_are_those_that_count():
    scores = np.random.default_rng(6).standard_normal((5, 3))
    scores[0, 1] = np.nan
    c = Comparisons(make_measured(scores), "baseline", 3)
    assert c.difference("b0").seeds == 2
    assert c.difference("b0").moderated


def test_equal_networks_are_equal():
    d = Comparisons(make_measured(np.tile([5.0, 6.0, 7.0], (5, 1))), "baseline", 3).difference("b0")
    assert (d.mean, d.half) == (0, 0)
    assert judge(d, TERMS).word == "practically the same"
    assert once(d).probability == 0.5
    assert seeds_needed(d, 0.5).most == 2


def test_one_seed():
    rng = np.random.default_rng(7)
    facts = {(name, 0): rng.standard_normal(20) for name in ("baseline", "control", "b0", "b1")}
    d = Comparisons(measure(facts, weighted_mean, range(20)), "baseline", 2).difference("b0")
    assert math.isnan(d.seed_variance)
    assert d.single.half == pytest.approx(stats.t.ppf(0.975, 19) * math.sqrt(d.sample_variance))
    assert d.sample_variance == pytest.approx((facts["b0", 0] - facts["baseline", 0]).var(ddof=1) / 20, rel=0.15)
    assert judge(d, TERMS).word == "seed noise not measured"
    assert seeds_needed(d, 0.5) is None
    assert math.isnan(once(d).probability)


def test_one_group_knows_nothing_of_other_samples():
    rng = np.random.default_rng(8)
    facts = {(name, s): rng.standard_normal(20) for name in ("baseline", "control", "b0") for s in range(3)}
    c = Comparisons(measure(facts, weighted_mean, ["clip"] * 20), "baseline", 1)
    d = c.difference("b0")
    assert math.isnan(d.sample_variance)
    assert d.interval == d.seeds_alone
    alone = measure({key: value for key, value in facts.items() if key[1] == 0}, weighted_mean, ["clip"] * 20)
    d = Comparisons(alone, "baseline", 1).difference("b0")
    assert math.isnan(d.half)
    where = Terms(WORDS, where="on this one sequence")
    assert judge(d, where).sentence.startswith(f"{signed(d.mean)} mIoU on this one sequence; seed noise not measured")


# ---- words -----------------------------------------------------------------------------------------------------------


def difference(mean, half, *, seeds=3, variance=1.0, samples=0.0, groups=100, degrees=4, low_seed=None):
    of_seed = (low_seed if low_seed is not None else mean, *[mean] * (seeds - 1))
    interval = Interval(mean, half)
    return Difference(
        "b", "baseline", of_seed, interval, interval, Interval(mean, half / 2) if seeds > 1 else None,
        variance, degrees, samples, groups, True, 3,
    )  # fmt: skip


def test_verdicts():
    assert judge(difference(2.0, 0.5), TERMS).sentence == "better by 2.0 ± 0.5 mIoU at 3 seeds"
    assert judge(difference(-2.0, 0.5), TERMS).sentence == "worse by 2.0 ± 0.5 mIoU at 3 seeds"
    small = judge(difference(0.3, 0.1), TERMS)
    assert small.word == "better"
    assert small.sentence.endswith(", within the 0.5 that count as practically the same")
    same = judge(difference(0.1, 0.3), TERMS)
    assert same.word == "practically the same"
    assert "between −0.2 and +0.4 mIoU" in same.sentence
    assert judge(difference(0.1, 0.3), Terms(WORDS, margin=0.2)).word == "open"
    left = judge(difference(2.4, 3.8), TERMS)
    assert left.word == "open"
    assert left.short == "open: −1.4 to +6.2"
    assert left.sentence.startswith("open: between −1.4 and +6.2 mIoU at 3 seeds; if the +2.4 is real, ")
    assert judge(difference(9.0, 0.5, seeds=2), TERMS).word == "first impression"
    assert judge(difference(9.0, 0.5, seeds=1), TERMS).word == "seed noise not measured"


def test_every_sentence_says_where():
    where = Terms(WORDS, where="on this one sequence")
    for d in (difference(m, h, seeds=s) for m, h in [(2, 1), (-2, 1), (0.1, 0.2), (1, 2)] for s in (1, 2, 3)):
        assert "on this one sequence" in judge(d, where).sentence
        assert "on this one sequence" in judge(d, where).short
        assert "difference detectable" not in judge(d, where).sentence


def test_few_groups_show_the_seeds_alone():
    assert "(seeds alone: between −3.0 and +5.0)" in judge(difference(1.0, 8.0, groups=3), TERMS).sentence
    assert "seeds alone" not in judge(difference(1.0, 8.0, groups=5), TERMS).sentence


def test_senseless_widths_are_not_shown():
    said = judge(difference(21.8, 129.7), TERMS)
    assert "129" not in said.sentence + said.short
    assert "too wide to show" in said.sentence
    assert "too wide to show" in plus_minus(21.8, 129.7)


def test_numbers_are_written_with_their_uncertainty():
    assert points(12.345, 0.6) == "12.3"
    assert points(12.345, 0.04) == "12.35"
    assert points(-0.04) == "0.0"
    assert signed(-1.25, 1.0) == "−1.2"
    assert signed(0.04, 1.0) == signed(-0.04, 1.0) == "+0.0"
    assert plus_minus(2.0, math.nan) == "2.0"
    assert [percent(p) for p in (0.9999, 0.5, 0.001)] == ["above 99 %", "50 %", "below 1 %"]


def test_control_is_named_with_its_size():
    said = against_control(difference(2.0, 0.5), TERMS, "convolutions of the same size (8 432 parameters)")
    assert said == "better than convolutions of the same size (8 432 parameters) (+2.0 ± 0.5)"
    assert against_control(difference(0.5, 2), TERMS, "it").startswith("not shown to be better than it")


# ---- which is best, training once, planning --------------------------------------------------------------------------


def test_which_is_best():
    rng = np.random.default_rng(9)
    scores = rng.standard_normal((6, 3)) * 0.1
    scores[4] += 3
    c = Comparisons(make_measured(scores), "baseline", 4)
    best = c.best(["b0", "b1", "b2", "b3"])
    assert best.first == "b2"
    assert best.shown
    assert best.probabilities["b2"] > 0.99
    assert [d.candidate for d in best.leads] == ["b2"] * 3
    other = best.leads[0].reference
    assert best.leads[0].half == c.difference(other, "b2").half
    assert which_is_best(best, {}, TERMS).startswith("b2 is the best of these: +")
    best = Comparisons(make_measured(rng.standard_normal((6, 3))), "baseline", 4).best(["b0", "b1", "b2", "b3"])
    assert not best.shown
    assert sum(best.probabilities.values()) == pytest.approx(1)
    assert list(best.probabilities.values()) == sorted(best.probabilities.values(), reverse=True)


def test_the_best_is_rarely_named_wrongly():
    """Four equal blocks, on samples that all share: naming any of them the best is false."""
    rng = np.random.default_rng(10)
    wrong, likely = 0, []
    for _ in range(200):
        samples = rng.standard_normal((6, 1, 20)) * 3
        values = samples + rng.standard_normal((6, 3, 1))
        names = ("baseline", "control", "b0", "b1", "b2", "b3")
        facts = {(name, s): values[c, s] for c, name in enumerate(names) for s in range(3)}
        best = Comparisons(measure(facts, weighted_mean, range(20), resamples=100), "baseline", 4).best(names[2:])
        wrong += best.shown
        likely.append(best.probabilities[names[2]])
    assert wrong <= 10
    assert np.mean(likely) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("seed", range(6))
def test_a_score_that_should_be_low_is_judged_as_its_mirror_image(seed):
    rng = np.random.default_rng(seed)
    names = ["baseline", "control", "b0", "b1", "b2"]
    shift = 0.4 * rng.standard_normal(5)
    values = shift[:, None, None] + 0.1 * rng.standard_normal((5, 3, 1)) + rng.standard_normal(20)
    facts = {(name, s): values[c, s] for c, name in enumerate(names) for s in range(3)}
    high = Comparisons(measure(facts, weighted_mean, range(20), resamples=100), "baseline", 3)
    low = Comparisons(
        measure({t: -f for t, f in facts.items()}, weighted_mean, range(20), resamples=100), "baseline", 3, higher=False
    )
    lower = Terms(WORDS, higher=False)
    for name in names[2:]:
        a, b = high.difference(name), low.difference(name)
        assert a.mean == pytest.approx(-b.mean)
        assert (a.gain, a.gains, a.loses) == (pytest.approx(b.gain), b.gains, b.loses)
        assert judge(a, TERMS).word == judge(b, lower).word
        assert against_control(a, TERMS, "it").partition("(")[0] == against_control(b, lower, "it").partition("(")[0]
        once_a, once_b = once(a), once(b)
        assert (once_a.wins, once_a.worst) == (once_b.wins, pytest.approx(-once_b.worst))
        assert once_a.probability == pytest.approx(once_b.probability)
    best, worst = high.best(names[2:]), low.best(names[2:])
    assert (best.first, best.shown) == (worst.first, worst.shown)
    assert best.probabilities[best.first] == pytest.approx(worst.probabilities[best.first], abs=0.05)  # other draws


def test_training_once():
    d = difference(1.0, 0.5, variance=0.75, low_seed=-0.5)
    got = once(d)
    assert (got.wins, got.seeds, got.worst) == (2, 3, -0.5)
    assert got.probability == pytest.approx(stats.t.cdf(1.0 / math.sqrt(0.75 * 4 / 3), 4))
    assert got.failures_possible == pytest.approx(1 - 0.05 ** (1 / 3))  # 63 %
    failed = once(d, failed=1)
    assert failed.seeds == 4
    assert failed.probability == pytest.approx(0.75 * got.probability)
    assert "its 1 failed trial counted as a loss" in trained_once(failed, d.seeds)
    assert trained_once(got, 3).startswith("wins 2 of 3 seeds, at worst −0.5")


def test_seeds_needed_by_hand():
    d = difference(1.0, 1.5, variance=0.5)
    got = seeds_needed(d, 0.5)
    upper = 0.5 * 4 / stats.chi2.ppf(0.1, 4)

    def enough(N):
        return (stats.t.ppf(0.975, N + 1) + stats.t.ppf(0.8, N + 1)) ** 2 * upper / N <= 1

    assert enough(got.most)
    assert not enough(got.most - 1)
    assert got.fewest < got.most
    assert seeds_needed(d, 10.0).effect == 10
    # 7.84 v > 1
    assert not seeds_needed(dataclasses.replace(d, sample_variance=0.128), 0.5).reachable
    assert seeds_needed(dataclasses.replace(d, sample_variance=0.12), 0.5).reachable
    assert "whatever the seeds" in judge(dataclasses.replace(d, sample_variance=0.128), TERMS).sentence


def test_planned_seeds_find_the_effect_in_four_of_five():
    """Where the variance is known: N seeds, moderated, one comparison."""
    d = difference(1.5, 3.0, variance=2.0, degrees=10**6)
    N = seeds_needed(d, 0.5).most
    rng, found = np.random.default_rng(11), 0
    for _ in range(1000):
        scores = rng.standard_normal((6, N))
        scores[2] += 1.5
        found += Comparisons(make_measured(scores), "baseline", 4).difference("b0").single.low > 0
    assert 0.76 < found / 1000 < 0.9


# ---- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (["a/1", "a/2", "b/1", "b/2"], 2),  # folders
        (["v/a/1", "v/a/2", "v/b/1", "v/b/2", "v/b/3"], 2),  # folders below one that all share
        (["a_001", "a_002", "b_001", "b_002"], 2),  # sequences
        (["a_1_leftImg8bit.png", "a_2_leftImg8bit.png", "b_1_leftImg8bit.png", "b_2_leftImg8bit.png"], 2),
        (["a_10", "a_20", "b_10", "b_20"], 2),  # a digit that all share
        (["img_001", "img_002", "img_003"], 3),  # one beginning
        (["000001_10", "000002_10", "000003_10"], 3),
        (["x", "y", "z"], 3),
        (["a1", "b1", "c1", "c2"], 4),  # too few in each
    ],
)
def test_groups_from_names(names, number):
    groups = groups_of(names)
    assert groups.number == number
    assert (groups.noun == "image") == (number == len(names))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/clip1/1", "cat/clip1/2", "dog/clip2/1", "dog/clip2/2", "dog/clip1/3"], "11221"),
        (["cat/p1_1.png", "cat/p2_1.png", "dog/p1_2.png", "dog/p2_2.png"], "1212"),
        (["cat/cat_1", "cat/cat_2", "dog/dog_1", "dog/dog_2"], None),
        (["n01/1.png", "n01/2.png", "n02/3.png", "n02/4.png"], None),
        (["n01/img_1.png", "n01/img_2.png", "n02/img_3.png", "n02/img_4.png"], None),
    ],
)
def test_groups_are_looked_for_within_classes(names, labels):
    """The folder of a class is no group, nor is a beginning that only repeats it."""
    found = groups_of(names, classes=True)
    same = [[a == b for a in found.labels] for b in found.labels]
    want = labels or range(len(names))
    assert same == [[a == b for a in want] for b in want]


def test_groups_by_a_pattern():
    names = ["0016E5_01", "0016E5_02", "0001TP_03"]
    assert groups_of(names, "^[^_]+", noun="sequence").labels == ("0016E5", "0016E5", "0001TP")
    assert groups_of(names, "^0*([0-9]+)").labels == ("16", "16", "1")
    assert str(groups_of(names[:2], "^[^_]+", noun="sequence")) == "1 sequence"
    assert str(groups_of(names, "^[^_]+")) == "2 groups of images"
    assert str(groups_of(["a_1", "a_2", "b_1", "b_2"], "none")) == "4 images"
    with pytest.raises(ValueError, match="finds nothing in the image '0016E5_01'"):
        groups_of(names, "x")
    with pytest.raises(ValueError, match=r"groups must be a regular expression or none, got '\('"):
        groups_of(names, "(")


# ---- how often it is right -------------------------------------------------------------------------------------------


def load_coverage():
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage = load_coverage()


@pytest.mark.slow
@pytest.mark.parametrize("world", [w for w in coverage.WORLDS if w.promised and not w.right], ids=lambda w: w.name)
def test_intervals_and_verdicts_are_right_as_often_as_they_say(world):
    """The whole table is in docs/statistics.md; here the hardest cells of each world."""
    for blocks, seeds in ((1, 3), (2, 3), (5, 5)):
        (cell,) = coverage.simulate(world, (blocks,), seeds, 500)
        # 5 % of 500 studies have a standard error of 1 %
        assert cell.coverage > 0.935 - 0.01, (blocks, seeds, cell)
        assert cell.false < 0.085 + 0.01, (blocks, seeds, cell)


@pytest.mark.slow
@pytest.mark.parametrize("world", [w for w in coverage.WORLDS if w.right], ids=lambda w: w.name)
def test_intervals_for_accuracy_are_right_as_often_as_they_say(world):
    """Samples that are right or wrong; the standard error of a share of 5 % of 200 studies is 1.5 %."""
    (cell,) = coverage.simulate(world, (2,), 3, 200)
    assert cell.coverage > 0.935 - 0.03, cell
    assert cell.false < 0.085 + 0.03, cell


def test_samples_are_right_as_often_as_a_world_says():
    rng = np.random.default_rng(0)
    for world in (w for w in coverage.WORLDS if w.right):
        facts = [coverage.study(world, ("baseline", "control", "block"), 3, rng)[0] for _ in range(40)]
        values = np.stack([of_trial[:, 0] for facts_of in facts for of_trial in facts_of.values()])
        assert len(np.unique(values)) == 2
        assert abs((values > 0).mean() - world.right) < 0.01
