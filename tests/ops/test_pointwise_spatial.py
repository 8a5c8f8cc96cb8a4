"""Point-wise spatial attention by rows equals its definition, however few logits are held at a time."""

from functools import partial

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads

from lookfar.ops import (
    _blockwise,
    _offset_tiles,
    pointwise_spatial,
    pointwise_spatial_reference,
    pointwise_spatial_weights,
)


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


@pytest.mark.parametrize("products", [1, 60, 2**17], ids=["a row", "two rows", "all rows"])  # of sources at a time
@pytest.mark.parametrize("direction", ["collect", "distribute"])
@pytest.mark.parametrize("size", [(5, 4), (1, 6), (7, 1)])
@pytest.mark.parametrize("sharp", [1, 300])
def test_tiles_equal_the_definition(products, direction, size, sharp, monkeypatch) -> None:
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 1)
    monkeypatch.setitem(_offset_tiles.LIMIT, "products", products)
    shapes = (2, 3, *size), (5, 5, 3), (2, 2, *size)
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    inputs[0] *= sharp
    fast, slow = (partial(op, direction=direction) for op in (pointwise_spatial, pointwise_spatial_reference))
    assert_same_with_grads(fast, slow, *inputs, names="a m v")


@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_tiles_are_differentiated_twice_and_forward(direction, monkeypatch) -> None:
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 1)
    shapes = (1, 2, 2, 3), (3, 5, 2), (1, 2, 2, 3)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    op = partial(pointwise_spatial, direction=direction)
    assert torch.autograd.gradcheck(op, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(op, inputs, fast_mode=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same("under autocast", op(*(t.float() for t in inputs)), op(*inputs).float())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
@pytest.mark.parametrize("collect", [0, 1])
@pytest.mark.parametrize("batch", [0, 2])
def test_tiles_are_registered_as_torch_wants_it(collect, batch) -> None:
    given = [torch.randn(*shape, requires_grad=True) for shape in ((batch, 2, 3, 4), (5, 7, 2), (batch, 3, 3, 4))]
    torch.library.opcheck(torch.ops.lookfar.tiled.default, ("pointwise_spatial", given, [collect]))
