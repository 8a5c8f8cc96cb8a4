"""The disentangled block: laws of taking apart, whitening by the authors' words, and what no golden shows."""

import pytest
import torch
from ops._compare import assert_same
from torch import Tensor, nn

from lookfar import create_block


def made(**options) -> nn.Module:
    """A block in float64 and eval mode whose parameters are all random."""
    m = create_block("disentangled_nonlocal", 8, dtype=torch.float64, **options).eval()
    for p in m.parameters():
        nn.init.normal_(p, std=0.5)
    return m


def image() -> Tensor:
    return torch.randn(2, 8, 5, 4, dtype=torch.float64)


def centred(t: Tensor, how: str) -> Tensor:
    """(B, D, N) less a mean, over its unbiased deviation where ``how`` says so."""
    axes = {"channel": (2,), "layer": (1, 2), "batch": (0, 1, 2), "position": (1,)}[how.removesuffix("_std")]
    t = t - t.mean(axes, keepdim=True)
    return t / (t.var(axes, keepdim=True) + 1e-5).sqrt() if how.endswith("_std") else t


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("whiten", ["channel", "layer"])
def test_multiplied_with_the_shared_key_it_is_the_joint_attention(whiten, scale):
    m = made(combine="multiply", unary="key", whiten=whiten, scale=scale)
    joint = made(terms="joint", scale=scale)
    joint.load_state_dict(m.state_dict())
    x = image()
    assert_same("y", m(x), joint(x))


WHITENINGS = ["channel", "channel_std", "layer", "layer_std", "batch", "batch_std", "position"]


@pytest.mark.parametrize("whiten", [*WHITENINGS, ("channel", "position"), ("channel", "layer"), None])
@pytest.mark.parametrize("unary", ["mask", "key", "both"])
def test_whitening_and_terms(whiten, unary):
    steps = (whiten,) if isinstance(whiten, str) else whiten or ()
    if unary != "mask" and (not steps or steps[-1] == "position"):
        pytest.skip("no mean query over positions")
    m = made(whiten=whiten, unary=unary, scale=True, temperature=0.7)
    x = image()
    q, k, v = (conv(x).flatten(2) for conv in (m.query, m.key, m.value))
    mean = None
    for step in steps:
        before, q = q, centred(q, step)
        k = centred(k, step)
        axes = {"channel": (2,), "layer": (1, 2), "batch": (0, 1, 2), "position": (1,)}[step.removesuffix("_std")]
        mean = before.mean(axes, keepdim=True)
    y = m.gamma * v @ (q.transpose(1, 2) @ k / 2 / 0.7).softmax(-1).transpose(1, 2)  # D = 4
    if unary in ("mask", "both"):
        y = y + v @ m.mask(x).flatten(2).softmax(-1).transpose(1, 2)
    if unary in ("key", "both"):
        assert mean is not None
        logits = (mean * k).sum(1, keepdim=True)  # neither scaled nor tempered
        y = y + v @ logits.softmax(-1).transpose(1, 2)
    assert_same("y", m(x), x + y.view_as(x))


@pytest.mark.parametrize("training", [False, True])
def test_whitening_by_batch_statistics(training):
    m = made(whiten=("norm_affine", "norm"), terms="pairwise", value_channels=3).train(training)
    x = image()
    q, k = m.query(x).flatten(2), m.key(x).flatten(2)
    for name in ("norm_affine", "norm"):
        q, k = (getattr(m, f"{side}_{name}")(t) for side, t in (("query", q), ("key", k)))
    for norm in m.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.reset_running_stats()
    weights = (q.transpose(1, 2) @ k).softmax(-1)
    y = m.gamma * m.value(x).flatten(2) @ weights.transpose(1, 2)
    assert_same("y", m(x), x + m.project(y.view(2, 3, 5, 4)))


@pytest.mark.parametrize("mode", ["gaussian", "dot_product", "concatenation"])
def test_other_pairwise_functions(mode):
    m = made(variant="mmseg", mode=mode, scale=False, temperature=1.0)
    x = image()
    q, k = (x, x) if mode == "gaussian" else (m.query(x), m.key(x))
    q, k = centred(q.flatten(2), "channel").transpose(1, 2), centred(k.flatten(2), "channel").transpose(1, 2)
    g = m.value(x).flatten(2).transpose(1, 2)
    if mode == "concatenation":
        w, u = m.pair[0].chunk(2)
        weights = ((q @ w)[:, :, None] + (k @ u)[:, None]).relu() / 20
    else:
        weights = q @ k.transpose(1, 2)
        weights = weights.softmax(-1) if mode == "gaussian" else weights / 20
    y = weights @ g + m.mask(x).flatten(2).softmax(-1) @ g
    assert_same("y", m(x), x + m.project(y.transpose(1, 2).view(2, 4, 5, 4)))


def test_unary_alone_is_the_simplified_block():
    m = made(terms="unary", value_channels=3)
    simple = create_block("simplified_nonlocal", 8, inner_channels=3, dtype=torch.float64).eval()
    own = simple.state_dict()
    simple.load_state_dict({k: v.reshape(own[k].shape) for k, v in m.state_dict().items()})
    x = image()
    assert_same("y", m(x), simple(x))


def test_two_maps_pairwise_then_unary():
    m = made()
    weights = m.attention(image(), torch.tensor([0, 7, 19]))
    assert weights.shape == (2, 2, 3, 20)
    assert_same("rows", weights.sum(-1), torch.ones(2, 2, 3, dtype=torch.float64))
    assert torch.equal(weights[:, 1, 0], weights[:, 1, 2])
    assert not torch.allclose(weights[:, 0, 0], weights[:, 0, 2])


def test_starts_of_the_authors_and_for_insertion():
    authors = create_block("disentangled_nonlocal", 8, zero_init=False)
    assert authors.gamma.item() == 0
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(authors(x), x)  # the unary term is live
    ours = create_block("disentangled_nonlocal", 8)
    assert ours.gamma.item() == 1
    assert [name for name, p in ours.named_parameters() if "weight" in name and not p.any()] == ["value.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": "all"}, "terms must be both, pairwise, unary or joint, got 'all'"),
        ({"whiten": "in_nostd"}, "whiten must be channel, .*norm_affine, a tuple of these or None, got 'in_nostd'"),
        ({"combine": "multiply", "mode": "dot_product"}, "a softmax, which mode='dot_product' does not have"),
        ({"combine": "multiply", "terms": "pairwise"}, "wants terms='both'"),
        ({"unary": "key", "whiten": None}, "mean query"),
        ({"unary": "key", "whiten": "position"}, "mean query"),
        ({"mode": "gaussian", "share_query_key": True}, "no projections"),
        ({"mode": "gaussian", "whiten": "norm"}, "lacks"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        create_block("disentangled_nonlocal", 8, **options)
