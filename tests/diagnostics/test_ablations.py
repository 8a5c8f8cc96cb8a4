"""Blocks that have to do without something: answers that are known, and networks left as they were."""

import pytest
import torch
from torch import Tensor, nn

from lookfar import create_block, insert
from lookfar.blocks import list_blocks
from lookfar.check.subject import randomise
from lookfar.diagnostics import ablations, why_no_maps

SOME = [
    "nonlocal", "nonlocal(mode=gaussian,subsample=2)", "global_context", "disentangled_nonlocal", "criss_cross",
    "neighborhood_attention", "expectation_maximization", "position_attention", "dual_attention",
]  # fmt: skip


def made(text: str) -> nn.Module:
    from lookfar.blocks import parse_block

    name, options = parse_block(text)
    return randomise(create_block(name, 8, **options)).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("text", [*SOME])
def test_own_maps_give_the_own_output_however_few_at_a_time(text, monkeypatch):
    block, x = made(text), torch.randn(2, 8, 9, 8, dtype=torch.float64)
    for weights in (2**23, 1):
        monkeypatch.setattr(ablations, "WEIGHTS", weights)
        torch.testing.assert_close(ablations.replay(block, x), block(x))
        mean = block.attention(x).mean(-2, keepdim=True).expand(-1, -1, 72, -1)
        torch.testing.assert_close(ablations.replay_mean(block, x), block.finish(x, mean @ block.values(x)))


@torch.no_grad()
def test_one_map_for_all_queries_is_its_own_mean():
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    for text, same in (("global_context", True), ("disentangled_nonlocal(terms=unary)", True), ("nonlocal", False)):
        block = made(text)
        assert torch.allclose(ablations.replay_mean(block, x), block(x)) == same, text


@torch.no_grad()
def test_a_fixed_filter_has_the_same_map_in_every_image():
    """What such a block attends to depends on the query by its place alone: the mean map would call it wrong."""
    block = made("nonlocal")
    for layer in (block.query, block.key):
        layer.weight.zero_()
    x, other = torch.randn(2, 2, 8, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ablations.replay(block, x, other), block(x))


class Host(nn.Module):
    """Two convolutions; the layer after the block works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


def network_with(text: str) -> tuple[nn.Module, list[str]]:
    network = Host().double()
    names = insert(network, text, at="first", example=torch.randn(1, 3, 6, 5, dtype=torch.float64))
    randomise(network.get_submodule(names[0]))
    return network.eval(), names


@torch.no_grad()
@pytest.mark.parametrize("text", ["nonlocal", "neighborhood_attention(kernel_size=3)"])  # the second stands in a gate
def test_in_a_network(text):
    network, names = network_with(text)
    x, others = torch.randn(2, 3, 3, 6, 5, dtype=torch.float64)
    whole = network(x)
    with ablations.watched(network, names) as seen:
        network(x)
        network(others)
    h, of_others = network.first._forward_hooks, seen.inputs[names[0]][1]
    with ablations.map_of_others(network, names, {names[0]: seen.inputs[names[0]][:1]}):
        torch.testing.assert_close(network(x), whole)  # its own
    with ablations.map_of_others(network, names, {names[0]: [of_others]}):
        assert not torch.allclose(network(x), whole)
    with ablations.mean_map(network, names):
        assert not torch.allclose(network(x), whole)
    block = network.get_submodule(names[0])
    inputs = torch.cat(seen.inputs[names[0]])
    added = (block(inputs) - inputs).mean((0, 2, 3))
    torch.testing.assert_close(seen.means()[names[0]], added, rtol=1e-5, atol=1e-6)
    with ablations.constant(network, {names[0]: added}):
        got = network(x)
    x_in = seen.inputs[names[0]][0]
    torch.testing.assert_close(got, network.last((x_in + added[:, None, None]).relu()))
    assert network(x).equal(whole)
    assert network.first._forward_hooks is h


def test_a_block_without_maps_is_refused():
    network, names = network_with("squeeze_excitation")
    with (
        pytest.raises(ValueError, match="squeeze_excitation has no weights over positions"),
        ablations.mean_map(network, names),
    ):
        pass


@torch.no_grad()
def test_every_context_block_with_maps():
    """Shapes and types fit, whatever a block's maps are."""
    x = torch.randn(2, 16, 8, 8)
    tried = 0
    for name in list_blocks(kind="context"):
        block = create_block(name, 16).eval()
        if not why_no_maps(block):
            tried += 1
            for got in (ablations.replay_mean(block, x), ablations.replay(block, x, x.flip(0))):
                assert got.shape == x.shape, name
    assert tried > 10
