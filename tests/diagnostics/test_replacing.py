"""Blocks that have to do without something: answers that are known, and networks left as they were."""

import pytest
import torch
from torch import Tensor, nn

from lookfar import create_block, insert
from lookfar._drawing import randomise
from lookfar.blocks import list_blocks
from lookfar.diagnostics import decompose, replacing, why_no_maps

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
        monkeypatch.setattr(replacing, "WEIGHTS", weights)
        torch.testing.assert_close(replacing.replay(block, x), block(x))
        mean = block.attention(x).mean(-2, keepdim=True).expand(-1, -1, 72, -1)
        torch.testing.assert_close(replacing.replay_mean(block, x), block.finish(x, mean @ block.values(x)))


@torch.no_grad()
def test_one_map_for_all_queries_is_its_own_mean():
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    for text, same in (("global_context", True), ("disentangled_nonlocal(terms=unary)", True), ("nonlocal", False)):
        block = made(text)
        assert torch.allclose(replacing.replay_mean(block, x), block(x)) == same, text


@torch.no_grad()
def test_a_fixed_filter_has_the_same_map_in_every_image():
    """What such a block attends to depends on the query by its place alone: the mean map would call it wrong."""
    block = made("nonlocal")
    for layer in (block.query, block.key):
        layer.weight.zero_()
    x, other = torch.randn(2, 2, 8, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(replacing.replay(block, x, other), block(x))


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
    with replacing.watched(network, names) as seen:
        network(x)
        network(others)
    h, of_others = network.first._forward_hooks, seen.inputs[names[0]][1]
    with replacing.map_of_others(network, names, {names[0]: seen.inputs[names[0]][:1]}):
        torch.testing.assert_close(network(x), whole)  # its own
    with replacing.map_of_others(network, names, {names[0]: [of_others]}):
        assert not torch.allclose(network(x), whole)
    with replacing.mean_map(network, names):
        assert not torch.allclose(network(x), whole)
    block = network.get_submodule(names[0])
    inputs = torch.cat(seen.inputs[names[0]])
    added = (block(inputs) - inputs).mean((0, 2, 3))
    torch.testing.assert_close(seen.means()[names[0]], added, rtol=1e-5, atol=1e-6)
    with replacing.constant(network, {names[0]: added}):
        got = network(x)
    x_in = seen.inputs[names[0]][0]
    torch.testing.assert_close(got, network.last((x_in + added[:, None, None]).relu()))
    assert network(x).equal(whole)
    assert network.first._forward_hooks is h


def test_a_block_without_maps_is_refused():
    network, names = network_with("squeeze_excitation")
    with (
        pytest.raises(ValueError, match="squeeze_excitation has no weights over positions"),
        replacing.mean_map(network, names),
    ):
        pass


@torch.no_grad()
@pytest.mark.parametrize(
    "text", ["nonlocal(heads=2)", "nonlocal(subsample=2)", "nonlocal(mode=gaussian)", "dual_attention"]
)
def test_terms_of_a_softmax_by_their_maps(text):
    block, x = made(text), torch.randn(2, 8, 5, 4, dtype=torch.float64)
    parts = decompose(block, x)
    for term, maps in (("pairwise", parts.pairwise_map()), ("unary", parts.unary_map().expand(-1, -1, 20, -1))):
        want = block.finish(x, maps @ block.values(x))
        torch.testing.assert_close(replacing.replay_term(block, x, term), want)
        assert not torch.allclose(want, block(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "text", ["nonlocal", "nonlocal(subsample=2)", "nonlocal(mode=concatenation)", "global_context"]
)
def test_uniform_is_over_all_keys(text):
    block, x = made(text), torch.randn(2, 8, 5, 4, dtype=torch.float64)
    values = block.values(x)
    want = block.finish(x, values.mean(2, keepdim=True).expand(-1, -1, 20, -1))
    torch.testing.assert_close(replacing.replay_uniform(block, x), want)


@torch.no_grad()
def test_uniform_is_over_what_a_query_may_see(monkeypatch):
    """On 4 x 3 positions: the 3 x 3 window, cut off at borders, and the row and the column; saturated ones too."""
    x = 300 * torch.randn(1, 8, 4, 3, dtype=torch.float64)
    place = [(y, z) for y in range(4) for z in range(3)]
    window = [[max(abs(y - v), abs(z - w)) <= 1 for v, w in place] for y, z in place]
    cross = [[y == v or z == w for v, w in place] for y, z in place]
    for text, sees in (("neighborhood_attention(kernel_size=3)", window), ("criss_cross", cross)):
        block, seen = made(text), torch.tensor(sees, dtype=torch.float64)
        assert ((block.attention(x)[0, 0] == 0) & (seen > 0)).any()
        seen /= seen.sum(1, keepdim=True)
        for weights in (2**23, 1):
            monkeypatch.setattr(replacing, "WEIGHTS", weights)
            torch.testing.assert_close(replacing.replay_uniform(block, x), block.finish(x, seen @ block.values(x)))


@torch.no_grad()
def test_a_saturated_softmax_sees_all_keys():
    block, x = made("nonlocal"), 1e3 * torch.randn(1, 8, 5, 4, dtype=torch.float64)
    assert (block.attention(x) == 0).any()
    mean = block.values(x).mean(2, keepdim=True).expand(-1, -1, 20, -1)
    torch.testing.assert_close(replacing.replay_uniform(block, x), block.finish(x, mean))


def test_no_terms_without_a_softmax_of_dot_products():
    with pytest.raises(ValueError, match="no unary map: criss_cross: its weights are not a softmax of dot products"):
        replacing.replay_term(made("criss_cross"), torch.randn(1, 8, 5, 4, dtype=torch.float64), "unary")


@torch.no_grad()
def test_every_context_block_with_maps():
    """By its own map each is what it was; shapes and types fit, whatever a block's maps are."""
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    tried = 0
    for name in list_blocks(kind="context"):
        block = randomise(create_block(name, 16)).double().eval()
        if not why_no_maps(block):
            tried += 1
            torch.testing.assert_close(replacing.replay(block, x), block(x), rtol=1e-6, atol=1e-6, msg=name)
            others = replacing.replay_mean(block, x), replacing.replay_uniform(block, x)
            for got in (*others, replacing.replay(block, x, x.flip(0))):
                assert got.shape == x.shape, name
                assert got.isfinite().all(), name
    assert tried > 10
