"""What a run records, how it treats gradients and loss, and how it ends when something is wrong."""

import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import Scaled, tiny_data, tiny_network
from torch import nn

from lookfar.tasks import Segmentation
from lookfar.tasks.segmentation import scores
from lookfar.training import Settings, TrainingError, evaluate, train
from lookfar.training.checkpoints import load_tensors
from lookfar.training.optimization import create_optimizer, learning_rate_sum, schedule_factor, set_random_state
from lookfar.training.probes import Probe

TASK = Segmentation()


def settings(**changes) -> Settings:
    base = {"steps": 6, "batch_size": 4, "log_every": 2, "eval_every": 3, "checkpoint_every": 4, "accelerator": "cpu"}
    return Settings(**{**base, **changes})


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_files_and_records(tmp_path):
    data, network, seen = tiny_data(), tiny_network(), []
    result = train(
        network,
        data,
        TASK,
        settings(),
        tmp_path,
        seed=0,
        blocks=["block"],
        progress=lambda *call: seen.append(call),
    )
    lines = records(tmp_path)
    assert [(r["step"], next(k for k in r if k != "step")) for r in lines] == [
        (2, "loss"), (2, "blocks"), (3, "val"), (4, "loss"), (4, "blocks"), (6, "loss"), (6, "blocks"), (6, "val"),
    ]  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.jsonl", "step-4", "step-6", "final.safetensors", "confusion.npz",
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "step-6").iterdir()} == {"weights.safetensors", "optimizer.pt", "state.json"}
    confusion = np.load(tmp_path / "confusion.npz")["confusion"]
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, evaluate(network, data, TASK)["confusion"])
    assert scores(confusion) == lines[-1]["val"] == {k: result[k] for k in ("miou", "accuracy", "iou")}
    assert result["step"] == 6
    assert [(step, steps) for step, steps, _ in seen] == [(2, 6), (3, 6), (4, 6), (6, 6), (6, 6)]
    assert {"loss", "lr", "seconds"} <= seen[0][2].keys()
    assert "miou" in seen[1][2]
    assert not network.training


def test_it_learns(tmp_path):
    result = train(tiny_network(), tiny_data(), TASK, settings(steps=60, lr=0.03, eval_every=0), tmp_path, seed=0)
    assert result["accuracy"] > 0.85
    assert result["iou"][3] is None  # neither there nor predicted any more


def test_a_complete_run_returns_its_result_at_once(tmp_path):
    first = train(tiny_network(), tiny_data(), TASK, settings(), tmp_path, seed=0)
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    fresh = tiny_network()
    assert train(fresh, tiny_data(), TASK, settings(), tmp_path, seed=0) == first
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before
    final = load_tensors(tmp_path / "final.safetensors")
    assert all(fresh.state_dict()[key].equal(value) for key, value in final.items())


def test_blocks_are_measured(tmp_path):
    """At the first step gamma is 0: nothing is added, and of the block only gamma has a gradient."""
    network = tiny_network(batch_statistics=False)
    train(
        network, tiny_data(), TASK, settings(steps=1, optimizer="sgd", schedule="poly", lr=0.1), tmp_path, seed=0,
        blocks=["block", "classifier"],
    )  # fmt: skip
    twin, data = tiny_network(batch_statistics=False), tiny_data()
    images, masks = data.batch(0, 0, 4)
    F.cross_entropy(twin(images), masks, ignore_index=255).backward()
    whole = math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters()))
    entry = next(r["blocks"] for r in records(tmp_path) if "blocks" in r)
    assert entry["block"]["contribution"] == 0
    assert entry["block"]["gradient"] == pytest.approx((float(twin.block.gamma.grad.abs()) / whole) ** 2, rel=1e-4)
    assert entry["block"]["gamma"] == pytest.approx(-0.1 * float(twin.block.gamma.grad), rel=1e-4)
    assert entry["classifier"]["gamma"] is None
    assert entry["classifier"]["contribution"] is None  # of another shape than its input
    assert not network.block._forward_hooks


def test_contribution_and_the_norm_that_stands_for_gamma(tmp_path):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(8)
            nn.init.zeros_(self.norm.weight)
            nn.init.constant_(self.norm.bias, 2.0)

        def forward(self, x):
            return x + self.norm(x)

    network = tiny_network(batch_statistics=False)
    network.block = Normed()
    train(
        network,
        tiny_data(),
        TASK,
        settings(steps=1, log_every=1, lr=1e-9),
        tmp_path,
        seed=0,
        blocks=["block"],
    )
    twin, data = tiny_network(batch_statistics=False), tiny_data()
    x = twin.backbone(data.batch(0, 0, 4)[0]).detach()
    entry = records(tmp_path)[1]["blocks"]["block"]
    assert entry["contribution"] == pytest.approx(2 * math.sqrt(x.numel()) / float(x.norm()), rel=1e-4)
    assert 0 < entry["gamma"] < 1e-8


def test_loss_is_the_weighted_mean_over_labelled_pixels(tmp_path):
    weights = (0.5, 2.0, 1.0, 1.0)
    train(
        tiny_network(batch_statistics=False), tiny_data(), TASK, settings(steps=1, class_weights=weights), tmp_path,
        seed=0,
    )  # fmt: skip
    images, masks = tiny_data().batch(0, 0, 4)
    want = F.cross_entropy(
        tiny_network(batch_statistics=False)(images), masks, torch.tensor(weights), ignore_index=255
    )  # fmt: skip
    assert records(tmp_path)[0]["loss"] == pytest.approx(want.item(), rel=1e-5)


def test_a_batch_without_a_label_teaches_nothing_and_breaks_nothing(tmp_path):
    data = tiny_data()
    data.train.targets.fill_(255)
    network = tiny_network(batch_statistics=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    train(network, data, TASK, settings(optimizer="sgd", weight_decay=0.0), tmp_path, seed=0)
    assert all(before[key].equal(value) for key, value in network.state_dict().items())
    assert records(tmp_path)[0]["loss"] == 0


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    class Bursts(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            return x * (float("nan") if self.calls == 5 else 1.0)

    network = tiny_network()
    network.drop = Bursts()
    with pytest.raises(TrainingError, match="loss is nan at step 5"):
        train(network, tiny_data(), TASK, settings(steps=50, log_every=50), tmp_path, seed=0)
    assert not (tmp_path / "final.safetensors").exists()


def test_clipping_bounds_the_step(tmp_path):
    network, twin = tiny_network(batch_statistics=False), tiny_network(batch_statistics=False)
    train(
        network, tiny_data(), TASK,
        settings(steps=1, optimizer="sgd", schedule="cosine", lr=1.0, weight_decay=0.0, clip=0.01), tmp_path, seed=0,
    )  # fmt: skip
    moved = sum((a - b).square().sum().item() for a, b in zip(network.parameters(), twin.parameters()))
    assert math.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


def test_average_is_what_is_kept_and_judged(tmp_path):
    plain, averaged = tiny_network(), tiny_network()
    train(plain, tiny_data(), TASK, settings(lr=0.03), tmp_path / "plain", seed=0)
    result = train(averaged, tiny_data(), TASK, settings(lr=0.03, ema=0.9), tmp_path / "ema", seed=0)
    trained, kept = load_tensors(tmp_path / "ema/step-6/weights.safetensors"), averaged.state_dict()
    assert all(trained[key].equal(value) for key, value in plain.state_dict().items())
    assert not trained["classifier.weight"].equal(kept["classifier.weight"])
    average = load_tensors(tmp_path / "ema/step-6/ema.safetensors")
    assert all(average[key].equal(value) for key, value in kept.items())
    assert result["miou"] == scores(evaluate(averaged, tiny_data(), TASK)["confusion"])["miou"]


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"precision": "64-true", "optimizer": "sgd"}])
def test_other_precisions(changes, tmp_path):
    network = tiny_network()
    result = train(network, tiny_data(), TASK, settings(**changes), tmp_path, seed=0)
    assert result["miou"] > 0
    assert next(network.parameters()).dtype == (torch.float64 if "64" in changes["precision"] else torch.float32)


def test_tensorboard_when_asked(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_network(), tiny_data(), TASK, settings(tensorboard=True), tmp_path, seed=0, blocks=["block"])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "lr", "val/miou", "block/contribution"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6]


def test_a_run_leaves_no_trace_in_the_process(tmp_path):
    np.random.seed(5)  # no run leaves this by chance
    random.seed(5)
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
    train(tiny_network(), tiny_data(), TASK, settings(threads=2), tmp_path, seed=0)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    network = tiny_network()  # draws under its own seed
    torch.set_rng_state(states[0])
    train(network, tiny_data(), TASK, settings(), tmp_path / "again", seed=0)
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


class Draws(nn.Module):
    """Notes what torch, numpy and Python draw at each step of training."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, ...]] = []

    def forward(self, x):
        if self.training:
            self.drawn.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
        return x


def test_every_step_has_a_random_state_of_its_own(tmp_path):
    runs = []
    for n, seed in enumerate((0, 0, 1)):
        network = tiny_network()
        network.drop = draws = Draws()
        train(network, tiny_data(), TASK, settings(), tmp_path / str(n), seed=seed)
        runs.append(draws.drawn)
    first, again, other = runs
    assert len(first) == 6
    assert again == first
    for library in zip(*first, *other):
        assert len(set(library)) == 12


def test_every_process_has_a_random_state_of_its_own():
    drawn = []
    for step in (0, 1):
        for rank in (0, 1):
            set_random_state(0, step, rank)
            drawn.append(float(torch.rand(1)))
    assert len(set(drawn)) == 4


def test_images_and_weights_are_channels_last(tmp_path):
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append((self.training, x.is_contiguous(memory_format=torch.channels_last)))
            return x

    network = nn.Sequential(Looks(), *tiny_network())
    train(network, tiny_data(), TASK, settings(), tmp_path, seed=0)
    assert set(seen) == {(True, True), (False, True)}
    weights = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_several_gammas_are_told_by_their_mean_size():
    module = nn.Module()
    module.gamma = nn.Parameter(torch.tensor([0.5, -0.25]))
    assert Probe(module).gamma() == pytest.approx(0.375)


def test_only_weights_decay_and_the_backbone_has_its_own_rate():
    network = nn.Sequential()
    network.add_module("backbone", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Scaled(8)))
    network.add_module("classifier", nn.Conv2d(8, 4, 1))
    network.classifier.bias.requires_grad_(False)
    optimizer = create_optimizer(network, settings(backbone_lr_factor=0.5, weight_decay=0.02), ["backbone.2"])
    names = {id(p): name for name, p in network.named_parameters()}
    got = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert got == {
        "backbone.0.weight": (1.5e-3, 0.02), "backbone.0.bias": (1.5e-3, 0), "backbone.1.weight": (1.5e-3, 0),
        "backbone.1.bias": (1.5e-3, 0), "backbone.2.mix.weight": (3e-3, 0.02), "backbone.2.mix.bias": (3e-3, 0),
        "backbone.2.gamma": (3e-3, 0), "classifier.weight": (3e-3, 0.02),
    }  # fmt: skip


def test_schedules():
    onecycle, cosine, poly = ([schedule_factor(s, i, 100) for i in range(100)] for s in ("onecycle", "cosine", "poly"))
    assert onecycle[0] < 0.05
    assert max(onecycle) == onecycle[29] == 1
    assert sorted(onecycle[:30]) == onecycle[:30]
    assert sorted(onecycle[29:], reverse=True) == onecycle[29:]
    for falling in (cosine, poly):
        assert falling[0] == 1
        assert sorted(falling, reverse=True) == falling
    assert all(0 < schedule[-1] < 0.02 for schedule in (onecycle, cosine, poly))
    assert poly[50] == pytest.approx(0.5**0.9)
    assert schedule_factor("onecycle", 0, 1) == 1


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "poly"])
def test_the_sum_of_learning_rates(schedule):
    """Exact in a study of usual length, near enough at once in one of any."""

    def of(steps):
        return learning_rate_sum(Settings(steps=steps, lr=0.5, schedule=schedule))

    for steps in (1, 7, 5000):
        assert of(steps) == pytest.approx(0.5 * sum(schedule_factor(schedule, step, steps) for step in range(steps)))
    assert of(10**12) == pytest.approx(10**12 / 5000 * of(5000), rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be adamw or sgd, got 'adam'. Did you mean adamw?"),
        ({"schedule": "step"}, "onecycle, cosine or poly, got 'step'"),
        ({"precision": "16-mixed"}, "a CPU cannot do it"),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a positive integer, got 2.0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"ema": 1.0}, "below 1"),
        ({"devices": "all"}, "or auto, got 'all'"),
        ({"threads": 0}, "threads must be .* got 0"),
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
        ({"eval_every": -1}, "eval_every"),
    ],
)
def test_settings_are_checked_when_made(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_what_does_not_fit_is_said_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="2 class_weights for 4 classes"):
        train(tiny_network(), tiny_data(), TASK, settings(class_weights=(1, 2)), tmp_path, seed=0)
    with pytest.raises(ValueError, match="no module of the network is called 'blok'"):
        train(tiny_network(), tiny_data(), TASK, settings(), tmp_path, seed=0, blocks=["blok"])
    with pytest.raises(ValueError, match="all are frozen"):
        train(tiny_network().requires_grad_(False), tiny_data(), TASK, settings(), tmp_path, seed=0)
