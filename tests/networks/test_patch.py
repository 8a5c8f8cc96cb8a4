"""The backbone ``patch``: a position knows its cell of 8x8 pixels and nothing else."""

import pytest
import torch

from lookfar.insertion import insert
from lookfar.networks import build_classifier, build_network
from lookfar.networks.patch import PatchBackbone
from lookfar.study import Plan


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), (4, 4)), ((8, 8), (1, 1)), ((33, 40), (5, 5)), ((5, 17), (1, 3))]
)
def test_maps_cover_the_whole_image(size, grid):
    network = PatchBackbone(in_chans=2).eval()
    x = torch.rand(1, 2, *size, requires_grad=True)
    y = network(x)
    assert y.shape == (1, 64, *grid)
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


def test_a_block_in_the_classifier_is_all_that_relates_cells():
    torch.manual_seed(0)
    network, x = build_classifier("patch", classes=4).double().eval(), torch.rand(1, 3, 32, 32).double()
    changed = x.clone()
    changed[..., :8, :8] = 0
    # what two cells say adds up, until a block stands between the layers
    other = x.clone()
    other[..., 24:, 24:] = 0
    both = other.clone()
    both[..., :8, :8] = 0
    apart = [network(part) - network(x) for part in (changed, other, both)]
    torch.testing.assert_close(apart[0] + apart[1], apart[2], atol=1e-12, rtol=1e-9)
    (name,) = insert(network, "nonlocal", at=network.place, example=x, zero_init=False)
    with torch.no_grad():
        for parameter in network.get_submodule(name).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    apart = [network(part) - network(x) for part in (changed, other, both)]
    assert (apart[0] + apart[1] - apart[2]).abs().max() > 1e-6


def test_patch_is_for_classification_and_has_no_pretrained_weights():
    with pytest.raises(ValueError, match="'patch' has no pretrained weights"):
        build_classifier("patch", classes=4, pretrained=True)
    with pytest.raises(ValueError, match="'patch' is for classification alone"):
        build_network("patch", classes=4)


def test_what_a_plan_takes_for_match():
    plan = Plan(data="scenes:match", blocks=("nonlocal",)).resolved()
    found = plan.task, plan.host, plan.steps, plan.batch_size, plan.lr
    assert found == ("classification", "patch", 400, 256, 3e-3)
    assert Plan(data="scenes:match", blocks=("nonlocal",), host="resnet10t").resolved().lr == 1e-3
