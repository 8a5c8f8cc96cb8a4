"""Point-wise spatial attention by rows equals its definition, however few logits are held at a time."""

import pytest
import torch

from lookfar.ops import _blockwise, pointwise_spatial, pointwise_spatial_reference, pointwise_spatial_weights


@pytest.mark.parametrize("mask", [(5, 4), (9, 7), (3, 13)], ids=["even", "full", "wide"])
@pytest.mark.parametrize("direction", ["collect", "distribute"])
@pytest.mark.parametrize("normalization", ["softmax", "none"])
def test_equals_the_definition(mask, direction, normalization, monkeypatch) -> None:
    torch.manual_seed(0)
    shapes = (2, 3, 5, 4), (*mask, 3), (2, 4, 5, 4)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"direction": direction, "normalization": normalization}
    want = pointwise_spatial_reference(*inputs, **options)
    cotangent = torch.randn_like(want)
    gradients = torch.autograd.grad(want, inputs, cotangent)
    # all logits at once, a row of targets at a time, a row of targets and two or one of sources
    for budget in (2**20, 1000, 128, 1):
        monkeypatch.setitem(_blockwise.BUDGET, "cpu", budget)
        y = pointwise_spatial(*inputs, **options)
        torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
        for got, g in zip(torch.autograd.grad(y, inputs, cotangent), gradients):
            torch.testing.assert_close(got, g, rtol=0, atol=1e-12)
    a, m, v = inputs
    weights = pointwise_spatial_weights(a, m, **options)
    torch.testing.assert_close((weights @ v.flatten(2).transpose(1, 2)).transpose(1, 2), want.flatten(2))
