"""A block with one map for all queries, made of one that has a map for each, is the same function where it can be."""

import pytest
import torch
from torch import nn

from lookfar.blocks import create_block
from lookfar.diagnostics import simplifying as S

EXACT = {
    "nonlocal": ("nonlocal", {}),
    "without norm, its W_z has a bias": ("nonlocal", {"norm_layer": None}),
    "without biases": ("nonlocal", {"norm_layer": None, "bias": False}),
    "norm without a bias before it": ("nonlocal", {"project_bias": False, "inner_channels": 5}),
    "heads": ("nonlocal", {"heads": 4}),
    "sub-sampling": ("nonlocal", {"subsample": 2, "subsample_order": "before", "heads": 2}),
    "sequences": ("nonlocal", {"dims": 1, "scale": 2.0}),
    "videos": ("nonlocal", {"dims": 3, "subsample": 2, "subsample_order": "before"}),
    "position attention": ("position_attention", {}),
    "position attention, heads": ("position_attention", {"heads": 2, "reduction": 4}),
    "DNL": ("disentangled_nonlocal", {}),
    "DNL, not whitened": ("disentangled_nonlocal", {"whiten": None}),
    "DNL of mmseg": ("disentangled_nonlocal", {"variant": "mmseg", "heads": 2}),
    "DNL, three maps": (
        "disentangled_nonlocal",
        {"unary": "both", "value_channels": 6, "heads": 2, "norm_layer": nn.BatchNorm2d, "subsample": 2},
    ),
    "DNL, multiplied": ("disentangled_nonlocal", {"combine": "multiply"}),
    "DNL, joint": ("disentangled_nonlocal", {"terms": "joint"}),
}
SIZES = {1: (35,), 2: (7, 5), 3: (3, 6, 5)}


def grown(name, *, needs_query=False, **options):
    """A block with random parameters and statistics, in evaluation; its queries are constant."""
    torch.manual_seed(0)
    block = create_block(name, 16, **options).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    for key, buffer in block.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_()
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    if not needs_query:
        nn.init.zeros_(block.query.weight)
    return block


def inputs_of(block, batch=2, count=3):
    return [torch.randn(batch, 16, *SIZES[block.dims]) + 0.3 for _ in range(count)]


@pytest.mark.parametrize("case", EXACT)
@torch.no_grad()
def test_exact_where_queries_are_constant(case):
    name, options = EXACT[case]
    block = grown(name, **options)
    start = S.start_masks(block, inputs_of(block))
    copied, fitted = (
        S.with_masks(S.average_of(block), masks) for masks in (start, S.fit_masks(block, inputs_of(block), start))
    )
    for new in (copied, fitted):
        for x in inputs_of(block, batch=1, count=2):  # other images than those of the fit
            want = block(x)
            assert (new(x) - want).abs().max() < 1e-5 * max(1, float(want.abs().max()))
    again = create_block("simplified_nonlocal", 16, **S.options_of(block))
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.eval()(x), fitted(x))


@torch.no_grad()
def test_average_is_the_plain_average_of_values():
    block = grown("nonlocal", heads=2)
    nn.init.zeros_(block.query.bias)
    (x,) = inputs_of(block, count=1)
    assert torch.allclose(S.average_of(block)(x), block(x), atol=1e-5)


@torch.no_grad()
def test_a_block_without_its_sum_becomes_one_without():
    whole, alone = grown("nonlocal", heads=2), create_block("nonlocal", 16, heads=2, residual=False).eval()
    alone.load_state_dict(whole.state_dict())
    batches = inputs_of(whole)
    assert torch.allclose(S.average_of(alone)(batches[0]), S.average_of(whole)(batches[0]) - batches[0], atol=1e-5)
    errors = [S.errors_of(block, {"average": S.average_of(block)}, batches) for block in (alone, whole)]
    assert errors[0].floor == pytest.approx(errors[1].floor, abs=1e-5)
    assert errors[0].of["average"] == pytest.approx(errors[1].of["average"], abs=1e-5)


@torch.no_grad()
def test_masks_of_the_fit_are_nearer_than_those_of_the_start():
    """Images of the fit: cross-entropy to their mean maps; and no block with one vector is nearer than the floor."""
    block = grown("nonlocal", needs_query=True)
    inputs = inputs_of(block, batch=4)
    start = S.start_masks(block, inputs)
    average = S.average_of(block)
    found = S.errors_of(
        block,
        {
            "copied": S.with_masks(average, start),
            "fitted": S.with_masks(average, S.fit_masks(block, inputs, start)),
            "average": average,
        },
        inputs,
    )
    assert found.floor <= found.mean_map + 1e-6
    assert found.floor <= min(found.of.values())
    assert found.of["fitted"] < found.of["average"]
    assert found.floor > 0.1

    def cross_entropy(masks):
        total = 0.0
        for x in inputs:
            wanted = block.attention(x).mean(2)
            total -= float((wanted * S.with_masks(average, masks).attention(x)[:, :, 0].log()).sum())
        return total

    fitted = S.fit_masks(block, inputs, start)
    best = cross_entropy(fitted)
    assert best <= cross_entropy(start)
    for _ in range(10):  # convex: whatever is changed is worse
        assert cross_entropy(fitted + 0.05 * torch.randn_like(fitted)) >= best


@pytest.mark.parametrize("name", ["simplified_nonlocal", "global_context"])
def test_distillation_comes_nearer(name):
    block = grown("nonlocal", needs_query=True)
    inputs = inputs_of(block)
    new = S.average_of(block) if name == "simplified_nonlocal" else create_block(name, 16, reduction=2).eval()
    before = S.errors_of(block, {"new": new}, inputs).of["new"]
    S.distil(new, block, inputs, 40, lr=1e-2)
    found = S.errors_of(block, {"new": new}, inputs)
    assert found.floor <= found.of["new"] < before
    assert block.query.weight.grad is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("criss_cross", {}, "cannot become one map"),
        ("nonlocal", {"mode": "dot_product"}, "not a softmax"),
        ("nonlocal", {"normalization": "sigmoid"}, "not a softmax"),
        ("nonlocal", {"subsample": 2}, "pooled after their convolutions"),
        ("nonlocal", {"norm_layer": lambda channels, **dd: nn.GroupNorm(2, channels, **dd)}, "GroupNorm, want a Batch"),
        ("position_attention", {"normalization": "double"}, "not a softmax"),
    ],
)
def test_what_cannot_become_one_map_says_why(name, options, reason):
    block = create_block(name, 16, **options)
    assert reason in S.why_not_simple(block)
    with pytest.raises(ValueError, match=reason):
        S.average_of(block)


def test_a_layer_that_is_no_block():
    assert S.why_not_simple(nn.ReLU()).startswith("ReLU is not a block of the registry")
