"""Costs: FLOPs against closed forms, memory against known allocations, growth against known laws."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from samples import samples
from torch import nn

from lookfar import ops
from lookfar.blocks import create_block
from lookfar.cost import (
    count_flops,
    growth,
    handwritten,
    measure_cost,
    measure_network,
    memory,
    peak_memory,
    size_for,
)
from lookfar.ops import _blockwise, _offset_tiles, _tiles


def attention(x, n, width):
    q, k, v = x[:, :, :, :n], x[:, :, :, n : 2 * n], x[:, :, :, -width:]
    return F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())


def test_flops_of_attention_on_cpu():
    x = torch.randn(2, 3, 50, 24)
    pairs = 2 * 3 * 50 * 50
    assert count_flops(attention, x, 8, 8) == 2 * pairs * (8 + 8)
    x.requires_grad_()
    # the fused kernel computes the weights again in the backward pass: two products forward, five backward
    assert count_flops(lambda: attention(x, 8, 8).sum().backward()) == 2 * pairs * 7 * 8


def test_flops_do_not_count_zeros_that_fill_up():
    q, k, v = (torch.randn(1, 2, n, d, requires_grad=True) for n, d in [(60, 5), (40, 5), (40, 16)])

    def run():
        wide = [F.pad(t, (0, 16 - t.shape[-1])) for t in (q, k, v)]
        return F.scaled_dot_product_attention(*wide)

    pairs = 2 * 60 * 40
    assert count_flops(run) == 2 * pairs * (5 + 16)
    assert count_flops(lambda: run().sum().backward()) == 2 * pairs * (4 * 5 + 3 * 16)


def test_flops_of_padding_with_other_values_count():
    q = torch.randn(1, 1, 10, 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(*[F.pad(q, (0, 4), value=1.0)] * 3)) == 2 * 100 * 16


def test_peak_memory_is_exact():
    x = torch.randn(1000)
    assert peak_memory(x.neg) == 4000
    assert peak_memory(lambda: x.neg().neg()) == 8000
    assert peak_memory(lambda: [x.neg() for _ in range(5)]) == 20000
    assert peak_memory(lambda: [x.neg().sum() for _ in range(5)]) < 4100  # each released before the next


def test_both_recorders_agree():
    module, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(2, 4, 16, 16)

    def peak(record):
        total = top = 0
        for change in record(lambda: module(x)):
            top = max(top, total := total + change)
        return top

    want = peak(memory.recorded)
    assert want >= 2 * 8 * 14 * 14 * 4
    assert peak(memory.recorded_by_kineto) == want


def test_scratch_of_fused_attention_is_seen():
    q, k, v = (torch.randn(1, 1, 1024, d) for d in (16, 16, 16))
    output, log_sums = 1024 * 16 * 4, 1024 * 4
    seen = peak_memory(lambda: F.scaled_dot_product_attention(q, k, v))
    assert output + log_sums < seen < 1024 * 1024 * 4  # with the scratch of the blocks, without N x N


def cells_of_windows(H, W, kernel_size, stride, dilation, border):
    """Cells of the windows of all queries, by unfolding a padded map; a clamped window is no larger than the map."""
    (kh, kw), (lh, lw) = kernel_size, dilation
    if border == "clamped":
        return H * W * min(kh, H) * min(kw, W)
    padding = (lh * (kh // 2), lw * (kw // 2))
    return F.unfold(torch.ones(1, 1, H, W), kernel_size, dilation=dilation, stride=stride, padding=padding).numel()


WINDOWS = [
    ((3, 3), (1, 1), (1, 1), "mask"),
    ((5, 3), (1, 1), (1, 1), "zeros"),
    ((3, 5), (2, 3), (1, 1), "mask"),
    ((3, 3), (2, 2), (2, 1), "zeros"),
    ((7, 7), (1, 1), (3, 2), "mask"),
    ((11, 13), (1, 1), (1, 1), "mask"),
    ((5, 3), (1, 1), (1, 1), "clamped"),
    ((11, 3), (1, 1), (1, 1), "clamped"),
]


@pytest.mark.parametrize("similarity", ["product", "squared"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_flops_of_windows_are_those_of_all_their_cells(window, similarity):
    kernel_size, stride, dilation, border = window
    B, h, D, E, H, W = 2, 3, 4, 5, 9, 8
    q = torch.randn(B, h, D, -(-H // stride[0]), -(-W // stride[1]), requires_grad=True)
    k, v = (torch.randn(B, h, width, H, W, requires_grad=True) for width in (D, E))
    options = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "border": border}

    def run():
        return ops.neighborhood(q, k, v, similarity=similarity, **options)

    forward = 2 * B * h * cells_of_windows(H, W, *window) * (D + E)
    assert count_flops(run) == forward
    assert count_flops(lambda: run().sum().backward()) == 3 * forward  # each map gets its gradient by one pass


@pytest.mark.parametrize("normalization", ["softmax", "l1"])
def test_flops_of_the_near_part_of_sparse_attention(normalization):
    q = torch.randn(1, 2, 4, 9, 8)

    def flops(pattern):
        options = {"kernel_size": 5, "dilation": 3, "normalization": normalization}
        return count_flops(lambda: ops.sparse_attention(q, q, q, pattern=pattern, **options))

    assert flops("sparse") - flops("atrous") == 2 * 2 * (9 * 8) * 5**2 * (4 + 4)


def test_flops_of_windows_in_a_transform_of_torch_func():
    q = torch.randn(1, 2, 4, 6, 5)

    def run(q):
        return ops.neighborhood(q, q, q, kernel_size=3).sum()

    assert count_flops(torch.func.grad(run), q) >= count_flops(run, q) == 2 * 2 * (6 * 5) * 9 * 8


@pytest.mark.parametrize(("groups", "k"), [(1, 3), (4, 3), (2, 1)])
def test_flops_of_moved_samples(groups, k):
    B, C, O, H, W = 2, 8, 6, 5, 4
    x = torch.randn(B, C, H, W, requires_grad=True)
    weights = torch.randn(B, groups * k * k, H, W, requires_grad=True)
    offsets = torch.randn(B, 2 * k * k, H, W, requires_grad=True)
    kernel = torch.randn(O, C, k, k, requires_grad=True)
    samples = B * k * k * H * W

    def read():
        return ops.deformable_sum(weights.unflatten(1, (groups, k * k)), x, offsets)

    def convolve():
        return ops.deformable_convolution(x, kernel, offsets)

    assert count_flops(read) == 2 * 4 * samples * C
    assert count_flops(lambda: read().sum().backward()) == 3 * 2 * 4 * samples * C
    assert count_flops(convolve) == 2 * samples * O * (C + 4)
    # mixed again for the places' gradient, then the gradients of map and kernel
    assert count_flops(lambda: convolve().sum().backward()) == 2 * samples * O * (4 * C + 3 * 4)


def test_flops_of_ops_leave_no_trace():
    before = [vars(owner)[name] for owner, name, _ in handwritten.WORK]
    with pytest.raises(RuntimeError, match="stop"):
        count_flops(lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    assert [vars(owner)[name] for owner, name, _ in handwritten.WORK] == before


def test_flops_of_the_attention_of_torch():
    """In evaluation it is one kernel without products inside, as far as a counter sees."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 10, 32)
    with torch.no_grad():
        assert count_flops(layer, x) == 2 * (2 * 10 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 10**2 * 2 * 32)


def test_flops_of_what_is_compiled_are_those_of_what_was_written():
    module = create_block("stand_alone", 8, kernel_size=3, heads=2)
    compiled, x = torch.compile(module, backend="eager"), torch.randn(1, 8, 6, 5)
    with torch.no_grad():
        compiled(x)
        assert count_flops(compiled, x) == count_flops(module, x) > 0


def test_flops_of_vectors_and_of_reading():
    a, x = torch.randn(3, 8), torch.randn(8)
    assert count_flops(lambda: a @ x) == 2 * 24
    assert count_flops(lambda: torch.addmv(torch.zeros(3), a, x)) == 2 * 24
    assert count_flops(lambda: torch.dot(x, x)) == 2 * 8
    assert count_flops(lambda: torch.zeros(3, 3).addmm_(a, a.T)) == 2 * 3 * 3 * 8
    assert count_flops(lambda: torch.zeros(2, 3, 3).baddbmm_(a.expand(2, 3, 8), a.T.expand(2, 8, 3))) == 2 * 2 * 9 * 8
    image, grid = torch.randn(1, 3, 5, 5), torch.rand(1, 2, 7, 2)
    assert count_flops(lambda: F.grid_sample(image, grid, align_corners=True)) == 2 * 4 * 3 * 2 * 7


def test_one_nonlocal_block_costs_what_it_costs():
    """4.83 GMAC; counters that do not see fused attention report 0.54."""
    assert measure_cost("nonlocal", 256, (64, 64), repeats=1).flops == 2 * (4 * 4096 * 256 * 128 + 4096**2 * 256)


C, D, N, H, W = 32, 16, 9 * 7, 9, 7
S = K = 64
CLOSED_FORMS = {  # multiply-adds on a map of 9 x 7 with 32 channels
    "nonlocal": 4 * N * C * D + N**2 * 2 * D,
    "nonlocal(heads=4)": 4 * N * C * D + N**2 * 2 * D,
    "nonlocal(mode=gaussian)": 2 * N * C * D + N**2 * (C + D),
    "nonlocal(mode=dot_product)": 4 * N * C * D + 2 * N * D**2,  # k^T g, then q
    "nonlocal(mode=concatenation)": 2 * N * C * D + 2 * N * C + N**2 * D,  # a and b are one number a position
    "nonlocal(subsample=2)": 4 * N * C * D + N * (4 * 3) * 2 * D,
    "simplified_nonlocal": 2 * N * C + C**2,
    "global_context": 2 * N * C + 2 * C * (C // 16),
    "criss_cross": 2 * (N * C * (2 * C // 8 + C) + N * (H + W) * (C // 8 + C)),
    "criss_cross(recurrence=1)": N * C * (2 * C // 8 + C) + N * (H + W) * (C // 8 + C),
    "position_attention": N * C * (2 * C // 8 + C) + N**2 * (C // 8 + C),
    "channel_attention": 2 * N * C**2,
    "dual_attention": N * C * (2 * C // 8 + C) + N**2 * (C // 8 + C) + 2 * N * C**2,
    "external_attention": 2 * N * C * S + 2 * C**2 * S + C * S,  # both convolutions, and a bias, go into the memories
    "squeeze_excitation": 2 * C * (C // 16),
    "local_attention": 4 * N * C * D + N * 7**2 * 2 * D,
    "stand_alone": 3 * N * C**2 + N * 7**2 * 2 * C + N * 7 * C,  # the relative logits at the end
    "stand_alone(kernel_size=11)": 3 * N * C**2 + N * 11**2 * 2 * C + N * 11 * C,  # wider than the map
    "local_relation": 2 * N * C * 4 + N * C**2 + N * 7**2 * (4 + C) + 7**2 * (2 + 4) * 16,  # 4 groups; the prior
    "carafe": N * C * 64 + N * 64 * 9 * 100 + 4 * N * 5**2 * C,
    "cbam": 2 * 2 * C * (C // 16) + N * 2 * 7**2,
}


@pytest.mark.parametrize("block", CLOSED_FORMS)
def test_flops_against_closed_forms(block):
    assert measure_cost(block, C, (H, W), repeats=1).flops == 2 * CLOSED_FORMS[block]


def test_flops_of_sorted_keys_where_weights_are_many(monkeypatch):
    """Sums before each key within two blocks of 32, and their whole, once plain and once weighted by b."""
    monkeypatch.setitem(_tiles.LIMITS, "keys", 5)
    prefix_sums = 2 * 2 * 32 * (32 + 1) * D
    flops = measure_cost("nonlocal(mode=concatenation)", C, (H, W), repeats=1).flops
    assert flops == 2 * (2 * N * C * D + 2 * N * C + prefix_sums)


def test_flops_of_both_passes_against_closed_forms(monkeypatch):
    def flops(block):
        return measure_cost(block, C, (H, W), batch=1, backward=True, repeats=1).flops

    # a convolution costs thrice; attention two products forward and four backward where weights are few
    assert flops("nonlocal") == 2 * (3 * 4 * N * C * D + 6 * N**2 * D)
    monkeypatch.setitem(_tiles.LIMITS, "rows", 4)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 5)
    # and else five, with the weights computed again
    assert flops("nonlocal") == 2 * (3 * 4 * N * C * D + 7 * N**2 * D)
    # queries that are the keys: half of the logits, but all of a block of queries with itself
    half = (N**2 + sum(len(range(i, min(i + 4, N))) ** 2 for i in range(0, N, 4))) // 2
    assert flops("nonlocal(mode=gaussian)") == 2 * (3 * 2 * N * C * D + half * 4 * C + 3 * N**2 * D)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@samples("context")
def test_memory_grows_linearly(sample, backward, monkeypatch):
    """With small budgets of logits, small maps show what `lookfar cost --grow` measures from 64x64 to 256x256."""
    if len(sample.sizes[0]) != 2:
        pytest.skip("asked of maps")
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 2**17)
    monkeypatch.setitem(_tiles.LIMITS, "rows", 64)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 64)
    monkeypatch.setitem(_offset_tiles.LIMIT, "products", 2**13)
    monkeypatch.setattr(sys.modules["lookfar.ops.criss_cross"], "_limit", lambda t: 2**12)
    torch.manual_seed(0)
    module = sample.make(dtype=torch.float32, train=backward)

    def peak(n):
        (x,) = sample.inputs(module, (n, n), batch=2)
        if not backward:
            with torch.no_grad():
                return peak_memory(lambda: module(x), x.device)
        module.zero_grad()
        return peak_memory(lambda: module(x.requires_grad_()).sum().backward(), x.device)

    short, long = 32, 48
    assert peak(long) / peak(short) < (long / short) ** (2 * 1.1)


def test_position_attention_against_closed_form():
    C, D, N = 32, 4, 12 * 20
    got = measure_cost("position_attention", C, (12, 20), repeats=2)
    assert got.flops == 2 * (2 * N * C * D + N * C * C) + 2 * N * N * (D + C)
    assert got.parameters == 2 * (C * D + D) + C * C + C + 1
    assert (got.channels, got.size, got.batch, got.repeats) == (C, (12, 20), 1, 2)
    assert got.latency_ms > 0
    # so few logits and weights are held at once
    assert N * C * 4 < got.memory_mb * 1e6 < 2 * N * N * 4 + 8 * N * C * 4


def test_a_norm_behind_global_pooling_trains_on_the_default_batch():
    assert measure_cost("adaptive_context", 16, (8, 8), backward=True, repeats=1).batch == 2


def test_backward_costs_more():
    forward, both = (
        measure_cost("pam(reduction=4)", 16, (9, 7), batch=1, backward=b, repeats=1) for b in (False, True)
    )
    assert both.flops > 2 * forward.flops
    assert both.memory_mb > forward.memory_mb
    assert both.name == "pam(reduction=4)"


def test_modules_are_left_as_they_were():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), create_block("position_attention", 4))
    network[1].eval()
    before, flags = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    random_state = torch.get_rng_state()
    for backward in (False, True):
        measured = measure_network(network, torch.randn(2, 3, 9, 9), backward=backward, repeats=1)
        assert (measured.name, measured.channels, measured.size, measured.batch) == ("Sequential", 3, (9, 9), 2)
    random_after = torch.get_rng_state()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert [m.training for m in network.modules()] == flags
    assert all(p.grad is None for p in network.parameters())
    torch.set_rng_state(random_state)
    torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)
    assert torch.equal(torch.get_rng_state(), random_after)  # nothing drawn but the two examples


class Takes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images, scale=None):
        if isinstance(images, list):
            images = torch.stack(images)
        y = self.conv(images)
        return {"out": [y if scale is None else y * scale]}


@pytest.mark.parametrize(
    ("example", "batch"),
    [
        ({"images": torch.randn(2, 3, 8, 8)}, 2),
        ({"images": torch.randn(2, 3, 8, 8), "scale": torch.tensor(2.0)}, 2),
        (([torch.randn(3, 8, 8)] * 3,), 3),
        ([torch.randn(3, 8, 8)] * 3, 3),
        ((torch.randn(2, 3, 8, 8), 0.5), 2),
    ],
    ids=["dict", "dict of two", "tuple with list", "list", "tuple"],
)
@pytest.mark.parametrize("backward", [False, True])
def test_networks_are_called_as_insertion_calls_them(example, batch, backward):
    cost = measure_network(Takes(), example, backward=backward, repeats=1)
    assert (cost.batch, cost.channels, cost.size) == (batch, 3, (8, 8))
    assert cost.flops == (3 if backward else 1) * 2 * batch * 36 * 27 * 4


def test_an_example_without_a_tensor():
    with pytest.raises(ValueError, match="the example holds no tensor: 'picture"):
        measure_network(Takes(), "picture.png")


class Definition(nn.Module):
    def forward(self, x):
        t = x.flatten(2)
        return (t @ (t.transpose(1, 2) @ t).softmax(-1)).view_as(x)


def test_growth_tells_the_definition_from_the_exact_path():
    sizes = [(24, 24), (32, 32), (48, 48)]
    plain = growth(Definition(), 4, sizes)
    ours = growth("position_attention", 4, sizes)
    assert 1.9 < plain.memory_exponent < 2.1
    assert ours.memory_exponent < 1.1
    assert [p.size for p in ours.points] == sizes
    assert growth("position_attention", 4, sizes, backward=True).memory_exponent < 1.1


def test_growth_skips_what_would_take_too_long():
    grown = growth("position_attention", 4, [(8, 8), (2000, 2000)], limit=1.0)
    assert grown.skipped == ((2000, 2000),)
    assert (grown.time_exponent, len(grown.points)) == (None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "positional_attention"}, "Did you mean position_attention"),
        ({"size": (0, 4)}, "positive whole numbers"),
        ({"size": ()}, "positive whole numbers"),
        ({"repeats": 0}, "repeats must be a positive integer, got 0"),
        ({"device": "meta"}, "'cpu' or 'cuda'"),
        ({"device": "gpu"}, "'cpu' or 'cuda'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_cost(**{"block": "position_attention", "channels": 8, "size": (4, 4), **arguments})


@pytest.mark.parametrize(
    ("block", "size", "message"),
    [
        ("nonlocal", (16,), "size must have the 2 axes of nonlocal, such as 64x64, got 16; with dims=1 it takes that"),
        ("nonlocal", (4, 4, 4), "got 4x4x4; with dims=3 it takes that"),
        ("nonlocal(dims=1)", (4, 4), r"the 1 axis of nonlocal\(dims=1\), such as 4096, got 4x4; with dims=2"),
        ("carafe", (4, 4, 4), "the 2 axes of carafe, such as 64x64, got 4x4x4$"),
        ("position_attention", (10**9, 10**9), "size must have at most 2\\^31 positions, got 1000000000x1000000000"),
    ],
)
def test_sizes_that_a_block_cannot_take(block, size, message):
    with pytest.raises(ValueError, match=message):
        measure_cost(block, 8, size, repeats=1)


def test_sizes_have_the_axes_of_the_block():
    for block, want in [("nonlocal(dims=1)", (4096,)), ("carafe", (64, 64)), ("nonlocal(dims=3)", (16, 16, 16))]:
        assert size_for(block) == want
    assert measure_cost("nonlocal(dims=1)", 4, (6,), repeats=1).size == (6,)
    assert measure_cost("nonlocal(dims=3)", 4, (2, 3, 4), repeats=1).size == (2, 3, 4)
    assert measure_cost("self_attention", 16, (6,), repeats=1).size == (6,)


def test_growth_needs_two_sizes():
    with pytest.raises(ValueError, match="two different sizes"):
        growth("position_attention", 8, [(4, 6), (6, 4)])
