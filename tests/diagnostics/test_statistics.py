"""Statistics of maps: dense float64 loops, invariances, and networks left as they were.

The published definitions are among the goldens, see :mod:`diagnostics.definitions`.
"""

from functools import partial

import numpy as np
import pytest
import torch
from diagnostics.dense import dense, dense_cosine_distance, dense_labels, dense_places, dense_terms
from samples import Sample, samples
from torch import Tensor, nn

from lookfar import create_block, insert
from lookfar._drawing import randomise
from lookfar.cost import peak_memory
from lookfar.diagnostics import Decomposition, ablations, block_statistics, decompose, labels_at, statistics
from lookfar.diagnostics.block_ablations import KINDS
from lookfar.diagnostics.geometry import boundaries
from lookfar.diagnostics.spread import sample_queries
from lookfar.diagnostics.sums import BOTH_SIGNS, OTHER_SUMS, MapSums
from lookfar.ops import _tiles


def made(name: str, channels: int = 8, **options: object) -> nn.Module:
    return randomise(create_block(name, channels, **options)).double().eval()


# ---- dense loops ----

CASES = {
    "odd": ("nonlocal", {}, (5, 3)),
    "two heads": ("nonlocal", {"heads": 2}, (3, 4)),
    "sub-sampled keys": ("nonlocal", {"subsample": 2}, (5, 6)),
    "gate, no scale": ("position_attention", {}, (3, 5)),
}


@pytest.mark.parametrize(("name", "options", "size"), CASES.values(), ids=CASES)
@torch.no_grad()
@pytest.mark.parametrize("portion", [1, 10**9], ids=["a query at a time", "all at once"])
def test_equals_dense_loops(name: str, options: dict[str, object], size: tuple[int, int], portion: int, monkeypatch):
    monkeypatch.setattr(block_statistics, "WEIGHTS", portion)
    block, N = made(name, **options), size[0] * size[1]
    x, labels = torch.randn(2, 8, *size, dtype=torch.float64), torch.randint(0, 3, (2, *(2 * n for n in size)))
    labels[:, :4, :4] = 255
    found = statistics(block, [(x, labels)])
    maps, values, y = block.attention(x), block.values(x), block(x)
    keys = size if "subsample" not in options else tuple(n // 2 for n in size)
    parts = decompose(block, x)
    assert parts is not None
    for b in range(2):
        added = (y - x)[b].flatten(1).square().sum(0)
        assert found["contribution"].plain[b, 0].item() == pytest.approx(float((y - x)[b].norm() / x[b].norm()))
        for kind, w in (("plain", torch.full((N,), 1 / N, dtype=torch.float64)), ("weighted", added / added.sum())):
            of_features = dense_cosine_distance(x[b].flatten(1).T, w)
            assert getattr(found["input_cosine_distance"], kind)[b, 0].item() == pytest.approx(of_features)
            mixed = (maps @ values)[b].transpose(0, 1).flatten(1)
            of_output = dense_cosine_distance(mixed, w)
            assert getattr(found["output_cosine_distance"], kind)[b, 0].item() == pytest.approx(of_output)
            grid, of_queries = (labels_at(labels, s)[b] for s in (keys, size))
            for head, a in enumerate(maps[b]):
                want = dense(a, w, values[b, head])
                want |= dense_places(a, w, size, keys) | dense_labels(a, w, of_queries.tolist(), grid.view(*keys))
                want |= dense_terms(parts.q[b, head], parts.k[b, head], w, parts.scale)
                if keys == size:
                    want["self_weight"] = float((w * a.diagonal()).sum())
                for what, number in want.items():
                    got = getattr(found[what], kind)[b]
                    got = got[head] if len(got) > 1 else got[0]
                    assert got.item() == pytest.approx(number, rel=1e-8, abs=1e-11), (what, kind, b, head)
                missing = found.keys() - want.keys()
                assert missing <= {
                    *("contribution", "input_cosine_distance", "output_cosine_distance", "self_weight"),
                }


def test_pairs_of_a_sample_stand_for_all():
    """Of 36 queries 12 are drawn: near what all say, and exactly that where all are drawn."""
    block, x = made("nonlocal"), torch.randn(1, 8, 6, 6, dtype=torch.float64)
    whole, some = (statistics(block, x, sampled=n)["jensen_shannon"].plain.item() for n in (36, 12))
    assert some == pytest.approx(whole, rel=0.3)
    assert some != pytest.approx(whole, rel=1e-6)
    assert sample_queries(36, 12).equal(sample_queries(36, 12))
    assert not sample_queries(36, 12).equal(sample_queries(36, 12, seed=1))


# ---- invariances ----


def test_order_and_portions_of_queries_do_not_matter():
    rows, v = torch.randn(2, 2, 9, 7, dtype=torch.float64).softmax(-1), torch.randn(2, 2, 7, 3, dtype=torch.float64)
    weights = torch.rand(2, 2, 9, dtype=torch.float64)
    weights /= weights.sum(-1, keepdim=True)
    wholes = []
    for order, portion in ((torch.arange(9), 9), (torch.randperm(9), 2), (torch.arange(9).flip(0), 1)):
        sums = MapSums(weights, v)
        for some in order.split(portion):
            sums.add(rows[:, :, some], some)
        wholes.append(sums.result())
    for other in wholes[1:]:
        for what, number in wholes[0].items():
            torch.testing.assert_close(other[what], number, rtol=1e-12, atol=1e-12, msg=what)


def test_images_count_one_by_one():
    """Twice the same image: the same mean and no deviation. Portions of the images do not matter either."""
    block, x = made("nonlocal"), torch.randn(3, 8, 5, 4, dtype=torch.float64)
    whole, parts = statistics(block, x), statistics(block, [x[:1], x[1:]])
    twice = statistics(block, x[:1].expand(2, -1, -1, -1))
    for name in whole:
        torch.testing.assert_close(parts[name].plain, whole[name].plain)
        torch.testing.assert_close(twice[name].mean, whole[name].plain[0])
        assert not twice[name].deviation.any()
    torch.testing.assert_close(whole["entropy"].deviation, whole["entropy"].plain.std(0))


# ---- answers that are known ----


def test_one_map_for_all_queries():
    block, x = made("nonlocal"), torch.randn(2, 8, 4, 3, dtype=torch.float64)
    block.query.weight.data.zero_()
    found = statistics(block, x)
    one = {"similarity": 1, "unary_share": 1, "shared_energy": 1, "stable_rank": 1, "effective_rank": 1, "rank_90": 1}
    none = ("mutual_information", "cosine_distance", "jensen_shannon", "output_residual", "kl_joint_unary")
    for name, number in {**one, **dict.fromkeys(none, 0)}.items():
        for of in (found[name].plain, found[name].weighted):
            assert of.flatten().tolist() == pytest.approx([number] * 2, abs=1e-6), name
    assert found["entropy"].mean < 0.99 * np.log(12)


def test_weights_bring_out_the_queries_that_get_something():
    """Half of the maps are one, to which nothing is added: weighted they are not there."""
    rows = torch.eye(4)[[0, 0, 0, 0, 1, 2]].double()[None, None]
    weights = torch.tensor([[[1 / 6] * 6], [[0.0, 0, 0, 0, 0.5, 0.5]]])
    sums = MapSums(weights)
    sums.add(rows, torch.arange(6))
    assert sums.result()["similarity"].flatten().tolist() == pytest.approx([12 / 30, 0])


@pytest.mark.parametrize(
    ("options", "reason"), [({"mode": "dot_product"}, BOTH_SIGNS), ({"normalization": "sigmoid"}, OTHER_SUMS)]
)
def test_weights_that_are_no_distribution_say_so(options, reason):
    found = statistics(made("nonlocal", **options), torch.randn(2, 8, 4, 3, dtype=torch.float64))
    for name in ("entropy", "mutual_information", "jensen_shannon", "distance", "self_weight", "effective_keys"):
        assert found[name].plain.isnan().all()
        assert found[name].reason == reason
    for name in ("similarity", "cosine_distance", "output_residual", "effective_rank", "distance_uniform"):
        assert found[name].plain.isfinite().all()
        assert not found[name].reason
    assert found["unary_share"].reason == "its weights are not a softmax of dot products of queries and keys"
    assert reason in str(found)


def test_keys_without_a_grid_lie_nowhere():
    x = torch.randn(1, 16, 12, 12, dtype=torch.float64)
    found = statistics(made("asymmetric_nonlocal", 16), [(x, torch.zeros(1, 12, 12, dtype=torch.long))])
    for name in ("distance", "label_mass", "boundary_mass", "self_weight"):
        assert found[name].reason == "its 110 keys form no grid"
    assert found["entropy"].plain.isfinite().all()


def test_a_block_that_adds_nothing_has_no_weights():
    found = statistics(create_block("nonlocal", 8), torch.randn(1, 8, 4, 4))
    assert found["contribution"].mean == 0
    assert found["entropy"].weighted.isnan().all()
    assert "adds nothing" in found.unweighted
    assert found.unweighted in str(found)


def test_a_single_position_and_void_labels():
    found = statistics(made("nonlocal"), [(torch.randn(1, 8, 1, 1).double(), torch.full((1, 4, 4), 255))])
    assert found["similarity"].reason == "a single query"
    assert found["entropy_normalised"].reason == "a single key"
    assert found["label_lift"].reason == "no labelled query"
    assert found["effective_keys"].mean == 1


@samples(attends="weights")
def test_every_block_has_every_number_or_a_reason(sample: Sample):
    """Or is refused, as tokens and maps of another size are."""
    block, size = sample.make(), (6, 7) if len(sample.sizes[0]) == 2 else sample.sizes[0]
    (x, *_) = sample.inputs(block, size, batch=2)
    if sample.info.kind in ("tokens", "upsampler") or sample.options.get("stride"):
        with pytest.raises(ValueError, match="want a block whose queries are the positions of its input"):
            statistics(block, x)
        return
    for name, of in statistics(block, x).items():
        assert bool(of.plain.isnan().any()) == bool(of.reason), name
        assert of.reason != "not defined for these maps", name


def test_boundaries_are_between_classes_and_void_is_none():
    labels = torch.tensor([[[0, 0, 255, 1], [0, 0, 2, 1]]])
    assert boundaries(labels).int().tolist() == [[[0, 0, 0, 0], [0, 1, 1, 1]]]


@pytest.mark.parametrize(
    ("name", "options", "has"),
    [
        ("nonlocal", {"mode": "gaussian", "heads": 2}, True),
        ("dual_attention", {}, True),
        ("feature_denoising", {}, True),
        ("feature_denoising", {"filter": "bilateral_gaussian"}, False),
        ("nonlocal", {"normalization": "double"}, False),
        ("criss_cross", {}, False),
        ("neighborhood_attention", {"kernel_size": 3}, False),
        ("global_context", {}, False),
    ],
)
def test_two_terms_only_of_a_softmax_of_dot_products(name, options, has):
    block, x = made(name, **options), torch.randn(2, 8, 5, 4, dtype=torch.float64)
    parts = decompose(block, x)
    assert (parts is not None) == has
    if parts is not None:  # the two together are the block's own maps
        both = parts.pairwise_map() * parts.unary_map()
        torch.testing.assert_close(both / both.sum(-1, keepdim=True), block.attention(x))


def test_no_energy_lies_between_the_terms_whatever_the_weights():
    parts = Decomposition(*torch.randn(2, 1, 1, 6, 3, dtype=torch.float64).unbind(0), 1.0)
    w = torch.rand(1, 1, 6, dtype=torch.float64)
    w /= w.sum()
    found = parts.numbers(w, torch.ones(1, 1, 1, 6), torch.zeros(1, 1, 1))
    logits = parts.q @ parts.k.transpose(-1, -2)
    centred = logits - logits.mean(-1, keepdim=True)
    total = (w[0, 0] * centred[0, 0].square().mean(-1)).sum()
    torch.testing.assert_close((found["pairwise_energy"] + found["unary_energy"]).squeeze(), total)


# ---- networks ----


class Host(nn.Module):
    """Draws in every mode, has a dropout for training alone, and a frozen norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8).eval()
        self.drop, self.last = nn.Dropout(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x + 0 * torch.rand_like(x)))))


def test_a_network_is_left_as_it_was():
    network = Host()
    (name,) = insert(network, "nonlocal", at="first", example=torch.randn(1, 3, 6, 5))
    randomise(network.get_submodule(name))
    network.train()
    network.norm.eval()
    x = torch.randn(2, 3, 6, 5)
    torch.manual_seed(1)
    before, random = network(x), torch.get_rng_state()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()}
    found = statistics(network, [(x, torch.zeros(2, 6, 5, dtype=torch.long))])
    assert torch.get_rng_state().equal(random)
    assert [m.training for m in (network, network.norm, network.drop)] == [True, False, True]
    assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()} == hooks
    assert all(network.state_dict()[key].equal(value) for key, value in state.items())
    torch.manual_seed(1)
    assert network(x).equal(before)
    # of the block on what came in, in evaluation
    network.eval()
    alone = statistics(network.get_submodule(name), inputs_at(network, name, x))
    torch.testing.assert_close(alone["entropy"].plain, found["entropy"].plain)


def inputs_at(network: nn.Module, name: str, x: Tensor) -> Tensor:
    from lookfar.diagnostics._undisturbed import inputs_of

    with torch.no_grad(), inputs_of(network, [name]) as seen:
        network(x)
    return seen[name][0]


def test_in_a_gate_the_weights_are_those_of_what_enters():
    network = Host()
    (name,) = insert(network, "criss_cross", at="first", example=torch.randn(1, 3, 6, 5))
    gate = network.get_submodule(name)
    randomise(gate)
    found = statistics(network, torch.randn(2, 3, 6, 5))
    assert found.block == "criss_cross"
    assert found["entropy"].weighted.isfinite().all()


def test_half_precision_is_measured_in_full():
    network = Host().bfloat16()
    (name,) = insert(network, "nonlocal(heads=2)", at="first", example=torch.randn(1, 3, 6, 5).bfloat16())
    randomise(network.get_submodule(name))
    x = torch.randn(2, 3, 6, 5).bfloat16()
    found = statistics(network, x)
    assert found["entropy"].plain.dtype == torch.float64
    assert not any(of.reason for of in found.values())
    assert set(ablations(network, name, x, training=x).counts) == set(KINDS)


def test_refused():
    network = Host()
    with pytest.raises(ValueError, match="the network has no block of the registry"):
        statistics(network, torch.randn(1, 3, 6, 5))
    insert(network, "squeeze_excitation", at="first", example=torch.randn(1, 3, 6, 5))
    with pytest.raises(ValueError, match="no block is called 'last'; the network's blocks are squeeze_excitation"):
        statistics(network, torch.randn(1, 3, 6, 5), "last")
    with pytest.raises(ValueError, match="squeeze_excitation has no weights over positions"):
        statistics(network, torch.randn(1, 3, 6, 5))
    with pytest.raises(ValueError, match="at least one batch"):
        statistics(create_block("nonlocal", 8), [])
    with pytest.raises(ValueError, match=r"want labels \(B, H, W\) .* got \(2,\)"):
        statistics(create_block("nonlocal", 8), [(torch.randn(2, 8, 3, 3), torch.zeros(2))])
    with pytest.raises(ValueError, match="want a block whose queries are the positions of its input"):
        statistics(create_block("carafe", 8), torch.randn(2, 8, 4, 4))


def test_memory_grows_with_the_positions_and_not_with_their_square(monkeypatch):
    """Twice the side: four times the positions, at most 4^1.1 times the memory, where pairs would be 16."""
    monkeypatch.setattr(block_statistics, "WEIGHTS", 2**12)
    monkeypatch.setattr(_tiles, "LIMITS", {"rows": 64, "keys": 64})
    block, peaks = made("nonlocal").float(), []
    for side in (10, 20):
        x, labels = torch.randn(1, 8, side, side), torch.randint(0, 3, (1, side, side))
        peaks.append(peak_memory(partial(statistics, block, [(x, labels)], sampled=4)))
    assert peaks[1] < 4**1.1 * peaks[0]
