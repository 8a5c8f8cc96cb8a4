"""SENet and CBAM: against the equations, numerics of the poolings, options."""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise

from lookfar import create_block, weights


def test_squeeze_excitation_is_its_equation():
    m = randomise(create_block("squeeze_excitation", 12, reduction=5)).double()
    assert m.reduce.out_features == 2
    x = torch.randn(3, 12, 5, 4, dtype=torch.float64)
    hidden = (x.mean((2, 3)) @ m.reduce.weight.T + m.reduce.bias).clamp_min(0)
    gate = 1 / (1 + (-(hidden @ m.expand.weight.T + m.expand.bias)).exp())
    assert_same("y", m(x), torch.einsum("bc,bchw->bchw", gate, x))


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 8, 2, 3, 4)])
def test_squeeze_excitation_takes_any_number_of_axes(shape):
    m, x = create_block("squeeze_excitation", 8), torch.randn(shape)
    assert_same("y", m(x).flatten(2), m(x.flatten(2)))


@pytest.mark.parametrize("name", ["squeeze_excitation", "cbam"])
def test_a_hidden_layer_is_never_empty(name):
    assert create_block(name, 4, reduction=16).reduce.out_features == 1


def test_squeeze_excitation_loads_names_of_networks():
    m = randomise(create_block("squeeze_excitation", 8, reduction=4))
    for reduce, expand in [("conv2_1_1x1_down", "conv2_1_1x1_up"), ("fc1", "fc2"), ("conv_reduce", "conv_expand")]:
        state = {
            key.replace("reduce", reduce).replace("expand", expand): v[..., None, None] if v.dim() == 2 else v
            for key, v in m.state_dict().items()
        }
        loaded = weights.load(create_block("squeeze_excitation", 8, reduction=4), state)
        x = torch.randn(1, 8, 3, 3)
        assert torch.equal(loaded(x), m(x))


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_cbam_is_its_equation(kernel_size):
    pools = ("avg", "lp", "lse", "max")
    m = randomise(create_block("cbam", 12, reduction=3, pooling=pools, kernel_size=kernel_size)).double().eval()
    x = torch.randn(2, 12, 5, 9, dtype=torch.float64)
    pooled = [x.mean((2, 3)), x.square().sum((2, 3)).sqrt(), x.exp().sum((2, 3)).log(), x.amax((2, 3))]
    gate = sum(m.expand(m.reduce(p).relu()) for p in pooled).sigmoid()
    x1 = x * gate[..., None, None]
    u = torch.stack([x1.amax(1), x1.mean(1)], 1)
    v = F.conv2d(u, m.spatial.weight, padding=kernel_size // 2)
    v = (v - m.norm.running_mean) / (m.norm.running_var + 1e-5).sqrt() * m.norm.weight + m.norm.bias
    assert_same("y", m(x), x1 * v.sigmoid())


def test_cbam_poolings_are_finite_where_plain_formulas_are_not():
    """exp(200) overflows float32, and the root of a dead channel's square sum has an infinite slope."""
    m = randomise(create_block("cbam", 4, reduction=2, pooling=("lp", "lse")))
    x = torch.randn(2, 4, 5, 6)
    x[:, 0] = 0
    x[:, 1] += 200
    x.requires_grad_()
    y = m(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_cbam_options():
    one = create_block("cbam", 8, pooling="max")
    assert one.pooling == ("max",)
    assert one.norm.momentum == 0.01
    bare = create_block("cbam", 8, spatial_gate=False)
    assert not any(key.startswith(("spatial", "norm")) for key in bare.state_dict())
    with pytest.raises(ValueError, match="pooling must be avg, max, lp, lse or a tuple of these, got 'mean'"):
        create_block("cbam", 8, pooling="mean")
    with pytest.raises(ValueError, match="kernel_size must be an odd positive integer, got 4: a window has a centre"):
        create_block("cbam", 8, kernel_size=4)
    with pytest.raises(ValueError, match=r"got \(\)"):
        create_block("cbam", 8, pooling=())
