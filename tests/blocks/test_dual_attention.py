"""DANet: the channels' reversed sign, energies beyond half precision, two attentions in one block."""

import pytest
import torch
from samples import assert_same, randomise

from lookfar import create_block, weights


def test_a_channel_looks_at_the_least_similar():
    m = create_block("channel_attention", 3, zero_init=False).double().requires_grad_(False)
    x = torch.tensor([[3.0, 0.0], [3.0, 0.1], [-3.0, 0.0]], dtype=torch.float64)[None, :, None]
    # the first two channels are alike and copy the third, which copies them
    assert_same("update", m.update(x)[0, 0, 0], torch.tensor([-3.0, 0.0]), 1e-6)
    assert_same("update", m.update(x)[0, 1, 0], torch.tensor([-3.0, 0.0]), 1e-6)
    assert float(m.update(x)[0, 2, 0, 0]) == pytest.approx(3.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_energies_under_autocast(dtype):
    """Sums over 4096 positions reach 10^6: the same channels must win as in float32, with a finite gradient."""
    m = create_block("channel_attention", 16, zero_init=False)
    x = (8 * torch.randn(2, 16, 64, 64)).relu()
    want = m(x)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = m(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert_same("y", y, want, 1e-2)


def test_dual_is_the_sum_of_both():
    m = randomise(create_block("dual_attention", 16)).double()
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    assert_same("y", m(x), m.position(x) + m.channel(x) - x)


def test_dual_takes_the_weights_of_the_authors_head():
    m = randomise(create_block("dual_attention", 16))
    names = {"query": "query_conv", "key": "key_conv", "value": "value_conv", "gamma": "gamma"}
    head = {}
    for key, value in m.state_dict().items():
        part, layer, *rest = key.split(".")
        head[".".join([{"position": "sa", "channel": "sc"}[part], names[layer], *rest])] = value
    loaded = weights.load(create_block("dual_attention", 16), head)
    x = torch.randn(1, 16, 4, 3)
    assert torch.equal(loaded(x), m(x))
