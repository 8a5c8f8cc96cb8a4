"""Half precision in blocks with a scalar gate, whose float32 parameter must not widen the network's features."""

import pytest
import torch

from lookfar import create_block

BLOCKS = [
    "position_attention",
    "channel_attention",
    "dual_attention",
    "criss_cross",
    "expectation_maximization",
    "external_attention",
    "squeeze_excitation",
    "cbam",
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_features_stay_so_under_autocast(name, dtype):
    m = create_block(name, 16)
    x = torch.randn(2, 16, 5, 4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = m(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
