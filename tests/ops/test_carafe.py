"""Reassembly against unfolded windows."""

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph

from lookfar.blocks import create_block
from lookfar.cost import peak_memory
from lookfar.ops import carafe, carafe_reference


@pytest.mark.parametrize("size", [(3, 5), (7, 2), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("k", "groups", "s"), [(5, 2, 2), (3, 1, 3), (1, 4, 1), (5, 4, 2)])
def test_carafe(k, groups, s, layout, size):
    H, W = size
    x = torch.randn(2, 4, H, W, dtype=torch.float64).contiguous(memory_format=layout)
    masks = torch.randn(2, groups * k * k, H * s, W * s, dtype=torch.float64).contiguous(memory_format=layout)
    options = {"kernel_size": k, "groups": groups, "scale_factor": s}
    assert_same_with_grads(
        lambda x, m: carafe(x, m, **options), lambda x, m: carafe_reference(x, m, **options), x, masks, names="x masks"
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_output_lies_as_the_input_does(layout):
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=layout)
    assert carafe(x, torch.randn(2, 25, 6, 10)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(2, 4, 0, 3), (2, 4, 3, 0), (0, 4, 3, 2)])
def test_empty_maps(shape):
    B, C, H, W = shape
    x, masks = torch.randn(shape, requires_grad=True), torch.randn(B, 25, 2 * H, 2 * W, requires_grad=True)
    y = carafe(x, masks)
    assert y.shape == (B, C, 2 * H, 2 * W)
    for t, grad in zip((x, masks), torch.autograd.grad(y.sum(), (x, masks))):
        assert grad.shape == t.shape


def test_weights_of_cells_off_the_map_may_be_infinite():
    x, masks = torch.rand(1, 2, 2, 3, requires_grad=True), torch.ones(1, 9, 4, 6)
    masks[:, :3, :2] = masks[:, 6:, 2:] = torch.inf  # the first row's cells above it, and the last's below
    masks[:, ::3, :, :2] = masks[:, 2::3, :, 4:] = -torch.inf
    masks.requires_grad_()
    y = carafe(x, masks, kernel_size=3)
    assert_same("y", y, carafe_reference(x, masks, kernel_size=3))
    (grad,) = torch.autograd.grad(y, masks, torch.where(torch.arange(6) < 2, torch.inf, 1.0).expand_as(y))
    assert not grad.isnan().any()
    assert (grad[:, :3, :2] == 0).all()


def test_no_more_is_held_than_input_masks_and_output():
    x, masks = torch.randn(1, 64, 32, 32), torch.rand(1, 25, 64, 64)
    numbers = 2 * (x.numel() + masks.numel()) + 4 * x.numel()  # copies of the inputs, and the output
    assert peak_memory(lambda: carafe(x, masks)) < 1.1 * 4 * numbers < 4 * 25 * x.numel()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
def test_compiled_it_reads_masks_from_a_plain_map():
    block, x = create_block("carafe", 8), torch.randn(1, 8, 3, 4)
    assert ("lookfar.plain" in compiled_graph(block, x)) == TELLS_COMPILED
    assert "lookfar" not in str(torch.export.export(block, (x,)).graph)
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.lookfar.plain.default, (last,))


def test_a_wrong_mask_is_named():
    with pytest.raises(ValueError, match=r"\(1, 25, 8, 8\), got \(1, 25, 4, 4\)"):
        carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 25, 4, 4))
