"""samples.npz: what is stored equals what the block says, and nothing is changed by looking."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lookfar.blocks import block_info, create_block, list_blocks
from lookfar.data import MemorySamples
from lookfar.diagnostics import (
    attention_maps,
    choose_images,
    collect_samples,
    labels_at,
    map_similarity,
    own_class_share,
    samples,
)
from lookfar.study.explorer import explorer, looks
from lookfar.study.pictures import Detail
from lookfar.tasks import Segmentation, Task

TASK = Segmentation()


class Pictures:
    def __init__(self, size: tuple[int, int], count: int = 5) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)
        self.masks = torch.randint(3, (count, *size), generator=generator, dtype=torch.uint8)
        self.masks[:, 0] = 255
        self.names = [f"{i}.png" for i in range(count)]

    def __getitem__(self, index):
        return self.images[index], self.masks[index]


def toy(size=(24, 40)):
    data = SimpleNamespace(val=Pictures(size), normalise=lambda images: images.float() / 255)
    block = create_block("position_attention", 16, zero_init=False)
    up = nn.Sequential(nn.Conv2d(16, 3, 1), nn.Upsample(scale_factor=4))
    network = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16), block, up)
    return network, data


def read(path):
    with np.load(path) as file:
        return dict(file)


def test_choice_of_images_is_even_and_small_sets_are_taken_whole():
    assert choose_images(100, 4) == [12, 37, 62, 87]
    assert choose_images(3, 12) == [0, 1, 2]
    assert choose_images(0) == []


def test_what_is_stored_equals_what_the_block_says(tmp_path):
    network, data = toy()
    collect_samples(network, "2", data, TASK, [1, 4], tmp_path / "trial" / "samples.npz")
    got = read(tmp_path / "trial" / "samples.npz")
    network.eval()
    with torch.no_grad():
        x = network[:2](data.normalise(torch.stack([data.val[i][0] for i in (1, 4)])))
        maps = attention_maps(network[2], x)
        prediction = network(data.normalise(data.val[1][0][None]))[0].argmax(0)
    assert got["name"].tolist() == ["1.png", "4.png"]
    assert got["image"].tolist() == torch.stack([data.val[1][0], data.val[4][0]]).tolist()
    assert got["prediction"][0].tolist() == prediction.tolist()
    stored = got["low"][..., None] + (got["high"] - got["low"])[..., None] * (got["map"] / 255.0)
    assert np.abs(stored - maps.numpy()).max() < 1e-3
    assert np.allclose(got["similarity"], map_similarity(maps), rtol=1e-6)
    labels = labels_at(torch.stack([data.val[1][1], data.val[4][1]]), (6, 10))
    share, chance = own_class_share(maps, labels, labels)
    assert np.allclose(got["share"], share, equal_nan=True, rtol=1e-5)
    assert np.allclose(got["chance"], chance, equal_nan=True, rtol=1e-5)
    assert np.allclose(got["mean_share"], share.nanmean(2), rtol=1e-5)
    assert str(got["sought"]) == ""
    assert "found" not in got
    assert got["query"].shape == (60, 2)
    assert got["map_size"].tolist() == [6, 10]


def test_large_maps_are_sampled_and_averaged_but_the_numbers_are_not(tmp_path, monkeypatch):
    for name, value in {"SIDE": 20, "QUERIES": 4, "KEYS": 5, "ASKED": 30, "_CHUNK": 7}.items():
        monkeypatch.setattr(samples, name, value)
    network, data = toy()
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert got["image"].shape == (1, 3, 12, 20)
    assert got["map"].shape == (1, 1, 16, 25)
    assert got["queries_asked"] == 30
    network.eval()
    with torch.no_grad():
        x = network[:2](data.normalise(data.val[0][0][None]))
        maps = attention_maps(network[2], x, torch.arange(30) * 2)
    assert np.allclose(got["similarity"][0], map_similarity(maps)[0], rtol=1e-6)


def test_every_head_is_kept_in_the_room_of_one(tmp_path, monkeypatch):
    for name, value in {"QUERIES": 8, "KEYS": 6}.items():
        monkeypatch.setattr(samples, name, value)
    network, data = toy()
    network[2] = create_block("nonlocal", 16, heads=4, zero_init=False)
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert got["query_size"].tolist() == [6, 6]
    assert got["map"].shape == (1, 4, 36, 16)
    network.eval()
    with torch.no_grad():
        maps = attention_maps(network[2], network[:2](data.normalise(data.val[0][0][None])))
    labels = labels_at(data.val[0][1][None], (6, 10))
    share, chance = own_class_share(maps, labels, labels)
    assert np.allclose(got["mean_share"][0], share.nanmean(-1), rtol=1e-5)
    assert np.allclose(got["mean_chance"], chance.nanmean(), rtol=1e-5)
    assert np.allclose(got["similarity"], map_similarity(maps), rtol=1e-6)


def test_maps_of_several_kinds_keep_their_names(tmp_path):
    """A pairwise map and one map for all: what is said of their mean is true of neither."""
    network, data = toy()
    network[2] = create_block("disentangled_nonlocal", 16, zero_init=False)
    for layer in (network[2].query, network[2].key):
        nn.init.normal_(layer.weight, std=5)
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert got["map_kinds"].tolist() == ["pairwise", "unary"]
    pairwise, unary = got["similarity"][0]
    said = looks({0: got})
    assert pairwise < 0.9
    assert unary == pytest.approx(1)
    first, second = said.split("Unary: ")
    assert first.startswith("Pairwise: ")
    assert f"different queries {pairwise:.2f}" in first
    assert second.endswith("The map is the same for every query.")
    page = explorer({"dnl": {0: got}}, ["a", "b", "c"], [0], 0, Detail())
    assert page["blocks"][0]["maps"] == ("pairwise", "unary")


def test_the_weight_on_what_holds_the_answer(tmp_path):
    network, data = toy()
    asks, holds = torch.zeros(2, 24, 40, dtype=torch.uint8)
    asks[:, :20], holds[:12, 20:] = 1, 1  # the left half asks, the upper right quarter answers

    data.val.answer = lambda index: (asks, holds)
    data.val.asking, data.val.sought = "left", "upper right"
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    network.eval()
    with torch.no_grad():
        maps = attention_maps(network[2], network[:2](data.normalise(data.val[0][0][None])))
    weight = maps.view(6, 10, 6, 10)[:, :, :3, 5:].sum((-1, -2))
    found = got["found"].reshape(6, 10)
    assert np.allclose(found[:, :5], weight[:, :5], rtol=1e-5)
    assert np.isnan(found[:, 5:]).all()
    assert np.allclose(got["found_chance"].reshape(6, 10)[:, :5], 0.25)
    assert np.allclose(got["mean_found"], weight[:, :5].mean(), rtol=1e-5)
    assert np.array_equal(got["holds"][0], holds)
    assert str(got["sought"]) == "upper right"


def test_looking_changes_nothing(tmp_path):
    network, data = toy()
    network.train()
    network[1].eval()
    state, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    assert network.training
    assert not network[1].training
    assert not network[2]._forward_pre_hooks
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("block_name", "reason"), [(None, "no block"), ("2", "squeeze_excitation has no weights"), ("0", "not a block")]
)
def test_without_maps_the_reason_is_recorded(tmp_path, block_name, reason):
    network, data = toy()
    if reason.startswith("squeeze"):
        network[2] = create_block("squeeze_excitation", 16)
    collect_samples(network, block_name, data, TASK, [0, 2], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert reason in str(got["reason"])
    assert "map" not in got
    assert got["prediction"].shape == (2, 24, 40)


@pytest.mark.parametrize("name", [n for n in list_blocks(kind="context") if block_info(n).attends == "weights"])
def test_every_block_with_weights_leaves_maps(tmp_path, name):
    network, data = toy()
    network[2] = create_block(name, 16)
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert str(got["reason"]) == "" or "form no grid" in str(got["reason"])
    if "map" in got:
        assert np.isfinite(got["similarity"]).all()
        heads = got["similarity"].shape[1]
        assert got["map"].shape == (1, heads, len(got["query"]), np.prod(got["map_size"]))


def test_sub_sampled_keys_lie_on_their_own_grid(tmp_path):
    network, data = toy()
    network[2] = create_block("nonlocal", 16, subsample=2)
    collect_samples(network, "2", data, TASK, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert got["feature_size"].tolist() == [6, 10]
    assert got["key_size"].tolist() == got["map_size"].tolist() == [3, 5]


class InWords(Task):
    """Which band is the brightest, of clips and sequences."""

    def show(self, output, target):
        return str(int(target)), f"band {int(output.argmax())}"


@pytest.mark.parametrize(("size", "picture"), [((3, 24, 40), (3, 24, 40)), ((12,), (3, 1, 12))])
def test_truth_and_prediction_may_be_words_and_inputs_of_any_rank(tmp_path, size, picture):
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    val = MemorySamples(images, torch.tensor([0, 2]), ["a", "b"])
    data = SimpleNamespace(val=val, normalise=lambda images: images.float() / 255)
    network = nn.Sequential(nn.Identity(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))
    network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    collect_samples(network, None, data, InWords(), [0, 1], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert got["truth"].tolist() == ["0", "2"]
    wanted = images.float().flatten(2).mean(2).argmax(1).tolist()
    assert got["prediction"].tolist() == [f"band {k}" for k in wanted]
    middle = images[:, :, 1] if len(size) == 3 else images[:, :, None]
    assert got["image"].shape == (2, *picture)
    assert np.array_equal(got["image"], middle.numpy())


def test_of_words_no_share_of_weight_is_known(tmp_path):
    """Maps stay: where a block looks is known without labels."""
    network, data = toy()
    task = InWords()
    task.show = lambda output, target: ("a", "b")
    collect_samples(network, "2", data, task, [0], tmp_path / "samples.npz")
    got = read(tmp_path / "samples.npz")
    assert {"map", "similarity", "queries_asked"} <= got.keys()
    assert not {"share", "chance", "mean_share"} & got.keys()
