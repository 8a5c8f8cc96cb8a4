"""The backbone ``patch``: a position knows its cell of 8x8 pixels and nothing else."""

import pytest
import torch

from lookfar.networks.patch import PatchBackbone


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), (4, 4)), ((8, 8), (1, 1)), ((33, 40), (5, 5)), ((5, 17), (1, 3))]
)
def test_maps_cover_the_whole_image(size, grid):
    network = PatchBackbone(in_chans=2, width=16).eval()
    x = torch.rand(1, 2, *size, requires_grad=True)
    y = network(x)
    assert y.shape == (1, 16, *grid)
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()


def test_a_position_sees_its_cell_alone():
    network = PatchBackbone().eval()
    x = torch.rand(2, 3, 32, 24, requires_grad=True)
    network(x)[0, :, 2, 1].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(1) > 0
    assert seen[0, 16:24, 8:16].all()
    assert int(seen.sum()) == 64


def test_cells_may_change_places():
    """What is pooled does not know where cells stood: of single cells alone there is nothing but a sum."""
    network, order = PatchBackbone().eval(), torch.randperm(4)
    x = torch.rand(2, 3, 32, 32)
    moved = x.unflatten(2, (4, 8))[:, :, order].flatten(2, 3)
    torch.testing.assert_close(network(moved), network(x)[:, :, order])
