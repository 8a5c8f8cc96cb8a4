"""Classification: numbers against plain definitions, what is kept of an image, losses, mixing, and its size."""

import math

import numpy as np
import pytest
import torch
from bright import bright_data
from torch import nn
from torch.nn import functional as F

from lookfar.tasks import Classification, find_task
from lookfar.tasks.classification import balanced_accuracy, calibration_error
from lookfar.training import Settings, evaluate, train
from lookfar.training.optimization import set_random_state


def outputs(S: int = 60, K: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = (K * torch.rand(S, generator=generator) ** 3).long()  # the first classes are common, the last ones rare
    logits = 2 * torch.randn(S, K, generator=generator, dtype=torch.float64)
    logits[torch.arange(S), truth] += 2
    return logits, truth


def judged(logits: torch.Tensor, truth: torch.Tensor, **options) -> tuple[Classification, dict[str, np.ndarray]]:
    task = Classification(**options)
    return task, {name: values.numpy() for name, values in task.judge(logits, truth).items()}


def test_scores_are_what_their_names_say():
    logits, truth = outputs()
    task, kept = judged(logits, truth)
    p = logits.softmax(1)
    named = [int(row.argmax()) for row in p]
    hits = [int(a) == int(b) for a, b in zip(named, truth)]
    by_class = {k: [h for h, t in zip(hits, truth) if t == k] for k in range(12)}
    scores = task.scores(kept)
    assert scores["accuracy"] == pytest.approx(sum(hits) / 60)
    assert scores["balanced"] == pytest.approx(np.mean([np.mean(h) for h in by_class.values() if h]))
    assert scores["class accuracy"] == [pytest.approx(np.mean(h)) if h else None for h in by_class.values()]
    assert scores["top5"] == pytest.approx(
        np.mean([int(t) in sorted(range(12), key=lambda k: -row[k])[:5] for row, t in zip(p, truth)])
    )
    assert scores["nll"] == pytest.approx(float(F.cross_entropy(logits, truth)), rel=1e-6)
    of_bins: dict[int, list[tuple[float, bool]]] = {}
    for row, hit in zip(p, hits):
        confidence = float(row.max())
        of_bins.setdefault(math.ceil(15 * confidence), []).append((confidence, hit))
    error = sum(abs(sum(h - c for c, h in one)) for one in of_bins.values()) / 60
    assert scores["ece"] == pytest.approx(error, abs=1e-7)
    facts = task.facts(kept)
    assert task.further(facts) == {
        "balanced": pytest.approx(100 * scores["balanced"]),
        "top5": pytest.approx(100 * scores["top5"]),
        "nll": pytest.approx(scores["nll"]),
        "ece": pytest.approx(100 * scores["ece"]),
    }
    assert task.blind(facts) == pytest.approx(100 * max(len(h) for h in by_class.values()) / 60)


@pytest.mark.parametrize("metric", ["accuracy", "balanced"])
def test_the_score_of_weighted_samples_is_that_of_samples_written_several_times(metric):
    logits, truth = outputs(40, 4)
    task, kept = judged(logits, truth, metric=metric)
    weights = np.random.default_rng(0).integers(0, 4, (5, 40)).astype(float)
    weights[1, truth.numpy() == 2] = 0  # a class that this set does not show
    for row, found in zip(weights, task.score(task.facts(kept), weights)):
        again = {name: np.repeat(values, row.astype(int)) for name, values in kept.items()}
        assert found == pytest.approx(100 * task.scores(again)[metric])
    assert np.isnan(task.score(task.facts(kept), np.zeros((1, 40)))).all()


def test_class_by_class_it_is_the_share_that_is_named_right():
    for metric in ("accuracy", "balanced"):
        task, kept = judged(*outputs(50, 6), metric=metric)
        facts = task.facts(kept)
        kept["truth"][kept["truth"] == 5] = 4  # a class that no image shows
        facts = task.facts(kept)
        assert task.classes(facts) == 6
        for k, wanted in enumerate(task.scores(kept)["class accuracy"]):
            of_class = task.of_class(facts, k)
            found = task.score(of_class, np.ones((1, len(of_class))))[0]
            assert task.truth(facts, k).sum() == len(of_class)
            assert np.isnan(found) if wanted is None else found == pytest.approx(100 * wanted)
        matrix = task.confusion(kept)
        assert matrix.shape == (6, 6)
        for t, p in np.ndindex(6, 6):
            assert matrix[t, p] == ((kept["truth"] == t) & (kept["prediction"] == p)).sum()


def test_even_classes_have_no_column_for_balance_and_few_classes_none_for_top_5():
    task, kept = judged(torch.eye(4, dtype=torch.float64), torch.arange(4))
    assert np.isnan(task.further(task.facts(kept))["balanced"])
    assert np.isnan(task.further(task.facts(kept))["top5"])
    assert task.scores(kept)["top5"] is None
    truth = torch.tensor([0] * 7 + [1] * 2)
    task, kept = judged(torch.eye(2)[torch.zeros(9, dtype=torch.long)], truth)
    assert task.further(task.facts(kept))["balanced"] == pytest.approx(50)
    balanced, kept = judged(torch.eye(2)[torch.zeros(9, dtype=torch.long)], truth, metric="balanced")
    assert balanced.further(balanced.facts(kept))["accuracy"] == pytest.approx(700 / 9)
    assert balanced.blind(balanced.facts(kept)) == 50
    assert balanced.scores(kept)[balanced.metric] == pytest.approx(0.5)


def test_a_network_that_says_the_same_of_all_is_in_no_top_5_by_ties():
    task, kept = judged(torch.zeros(100, 100), torch.arange(100))
    assert task.scores(kept)["top5"] <= 0.06
    assert task.scores(kept)["accuracy"] == pytest.approx(0.01)


def test_confidence_that_is_right_has_no_calibration_error():
    hit = np.array([1] * 9 + [0])
    assert calibration_error(hit, np.full(10, 0.9)) == pytest.approx(0)
    assert calibration_error(hit, np.full(10, 1.0)) == pytest.approx(0.1)
    assert calibration_error(np.array([1, 0]), np.array([0.95, 1 / 15])) == pytest.approx((0.05 + 1 / 15) / 2)
    assert np.isnan(calibration_error(hit, np.full(10, np.nan)))


def test_logits_of_half_precision_and_of_any_size_are_judged_in_single():
    logits, truth = outputs()
    _, exact = judged(logits, truth)
    _, half = judged(logits.bfloat16(), truth)
    assert half["log_probability"].dtype == np.float32
    np.testing.assert_allclose(half["log_probability"], exact["log_probability"], atol=0.1)
    _, large = judged(1e4 * logits, truth)
    assert np.isfinite(large["log_probability"]).all()
    _, broken = judged(torch.full((3, 4), torch.nan), torch.arange(3))
    scores = Classification().scores(broken)
    assert scores["nll"] is scores["ece"] is None


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"truth": np.array([0, 1, 12])}, False),
        ({"prediction": np.array([0, -1, 2])}, False),
        ({"classes": np.array([12, 12, 11])}, False),
        ({"truth": np.array([0.5, 1, 2])}, False),
        ({"confidence": np.array([0.5, np.nan, 0.5])}, False),
        ({"top5": np.array([1, 1])}, False),
        ({"more": np.zeros(3)}, False),
    ],
)
def test_arrays_that_can_be_what_was_judged(change, fits):
    task, kept = judged(*outputs(3))
    assert task.fits(kept | change, samples=3, classes=12) == fits
    assert not task.fits(kept, samples=4)
    assert not task.fits(kept, classes=11)
    kept.pop("truth")
    assert not task.fits(kept)


def test_a_thousand_classes_of_fifty_thousand_images_stay_small_and_quick():
    generator = np.random.default_rng(0)
    S, K = 50_000, 1000
    truth = generator.integers(0, K, S)
    task = Classification()
    kept = {
        "classes": np.full(S, K, np.int32),
        "truth": truth.astype(np.int32),
        "prediction": np.where(generator.random(S) < 0.7, truth, generator.integers(0, K, S)).astype(np.int32),
        "log_probability": -generator.random(S, np.float32),
        "confidence": generator.random(S, np.float32),
        "top5": np.ones(S, np.int32),
    }
    assert sum(array.nbytes for array in kept.values()) < 2_000_000
    assert task.fits(kept, S, K)
    facts = task.facts(kept)
    assert facts.nbytes < 3_000_000
    assert len(task.scores(kept)["class accuracy"]) == K
    assert task.confusion(kept).sum() == S
    assert np.isfinite(balanced_accuracy(facts[:, 1], np.ones(S), np.ones((3, S)))).all()


# ---- learning --------------------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_by_class_weights_and_smoothed():
    logits, truth = outputs()
    weights = torch.rand(12, dtype=torch.float64) + 0.1
    for smoothing in (0.0, 0.3):
        task = Classification(label_smoothing=smoothing)
        total, count = task.loss(logits, truth, None)
        torch.testing.assert_close(total / count, F.cross_entropy(logits, truth, label_smoothing=smoothing))
    total, count = Classification().loss(logits, truth, weights)
    torch.testing.assert_close(total / count, F.cross_entropy(logits, truth, weights))


class Seen(nn.Module):
    """Logits from the means of bands; remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs = x
        return self.layer(x.mean((2, 3)))


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)])
def test_mixed_images_have_mixed_losses(options, weights):
    """Every image is of one colour, so what came in says in which shares two images were mixed."""
    torch.manual_seed(0)
    network, task = Seen(), Classification(label_smoothing=0.1, **options)
    colours = torch.rand(6, 3, dtype=torch.float64)
    inputs = colours[:, :, None, None].expand(-1, -1, 8, 8).clone()
    before, truth = inputs.clone(), torch.tensor([0, 1, 2, 3, 1, 1])
    set_random_state(3, 5)
    total, count = task.learn(network, inputs, truth, weights)
    assert inputs.equal(before)
    mixed = network.inputs.mean((2, 3))
    other = colours.flip(0)
    share = ((mixed - other) / (colours - other)).mean(1)
    assert 0 < float(share[0]) < 1
    torch.testing.assert_close(share, share[:1].expand(6))
    logits = network(network.inputs)
    both = [
        F.cross_entropy(logits, of, weights, reduction="none", label_smoothing=0.1) for of in (truth, truth.flip(0))
    ]
    torch.testing.assert_close(total, (share * both[0] + (1 - share) * both[1]).sum())
    if weights is not None:
        torch.testing.assert_close(count, (share * weights[truth] + (1 - share) * weights[truth.flip(0)]).sum())
    total.backward()
    first = network.layer.weight.grad.clone()
    set_random_state(3, 5)
    network.zero_grad()
    task.learn(network, inputs, truth, weights)[0].backward()
    assert network.layer.weight.grad.equal(first)  # a function of seed and step
    set_random_state(3, 6)
    assert not task.learn(network, inputs, truth, weights)[0].equal(total)


def test_pairs_need_an_even_batch():
    with pytest.raises(
        ValueError, match="mixup and cutmix lay pairs of images over each other: want an even batch_size"
    ):
        Classification(mixup=0.2).check_batch(7)
    Classification(mixup=0.2).check_batch(8)
    Classification().check_batch(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "top5"}, "metric must be accuracy or balanced, got 'top5'"),
        ({"label_smoothing": 1.5}, "label_smoothing must be a number from 0 to 1, got 1.5"),
        ({"mixup": -1}, "mixup must be a number of at least 0, got -1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        find_task("classification", **options)


def test_options_of_a_classification_are_none_of_others():
    with pytest.raises(ValueError, match="segmentation has no option 'mixup': it is for classification"):
        find_task("segmentation", mixup=0.2)


# ---- a whole training ------------------------------------------------------------------------------------------------


def small_network(bands: int = 3, classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(bands, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


@pytest.mark.parametrize(
    "case",
    [
        {"classes": 2}, {"classes": 2, "bands": 1, "size": (1, 1)}, {"classes": 300, "train": 8, "val": 300},
        {"classes": 3, "val": 1}, {"classes": 4, "val": 2},
    ],
    ids=str,
)  # fmt: skip
def test_any_classes_bands_and_sizes_are_learned_and_judged(case, tmp_path):
    """More than 255 classes too: 255 is a label like any other where images have one each."""
    data = bright_data(**case)
    network = small_network(data.in_chans, len(data.classes))
    settings = Settings(steps=3, batch_size=4, accelerator="cpu", eval_every=0)
    result = train(network, data, Classification(), settings, tmp_path, seed=0)
    assert 0 <= result["accuracy"] <= 1
    assert result["nll"] > 0
    assert len(result["class accuracy"]) == len(data.classes)
    with np.load(tmp_path / "outcomes.npz") as file:
        assert file["truth"].tolist() == data.val.targets.tolist()


def test_it_learns_what_is_easy_in_batches_of_one(tmp_path):
    settings = Settings(steps=80, batch_size=1, lr=0.02, accelerator="cpu", eval_every=0)
    assert train(small_network(), bright_data(), Classification(), settings, tmp_path, seed=0)["accuracy"] == 1


def test_mixed_training_resumes_exactly(tmp_path):
    task = Classification(label_smoothing=0.1, mixup=0.4, cutmix=1.0)
    settings = Settings(steps=6, batch_size=4, accelerator="cpu", checkpoint_every=2, eval_every=3, log_every=1)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, values: dict) -> None:
        if step == 5 and "loss" in values:
            raise Stopped

    train(small_network(), bright_data(), task, settings, tmp_path / "whole", seed=0)
    with pytest.raises(Stopped):
        train(small_network(), bright_data(), task, settings, tmp_path / "killed", seed=0, progress=stop)
    train(small_network(), bright_data(), task, settings, tmp_path / "killed", seed=0)
    for name in ("final.safetensors",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    whole, again = (evaluate(n, bright_data(), task) for n in (small_network(), small_network()))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
