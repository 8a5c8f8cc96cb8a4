"""What is measured of a trained block and of its network's time, beside trials and after them."""

import json
import platform

import numpy as np
import pytest
import torch
from tiny_run import Scaled, tiny_data, tiny_network
from torch import nn

from lookfar import insert
from lookfar._drawing import randomise
from lookfar.cost import measure_in_turn
from lookfar.study import latency
from lookfar.study.ablations import (
    KINDS,
    Ablated,
    load_ablations,
    measure_ablations,
    measure_entropy,
    save_ablations,
    shifted,
)
from lookfar.study.latency import Latency, is_measured, load_latency, machine, save_latency
from lookfar.study.worker import block_memory
from lookfar.tasks import Segmentation
from lookfar.tasks.segmentation import counts_of
from lookfar.training import evaluate

DATA, TASK = tiny_data(), Segmentation()


def network_with(block: str | nn.Module) -> tuple[nn.Module, list[str]]:
    """Whose predictions hang on little: no bias, and a block that adds as much as it gets."""
    network = tiny_network(batch_statistics=False)
    names = insert(network, block, at="backbone", example=torch.randn(1, 3, 8, 8))
    randomise(network.get_submodule(names[0]))
    nn.init.zeros_(network.classifier.bias)
    return network, names


def measured(network, names, *, data=DATA, score="resized", batch_size=4):
    return measure_ablations(
        network, names, data, TASK, data.val, batch_size=batch_size, precision="32-true", score=score
    )


def test_counts_of_every_image():
    network, names = network_with("nonlocal")
    network.train()
    found, reason = measured(network, names)
    assert reason == ""
    assert list(found) == list(KINDS)
    assert network.training
    full = counts_of(evaluate(network, DATA, TASK)["confusion"])
    for kind, counts in found.items():
        assert counts.shape == full.shape
        np.testing.assert_array_equal(counts[:, 1], full[:, 1])  # the truth
        assert not np.array_equal(counts, full), kind
    others, _ = measured(network, names, batch_size=3)
    assert all(np.array_equal(found[kind], others[kind]) for kind in KINDS)


def test_a_map_for_all_queries_is_its_own_mean_and_a_fixed_filter_is_its_own_in_other_images():
    network, names = network_with("global_context")
    full = counts_of(evaluate(network, DATA, TASK)["confusion"])
    found, _ = measured(network, names)
    np.testing.assert_array_equal(found["mean"], full)
    network, names = network_with("nonlocal")
    for layer in (network.get_submodule(names[0]).query, network.get_submodule(names[0]).key):
        nn.init.zeros_(layer.weight)
    found, _ = measured(network, names)
    np.testing.assert_array_equal(found["other"], counts_of(evaluate(network, DATA, TASK)["confusion"]))


def test_a_block_that_is_shut_changes_nothing():
    """At gamma = 0 whatever is done to its maps."""
    network, names = network_with("nonlocal")
    nn.init.zeros_(network.get_submodule(names[0]).norm.weight)
    nn.init.zeros_(network.get_submodule(names[0]).norm.bias)
    full = counts_of(evaluate(network, DATA, TASK)["confusion"])
    found, _ = measured(network, names)
    for kind in KINDS:
        np.testing.assert_array_equal(found[kind], full)


def test_blocks_without_maps_and_modules_of_anybody(tmp_path):
    network, names = network_with("squeeze_excitation")
    found, reason = measured(network, names)
    assert list(found) == ["constant", "off"]
    assert reason == "squeeze_excitation has no weights over positions"
    save_ablations(tmp_path / "ablations.npz", found, reason)
    again, why, *_ = load_ablations(tmp_path / "ablations.npz")
    assert why == reason
    assert all(np.array_equal(again[kind], found[kind]) for kind in found)
    network, names = network_with(Scaled(8))
    assert measured(network, names)[1] == "not a block of the registry"


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_left_out():
    network, names = network_with("nonlocal")
    block = network.get_submodule(names[0])
    own = block.attention
    block.attention = lambda x, queries=None: own(x, queries) * torch.nan
    found, reason = measured(network, names)
    assert list(found) == ["uniform", "constant", "off"]  # these look at no weights
    assert reason == ""


def test_one_image_has_no_other():
    network, names = network_with("nonlocal")
    found, _ = measured(network, names, data=tiny_data(val=1))
    assert list(found) == ["mean", "uniform", "pairwise", "unary", "constant", "off"]


def test_the_other_image_is_far_away():
    away = shifted(DATA.val, 5)
    assert [int(name) for name in away.names] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert away[3][0].equal(DATA.val[8][0])


def test_files_of_earlier_versions_are_read(tmp_path):
    facts = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "ablations.npz", reason="", mean_map=facts, other_map=facts + 1, constant=facts, off=facts)
    found = load_ablations(tmp_path / "ablations.npz")
    assert list(found.facts) == ["mean", "other", "constant", "off"]
    assert np.array_equal(found.facts["other"], facts + 1)
    assert found[1:] == ("", None, ())


def test_how_even_the_maps_are(tmp_path):
    network, names = network_with("nonlocal")
    block = network.get_submodule(names[0])
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    even = measure_entropy(network, names, DATA, DATA.val)
    np.testing.assert_allclose(even, np.ones((10, 1)), atol=1e-6)
    with torch.no_grad():
        block.query.bias.fill_(1e4)  # one key takes it all
    save_ablations(tmp_path / "ablations.npz", {}, "", measure_entropy(network, names, DATA, DATA.val), ("off", "mean"))
    found = load_ablations(tmp_path / "ablations.npz")
    assert found.entropy is not None
    assert found.entropy < 0.05
    assert found.rungs == ("off", "mean")
    save_ablations(tmp_path / "ablations.npz", {}, "", np.array([[0.5, np.nan]]))
    assert load_ablations(tmp_path / "ablations.npz").entropy is None


def test_damaged_files_hold_nothing(tmp_path):
    assert load_ablations(tmp_path / "ablations.npz") == Ablated({})
    save_ablations(tmp_path / "ablations.npz", {"off": np.zeros((2, 3, 4))}, "")
    whole = (tmp_path / "ablations.npz").read_bytes()
    for content in (b"", b"PK", b"[1, 2]", whole[:100], whole[:-30]):
        (tmp_path / "ablations.npz").write_bytes(content)
        assert load_ablations(tmp_path / "ablations.npz") == Ablated({})
        (tmp_path / "latency.json").write_bytes(content)
        assert not load_latency(tmp_path).of
        assert not is_measured(tmp_path, ["baseline"], "cpu")


def test_memory_of_the_block_alone():
    network, names = network_with("nonlocal")
    small = block_memory(network, names, torch.zeros(1, 3, 8, 8))
    assert 0 < small < block_memory(network, names, torch.zeros(1, 3, 16, 16))
    wide = nn.Sequential(nn.Conv2d(3, 1000, 1), nn.Conv2d(1000, 8, 1))  # a host that needs far more
    names = insert(wide, "nonlocal", at="1", example=torch.randn(1, 3, 8, 8))
    assert block_memory(wide, names, torch.zeros(1, 3, 8, 8)) == pytest.approx(small, rel=0.3)


# ---- latency ---------------------------------------------------------------------------------------------------------


def test_networks_take_turns():
    order = []

    class Slow(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append(self.name)
            return x

    found = measure_in_turn({n: Slow(n) for n in "abc"}, torch.zeros(1), rounds=2, calls=1)
    assert order == [*"aabbcc", *"ccbbaa"]  # a call to warm up, one that counts; then the other way round
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2, "c": 2}
    order.clear()
    measure_in_turn({n: Slow(n) for n in "ab"}, torch.zeros(1), rounds=2, calls=1, warm_up=False)
    assert order == [*"aabb", *"ba"]
    with pytest.raises(ValueError, match="rounds must be"):
        measure_in_turn({}, torch.zeros(1), rounds=0)


def test_both_passes_in_turn_leave_a_network_as_it_was():
    norm = nn.BatchNorm2d(3)
    found = measure_in_turn({"norm": norm}, torch.ones(2, 3, 4, 4), backward=True, rounds=1, calls=1)
    assert found["norm"][0] > 0
    assert norm.weight.grad is None
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_ratios_are_of_the_same_round(tmp_path):
    save_latency(tmp_path, {"baseline": [1.0, 2.0, 4.0], "nonlocal": [1.5, 2.8, 5.2]}, "a device")
    found = load_latency(tmp_path)
    assert found.of["nonlocal"] == Latency(2.8, 1.5, 5.2, pytest.approx(1.4), pytest.approx(1.3), pytest.approx(1.5))
    assert "measured alone after the last trial: networks in turn, 3 rounds, medians, on a device" in str(found)
    assert load_latency(tmp_path / "empty").of == {}


def test_latency_is_measured_again_where_it_must_be(tmp_path, monkeypatch):
    times = {"baseline": [1.0], "nonlocal": [2.0]}
    assert not is_measured(tmp_path, times, "cpu")
    save_latency(tmp_path, times, "cpu")
    assert is_measured(tmp_path, times, "cpu")
    assert is_measured(tmp_path, ["baseline"], "cpu")
    assert not is_measured(tmp_path, [*times, "cbam"], "cpu")  # the study has grown
    assert not is_measured(tmp_path, times, "a GPU")
    monkeypatch.setattr(latency, "_processor", lambda: "another")
    assert not is_measured(tmp_path, times, "cpu")
    assert machine("cpu")["platform"].startswith(platform.system())
    assert json.loads((tmp_path / "latency.json").read_text())["rounds"] == 1
