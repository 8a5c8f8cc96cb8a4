"""Global context and simplified non-local against value-first loops and the authors' order of things."""

import pytest
import torch
import torch.nn.functional as F
from ops._compare import assert_same
from torch import nn

from lookfar import create_block


def made(name: str, **options) -> nn.Module:
    """A block in float64 and eval mode whose parameters are all random."""
    m = create_block(name, 8, dtype=torch.float64, **options).eval()
    for p in m.parameters():
        nn.init.normal_(p, std=0.5)
    return m


@pytest.mark.parametrize("fusion", ["add", "mul", "both"])
@pytest.mark.parametrize("pooling", ["att", "avg"])
def test_global_context(pooling, fusion):
    m = made("global_context", pooling=pooling, fusion=fusion, inner_channels=3)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    a = m.mask(x).flatten(2).softmax(-1) if pooling == "att" else torch.full((2, 1, 20), 1 / 20, dtype=x.dtype)
    c = (x.flatten(2) * a).sum(-1)
    y = x
    if fusion != "add":
        y = y * m.mul(c).sigmoid()[:, :, None, None]
    if fusion != "mul":
        y = y + m.add(c)[:, :, None, None]
    assert_same("y", m(x), y)


def test_multiplication_starts_by_halving():
    x = torch.randn(1, 8, 3, 3)
    assert torch.equal(create_block("global_context", 8, fusion="mul")(x), x / 2)


def test_width_of_one_channel_would_ignore_the_input():
    assert create_block("global_context", 16).add[0].out_features == 2


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"fusion": "channel_add"}])
def test_errors(options):
    with pytest.raises(ValueError, match="must be"):
        create_block("global_context", 8, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("inner", "heads", "bias"), [(None, 1, False), (3, 1, False), (None, 4, False), (6, 3, True)])
@pytest.mark.parametrize("subsample", [1, 2])
def test_pooling_first_equals_transforming_all_values(subsample, inner, heads, bias, training):
    """As the authors have it: value of every position, then pooling, then the output convolution and BatchNorm.

    A head pools its share of the values with its own mask.
    """
    options = {"inner_channels": inner, "heads": heads, "subsample": subsample, "project_bias": bias}
    m = made("simplified_nonlocal", norm_layer=True, **options)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    source = F.max_pool2d(x, 2) if subsample == 2 else x
    v = m.value(source.flatten(2).transpose(1, 2))  # (B, M, D)
    masks = m.mask(source).flatten(2).softmax(-1)  # (B, h, M)
    c = torch.cat([masks[:, t : t + 1] @ part for t, part in enumerate(v.chunk(heads, -1))], -1)
    c = c if m.project is None else m.project(c)
    norm = m.train(training).norm
    want = x + F.batch_norm(
        c.transpose(1, 2)[..., None],
        norm.running_mean.clone(),
        norm.running_var.clone(),
        norm.weight,
        norm.bias,
        training,
    )
    assert_same("y", m(x), want)
