"""Features in half precision, as a host under autocast gives them: float32 parameters must neither clash nor widen."""

import pytest
import torch

from lookfar import create_block, list_blocks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list_blocks(kind="context"))
def test_half_precision_features_stay_so_under_autocast(name, dtype):
    m = create_block(name, 16)
    x = torch.randn(2, 16, 5, 4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = m(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
