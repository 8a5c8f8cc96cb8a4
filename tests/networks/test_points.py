"""The host ``points``: nothing in it relates two points, their order is nothing, and it takes clouds alone."""

import pytest
import torch

from lookfar.data import open_data
from lookfar.insertion import insert
from lookfar.networks import ConvControl, build_classifier
from lookfar.networks.points import PointBackbone
from lookfar.study import Plan
from lookfar.study.build import build_host, put_in
from lookfar.study.candidates import Candidate


def test_order_makes_no_difference_and_the_maximum_is_all_that_relates_points():
    backbone, x = PointBackbone().eval(), torch.rand(2, 2, 9)
    torch.testing.assert_close(backbone(x[..., torch.randperm(9)]), backbone(x))
    alone = torch.stack([backbone(x[..., i : i + 1]) for i in range(9)])
    torch.testing.assert_close(backbone(x), alone.amax(0))
    network = build_classifier("points", classes=3, in_chans=2, size=(9,)).eval()
    (name,) = insert(network, "nonlocal", at=network.place, example=x, zero_init=False)
    with torch.no_grad():
        for parameter in network.get_submodule(name).parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        alone = torch.stack([network.backbone(x[..., i : i + 1]) for i in range(9)])
        assert (network.backbone(x) - alone.amax(0)).abs().max() > 1e-3
    assert not network.pooled


def test_hosts_take_what_they_are_for():
    with pytest.raises(ValueError, match=r"'resnet18' does not take inputs of size \(96,\): want 'points'"):
        build_classifier("resnet18", classes=3, in_chans=2, size=(96,))
    with pytest.raises(ValueError, match=r"'points' does not take inputs of size .*: want one for images"):
        build_classifier("points", classes=3, size=(32, 32))


def test_a_study_of_clouds_compares_with_layers_that_see_one_point():
    plan = Plan(data="scenes:points", blocks=("nonlocal",)).resolved()
    assert (plan.task, plan.host, plan.steps, plan.batch_size, plan.lr) == ("classification", "points", 600, 64, 3e-3)
    data = open_data(plan.data)
    network = build_host(plan, data, seed=0)
    (name,) = put_in(network, plan, Candidate.parse("control"), data, 0, control_parameters=8000)
    control = network.get_submodule(name)
    assert isinstance(control, ConvControl)
    assert control.mix.kernel_size == (1,)
    assert network(data.example(2)).shape == (2, 10)
