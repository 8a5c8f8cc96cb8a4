"""A network whose block does without something, image by image: against single images done by hand."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lookfar import create_block, insert
from lookfar._drawing import randomise
from lookfar.cost import peak_memory
from lookfar.diagnostics import ablations, replacing, statistics
from lookfar.diagnostics.block_ablations import KINDS, REPLACED


class Host(nn.Module):
    """Draws random numbers in every mode; the layer after the block works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x + 0 * torch.rand_like(x))))


def network_with(text: str) -> tuple[nn.Module, str]:
    network = Host().double()
    (name,) = insert(network, text, at="first", example=torch.randn(1, 3, 6, 5, dtype=torch.float64))
    randomise(network.get_submodule(name))
    return network.eval(), name


def outputs(output: Tensor, labels: object, numbers: range) -> list[Tensor]:
    assert len(output) == len(numbers)
    return list(output)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(1, 3, *size, dtype=torch.float64) for size in sizes]


@torch.no_grad()
def test_every_kind_is_what_its_name_says():
    network, name = network_with("nonlocal(heads=2,subsample=2)")
    block, (x, other, training) = network.get_submodule(name), images((6, 5), (6, 5), (6, 5))
    found = ablations(network, name, torch.cat([x, other]), training=training, judge=outputs)
    assert tuple(found.kept) == KINDS
    assert not found.reasons

    def rest(h: Tensor) -> Tensor:
        return network.last(h.relu())

    h, of_other, of_training = (nn.Conv2d.forward(network.first, image) for image in (x, other, training))
    maps, values = block.attention(h), block.values(h)
    average = torch.full_like(maps, 1 / maps.shape[-1])
    want = {
        "full": block(h),
        "mean": block.finish(h, maps.mean(2, keepdim=True).expand_as(maps) @ values),
        "uniform": block.finish(h, average @ values),
        "other": block.finish(h, block.attention(of_other) @ values),
        "pairwise": replacing.replay_term(block, h, "pairwise"),
        "unary": replacing.replay_term(block, h, "unary"),
        "constant": h + (block(of_training) - of_training).mean((0, 2, 3))[:, None, None],
        "off": h,
    }
    full = rest(want["full"])[0].argmax(0)
    off = rest(h)[0].argmax(0) != full
    for kind, after in want.items():
        torch.testing.assert_close(found.kept[kind][0], rest(after)[0], rtol=1e-5, atol=1e-6, msg=kind)
        changed = rest(after)[0].argmax(0) != full
        assert found.counts[kind][0].tolist() == [30, changed.sum(), (changed & off).sum()]
    share = found.counts["mean"].sum(0)[2] / found.counts["off"].sum(0)[1]
    assert found.changed_of_off("mean") == pytest.approx(float(share))
    assert found.changed_of_off("off") == 1
    assert found.changed("full").tolist() == [0, 0]
    assert "off" in str(found)


def test_the_other_image_is_the_next_of_its_size_and_the_last_ones_is_the_first():
    network, name = network_with("nonlocal")
    a, b, c, d, e = images((6, 5), (6, 5), (4, 7), (6, 5), (4, 7))
    batches = [torch.cat([a, b]), c, d, e]
    found = ablations(network, name, batches, judge=outputs, kinds=("other", "off"))
    for index, (x, other) in enumerate([(a, b), (b, d), (c, e), (d, a), (e, c)]):
        pair = ablations(network, name, [x], others=[other], judge=outputs, kinds=("other",))
        torch.testing.assert_close(found.kept["other"][index], pair.kept["other"][0])
        alone = ablations(network, name, [x], judge=outputs, kinds=("off",))
        torch.testing.assert_close(found.kept["off"][index], alone.kept["off"][0])
    assert len(found.kept["off"]) == 5


def test_labels_reach_the_judge_with_their_images():
    network, name = network_with("nonlocal")
    batches = [(x, torch.full((1, *x.shape[2:]), n)) for n, x in enumerate(images((6, 5), (4, 7), (6, 5)))]
    seen = ablations(network, name, batches, judge=lambda y, labels, at: [(int(labels.max()), *at)], kinds=("mean",))
    assert seen.kept == {"mean": [(0, 0), (1, 1), (2, 2)]}


def test_what_a_block_cannot_do_without_is_missing_with_its_reason():
    x = torch.cat(images((6, 5), (6, 5)))
    found = ablations(network_with("squeeze_excitation")[0], None, x)
    assert set(found.counts) == {"full", "off"}
    assert found.reasons["mean"] == "squeeze_excitation has no weights over positions"
    found = ablations(network_with("criss_cross")[0], None, x)
    assert set(found.counts) == {"full", "mean", "uniform", "other", "off"}
    assert "not a softmax of dot products" in found.reasons["unary"]
    assert "no training images" in found.reasons["constant"]
    found = ablations(network_with("nonlocal")[0], None, x[:1])
    assert found.reasons["other"] == "image 0 is the only one of its size"
    assert "image 0 is the only one" in str(found)


def test_a_kind_whose_output_is_not_finite_is_missing():
    network, name = network_with("nonlocal")
    training = torch.full((1, 3, 6, 5), float("nan"), dtype=torch.float64)
    found = ablations(network, name, torch.cat(images((6, 5), (6, 5))), training=training, kinds=("constant", "off"))
    assert set(found.counts) == {"off"}
    assert "not finite" in found.reasons["constant"]


def test_a_network_is_left_as_it_was():
    network, name = network_with("nonlocal")
    x = torch.cat(images((6, 5), (6, 5)))
    network.train()
    network.last.eval()
    random, state = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()}
    ablations(network, name, x, training=x)
    assert torch.get_rng_state().equal(random)
    assert (network.training, network.last.training) == (True, False)
    assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()} == hooks
    assert all(network.state_dict()[key].equal(value) for key, value in state.items())


def test_memory_grows_with_the_positions_and_not_with_their_square(monkeypatch):
    """Twice the side: four times the positions, at most 4^1.1 times the memory, where pairs would be 16."""
    monkeypatch.setattr(replacing, "WEIGHTS", 2**12)
    network, name = network_with("nonlocal")
    network.float()
    inputs = [torch.randn(2, 3, side, side) for side in (12, 24)]
    peaks = [peak_memory(partial(ablations, network, name, x, training=x)) for x in inputs]
    assert peaks[1] < 4**1.1 * peaks[0]


def test_refused():
    network, name = network_with("nonlocal")
    x = torch.cat(images((6, 5)))
    with pytest.raises(ValueError, match="no ablation is called 'median'; there are full, mean,"):
        ablations(network, name, x, kinds=("median",))
    with pytest.raises(ValueError, match="at least one batch of images"):
        ablations(network, name, [])
    with pytest.raises(ValueError, match="want others of the same size"):
        ablations(network, name, x, others=images((4, 7)))
    with pytest.raises(ValueError, match=r"want logits \(B, classes, ...\), got a dict: give predict="):
        ablations(nn.Sequential(network, Wrapped()), "0." + name, x)


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x}


@torch.no_grad()
def test_queries_on_another_grid_than_the_map():
    """Of a layer with a stride or a pool; and nothing is left without a layer."""
    torch.manual_seed(0)
    layer = create_block("attention_augmented", 8, pool=2).double().eval()
    network, x = nn.Sequential(layer, nn.Conv2d(8, 3, 1)).double(), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    found = ablations(network, "0", x, training=x, judge=outputs)
    maps, values = layer.attention(x), layer.values(x)
    assert maps.shape[2] == 9
    mean = network[1](layer.finish(x, maps.mean(2, keepdim=True).expand_as(maps) @ values))
    torch.testing.assert_close(torch.stack(found.kept["mean"]), mean)
    assert {"full", "mean", "uniform", "other"} == set(found.kept)
    assert found.reasons["off"] == found.reasons["constant"] == REPLACED
    with pytest.raises(ValueError, match="want a block whose queries are the positions of its input"):
        statistics(network, x, "0")


def test_batches_by_name_are_refused():
    """As loaders of other libraries give them."""
    with pytest.raises(ValueError, match="want batches of images, or of images and labels, got a dict"):
        ablations(create_block("nonlocal", 8), None, [{"pixel_values": torch.rand(1, 8, 4, 4)}])
