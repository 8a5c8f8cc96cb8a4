"""Which cheaper block would do: words by known intervals, by how often they are right, on networks that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import tiny_data
from torch import nn

from lookfar import insert
from lookfar._drawing import randomise
from lookfar.data import MemorySamples
from lookfar.diagnostics import ablations
from lookfar.study.ablations import measure_ablations
from lookfar.study.groups import groups_of
from lookfar.study.ladder import tell, tell_changes, unlearned
from lookfar.study.measured import scored_groups
from lookfar.study.rungs import Rung, climb, rungs_for
from lookfar.tasks import Segmentation
from lookfar.training import evaluate

ALL = rungs_for("nonlocal")
KINDS = {"o": "off", "u": "uniform", "m": "mean", "x": "other"}
INTERVALS = {
    "same": (0.0, -0.2, 0.2),
    "needed": (3.0, 2.0, 4.0),
    "open": (0.4, -0.1, 0.9),
    "harm": (-0.3, -0.5, -0.1),
    "unknown": (0.0, float("nan"), float("nan")),
}


@pytest.mark.parametrize(
    ("rungs", "word"),
    [
        ("o same", "off"),
        ("o harm", "harms"),
        ("o harm, m same", "harms"),
        ("o needed, u same, m same, x same", "pools"),
        ("o needed, u needed, m same, x needed", "one map"),
        ("o needed, u needed, m needed, x same", "follows the place"),
        ("o needed, u open, m open, x same", "follows the place"),  # a higher rung decides
        ("o open, u open, m open, x open", "open"),
        ("o needed, u needed, m needed, x open", "open"),
        ("o needed, u open, m needed, x needed", "open"),  # an average may do where one map does not
        ("o needed, u needed, m needed, x needed", "depends on its query"),
        ("o needed, u harm, m needed, x needed", "pools"),
        ("o unknown, u unknown, m unknown, x unknown", "open"),
    ],
)
def test_words(rungs, word):
    pairs = [one.split() for one in rungs.split(", ")]
    made = [Rung(KINDS[kind], *INTERVALS[of]) for kind, of in pairs]
    assert climb(made[::-1], [KINDS[kind] for kind, _ in pairs]).word == word


def test_only_rungs_that_are_fair_count():
    """The mean map of a window is no map of it, whatever it costs; of a block without maps there is nothing but off."""
    assert rungs_for("local_attention") == rungs_for("criss_cross") == ("off", "other")
    rungs = [Rung("off", 3, 2, 4), Rung("mean", 0, -0.1, 0.1), Rung("other", 3, 2, 4)]
    assert climb(rungs, ("off", "other")).word == "depends on its query"
    assert climb(rungs, ("off",)).word == "on"
    found = climb(rungs, ALL)  # no plain average was measured, which might do
    assert (found.word, found.missing) == ("one map", ("uniform",))
    found = climb([rungs[0], rungs[2]], ALL)
    assert (found.word, found.missing) == ("open", ("uniform", "mean"))


# ---- how often it is right -------------------------------------------------------------------------------------------


def mean_score(facts, weights):
    return weights @ facts / weights.sum(1)


def world(rng, loss, *, images=60, seeds=1, seed_noise=0.0, size=1):
    """Scores of images in points: what each rung loses scatters over images, by 2, and over seeds."""
    full, without = {}, {kind: {} for kind in ALL}
    of_image = {kind: rng.normal(0, 1, images) for kind in ALL}
    for seed in range(seeds):
        full[seed] = 80 + rng.normal(0, 5, images).round(3)
        for kind in ALL:
            noise = of_image[kind] + rng.normal(0, 1.5, images) + rng.normal(0, 1) * seed_noise
            without[kind][seed] = full[seed] - loss[kind] - noise
    labels = [f"{i // size}_{i % size}" for i in range(images)]
    return full, without, groups_of(labels, "^[^_]+" if size > 1 else "none")


def told_of_worlds(loss, number, **options):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(number):
        full, without, groups = world(rng, loss, **options)
        found.append(tell(full, without, mean_score, groups, ALL, 0.5))
    return found


@pytest.mark.parametrize(
    ("number", "options"), [(300, {}), (100, {"seeds": 3, "seed_noise": 0.3}), (200, {"size": 4})], ids=str
)
def test_what_costs_the_margin_is_rarely_called_equivalent(number, options):
    """Every rung costs just the margin, the worst case: 5 in 100 at most, with room for chance."""
    found = told_of_worlds(dict.fromkeys(ALL, 0.5), number, **options)
    wrong = np.mean([told.word in ("off", "pools", "one map", "follows the place") for told in found])
    assert wrong <= 0.05, wrong


@pytest.mark.parametrize(("number", "options"), [(300, {}), (100, {"seeds": 3, "seed_noise": 0.3})], ids=str)
def test_what_costs_nothing_is_rarely_called_needed(number, options):
    found = told_of_worlds(dict.fromkeys(ALL, 0.0), number, **options)
    wrong = np.mean([any(rung.needed for rung in told.verdict.rungs) for told in found])
    assert wrong <= 0.05, wrong


def test_what_is_clear_is_found():
    costs = {"off": 6.0, "uniform": 5.0, "mean": 0.0, "other": 4.0}
    found = told_of_worlds(costs, 40, images=400)
    assert np.mean([told.word == "one map" for told in found]) > 0.9
    found = told_of_worlds(costs | {"mean": 4.0}, 40, seeds=3, seed_noise=0.3)
    assert np.mean([told.word == "depends on its query" for told in found]) > 0.9


def test_as_many_images_as_it_asks_for_decide():
    """In four cases of five, were the loss what was measured."""
    rng = np.random.default_rng(3)
    full, without, groups = world(rng, dict.fromkeys(ALL, 6.0), images=40)
    shift = without["mean"][0] - full[0]
    without["mean"][0] = full[0] + shift - shift.mean() - 0.2
    (open_one,) = tell(full, without, mean_score, groups, ALL, 0.5).verdict.open
    assert open_one.images is not None
    again = told_of_worlds(dict.fromkeys(ALL, 6.0) | {"mean": 0.2}, 100, images=open_one.images)
    assert 0.65 < np.mean([told.word == "one map" for told in again]) < 0.95


# ---- what is drawn, and what is said ---------------------------------------------------------------------------------


def test_a_score_that_should_be_low_is_told_as_its_mirror_image():
    full, without, groups = world(np.random.default_rng(1), {"off": 3, "uniform": 2, "mean": 0, "other": 1}, images=200)
    mirrored = {kind: {s: -of for s, of in by_seed.items()} for kind, by_seed in without.items()}
    told = tell(full, without, mean_score, groups, ALL, 0.5)
    other = tell({0: -full[0]}, mirrored, mean_score, groups, ALL, 0.5, higher=False)
    assert told.word == other.word
    assert str(told) == str(other)
    assert [rung.loss for rung in told.verdict.rungs] == pytest.approx([r.loss for r in other.verdict.rungs])


def test_one_sequence_says_so_and_several_count_as_few():
    full, without, _ = world(np.random.default_rng(1), dict.fromkeys(ALL, 3.0))
    without["off"][0] -= np.tile([-2.0, 1.0, 3.0, -2.0], 15)  # frames of one clip err alike
    alone = tell(full, without, mean_score, groups_of(["a"] * 60, "a", noun="sequence"), ALL, 0.5)
    assert "to this network on this one sequence" in str(alone)
    four = tell(full, without, mean_score, groups_of([*"abcd"] * 15, "."), ALL, 0.5)
    assert "sequence" not in str(four)
    widths = [told.verdict.rungs[0].high - told.verdict.rungs[0].low for told in (alone, four)]
    assert 1.5 * widths[0] < widths[1]


def test_seeds_tell_of_the_block_and_one_seed_of_its_network():
    full, without, groups = world(np.random.default_rng(1), dict.fromkeys(ALL, 5.0), seeds=3, seed_noise=4.0)
    told = tell(full, without, mean_score, groups, ALL, 0.5)
    assert told.word == "open"
    assert len(told.by_seed) == 3
    first, second, third = told.by_seed
    assert f"over 3 seeds (seed by seed: {first}, {second}, {third})" in str(told)
    assert "over 3 seeds (each by itself off)" in str(replace(told, by_seed=("off",) * 3))
    assert "over 3 seeds," in str(replace(told, by_seed=("open",) * 3))
    one = {kind: {1: by_seed[1]} for kind, by_seed in without.items()}
    alone = tell(full, one, mean_score, groups, ALL, 0.5, entropy=0.01)
    assert (alone.seeds, alone.word) == (1, told.by_seed[1])
    assert "to this network" in str(alone)
    assert "Saturated: entropy 0.01 of ln M" in str(alone)
    nothing = tell(full, {}, mean_score, groups, ALL, 0.5)
    assert str(nothing).startswith("open: too little was measured")
    lonely = tell({0: full[0][:1]}, {"off": {0: full[0][:1]}}, mean_score, groups_of(["a"]), ("off",), 0.5)
    assert lonely.word == "open"  # one image knows no noise


# ---- networks that are known -----------------------------------------------------------------------------------------


class Host(nn.Module):
    """Its predictions hang on what the block adds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1, bias=False)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + 0.0)


def network_with(text, spoil):
    torch.manual_seed(0)
    network = Host()
    names = insert(network, text, at="first", example=torch.randn(1, 3, 8, 8))
    block = randomise(network.get_submodule(names[0]))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(2)
        spoil(block)
    return network.eval(), names


def told_by_itself(network, names):
    """With its own predictions for labels, and without any."""
    data, task = tiny_data(val=40), Segmentation()
    with torch.no_grad():
        images = [data.val[i][0] for i in range(40)]
        own = network(data.normalise(torch.stack(images))).argmax(1).byte()
    data.val = MemorySamples(torch.stack(images), own, [str(i) for i in range(40)])
    data.classes = ["a", "b", "c"]
    options = {"batch_size": 16, "precision": "32-true", "score": "resized"}
    found, reason = measure_ablations(network, names, data, task, data.val, **options)
    full, groups = task.facts(evaluate(network, data, task)), groups_of(data.val.names, "none")
    asked = rungs_for(network.get_submodule(names[0]))
    told = tell({0: full}, {k: {0: of} for k, of in found.items()}, task.score, groups, asked, 0.5, reason=reason)
    counts = ablations(network, names, (images for images, _ in data.val_batches(16)), kinds=asked).counts
    return told, tell_changes({kind: of.numpy() for kind, of in counts.items()}, groups, asked, 0.5)


def no_query(block):
    block.query.weight.zero_()


@pytest.mark.parametrize(
    ("text", "spoil", "words"),
    [
        ("nonlocal", no_query, {"one map", "pools", "off"}),
        ("nonlocal", lambda block: None, {"depends on its query"}),
        ("local_attention", no_query, {"follows the place"}),
        ("global_context", lambda block: None, {"one map", "pools"}),
        ("squeeze_excitation", lambda block: None, {"on"}),
        ("nonlocal", lambda block: (block.norm.weight.zero_(), block.norm.bias.zero_()), {"off"}),
    ],
)
def test_networks_that_are_known(text, spoil, words):
    labelled, unlabelled = told_by_itself(*network_with(text, spoil))
    assert labelled.word in words, str(labelled)
    assert unlabelled.word in words, str(unlabelled)
    if labelled.word != "off":
        assert "Changes say nothing of use" in str(unlabelled)
        assert "points" not in str(unlabelled)


def test_changes_without_off_are_held_against_nothing():
    counts = {"other": np.array([[10.0, 3.0, 0.0]] * 4)}
    told = tell_changes(counts, groups_of(list("abcd"), "none"), ["other"], 0.5, reason="nothing is left without it")
    assert str(told) == "open: too little was measured. Nothing is left without it."


def outcomes(images, changed=0, seed=0):
    """Facts of a classification, right in nine of ten; the same without the block, but for a few, and its logits."""
    rng = np.random.default_rng(seed)
    hit, confidence = rng.random(images) < 0.9, rng.random(images)
    other = hit.copy()
    other[:changed] ^= True
    full = np.stack([hit, confidence], 1).astype(float)
    return full, np.stack([other, confidence * 0.9], 1)


def accuracy(facts, weights):
    return 100 * weights @ facts[:, 0] / weights.sum(1)


def told_of_outcomes(images, changed=0, same=False):
    full, other = outcomes(images, changed)
    return tell(
        {0: full}, {"off": {0: full if same else other}}, accuracy, groups_of([""] * images, "none"), ("off",), 0.5
    )


def test_outcomes_that_never_changed_may_yet():
    """Three in so many, once in 20 times: few images show no noise, which is not to have none."""
    (rung,) = told_of_outcomes(40).verdict.rungs
    assert (rung.loss, rung.high) == (0, pytest.approx(100 * (1 - 0.05 ** (1 / 40))))
    assert (1 - rung.high / 100) ** 40 == pytest.approx(0.05)
    assert told_of_outcomes(40).word == "open"
    assert rung.images == pytest.approx(598, abs=1)
    assert told_of_outcomes(rung.images - 2).word == "open"
    assert told_of_outcomes(rung.images).word == "off"
    # and one that did change is not less of a doubt
    assert (
        told_of_outcomes(rung.images, changed=1).verdict.rungs[0].high
        > told_of_outcomes(rung.images).verdict.rungs[0].high
    )
    # where logits too are the same to the bit, the network is the same, whatever the image
    assert told_of_outcomes(3, same=True).word == "off"


def changes(images, off, other=0, size=1):
    """Counts of predictions: so many images change without the block, so many of these with another map."""
    counts = {kind: np.tile([size, 0, 0], (images, 1)) for kind in ALL}
    counts["off"][:off, 1:] = size
    for kind in ALL[1:]:
        counts[kind][:other, 1:] = size
    return counts


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"images": 24, "off": 0}, "open"),
        ({"images": 24, "off": 0, "size": 4096}, "off"),  # pixels of a map
        ({"images": 600, "off": 0}, "off"),
        ({"images": 40, "off": 20}, "open"),  # 0 of 20 says less than 5 % only where there are 59
        ({"images": 140, "off": 70}, "pools"),
        ({"images": 40, "off": 40, "other": 40}, "depends on its query"),
    ],
)
def test_changed_outcomes_of_few_images(found, word):
    told = tell_changes(changes(**found), groups_of([""] * found["images"], "none"), ALL, 0.5)
    assert told.word == word, told
    assert all(rung.low >= 0 for rung in told.verdict.rungs), "no share is negative"
    assert "Not measured" not in str(told)
    assert "need" not in told.why
    assert " well" not in told.why


def test_images_that_would_decide_are_such_as_off_changes():
    told = tell_changes(changes(40, 20), groups_of([""] * 40, "none"), ALL, 0.5)
    assert {rung.images for rung in told.verdict.open} == {117}  # half of them, and 59 are wanted


def test_a_block_that_adds_nothing_needs_no_images_to_say_so():
    groups = groups_of([""] * 5, "none")
    assert tell_changes(changes(5, 0), groups, ALL, 0.5, adds=False).word == "off"
    assert tell_changes(changes(5, 0), groups, ALL, 0.5, adds=True).word == "open"


def test_one_image_several_times_knows_nothing_of_others():
    counts = changes(6, 6, size=100)
    counts["off"][:, 1:] = 30
    told = tell_changes(counts, groups_of([""] * 6, "none"), ("off",), 0.5)
    assert told.word == "open"
    assert "too wide to show" in told.why


def test_without_labels_a_block_is_not_called_needed():
    counts = changes(50, 50, size=100)
    counts["off"][:, 1:] = np.random.default_rng(0).integers(20, 40, (50, 1))
    told = tell_changes(counts, groups_of([""] * 50, "none"), ("off",), 0.5)
    assert str(told).startswith("on: without it predictions change. ")


def test_networks_that_learned_nothing_are_not_asked():
    """Nothing costs them anything, which a verdict would take for a block that a plain average replaces."""
    task, groups = Segmentation(), groups_of(list("abcdef"), "none")
    commonest = np.array([[[90.0, 0], [90, 10], [100, 0]]] * 6)  # hits, truth, predicted
    taught = np.array([[[90.0, 5], [90, 10], [95, 5]]] * 6)

    def told(*networks):
        full = dict(enumerate(networks))
        without = dict.fromkeys(ALL, full)
        return tell(full, without, task.score, groups, ALL, 0.5, unlearned=unlearned(task, full))

    assert told(taught).word == told(taught, taught).word == "off"
    assert str(told(commonest)) == (
        "open: nothing was learned that a block could be needed for: the network does not beat always naming the "
        "commonest class (45.0 % mIoU)."
    )
    assert "its 2 networks do not beat" in str(told(commonest, commonest))
    assert told(commonest, taught).word == "off"  # on average they do


def test_images_without_a_label_tell_nothing_of_others():
    """Of three images one has labels: that it costs nothing there holds there alone, over however many seeds."""

    def of(right):
        return np.array([[0, 0], [0, 0], [right, 100]], float)

    def share(facts, weights):
        with np.errstate(invalid="ignore"):
            return 100 * (weights @ facts)[:, 0] / (weights @ facts)[:, 1]

    groups = groups_of([""] * 3, "none")
    assert scored_groups(groups, {0: of(80)}, share).number == 1
    full, without = {0: of(80), 1: of(84)}, {kind: {0: of(80), 1: of(84)} for kind in ALL}
    told = tell(full, without, share, groups, ALL, 0.5)
    assert "over 2 seeds (each by itself open) on this one image" in told.why
    assert tell({0: of(80)}, {kind: {0: of(80)} for kind in ALL}, share, groups, ALL, 0.5).word == "open"
    two = np.array([[0, 0], [70, 100], [80, 100]], float)
    assert scored_groups(groups, {0: two}, share) == groups
    assert "image" not in tell({0: two}, {kind: {0: two} for kind in ALL}, share, groups, ("off",), 0.5).why


def test_a_single_image_says_so():
    full = {0: np.array([80.0]), 1: np.array([84.0])}
    told = tell(full, dict.fromkeys(ALL, full), mean_score, groups_of([""], "none"), ALL, 0.5)
    assert "on this one image" in told.why
