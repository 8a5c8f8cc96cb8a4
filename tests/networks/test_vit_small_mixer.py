"""The host for mixers: nothing mixes but what is put into its places, and a study puts everything there alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookfar.data import open_data
from lookfar.diagnostics import ablations
from lookfar.insertion import insertions, load, remove, replace, save
from lookfar.insertion.replacing import takes_mixers
from lookfar.networks import build_classifier
from lookfar.networks.control import ConvControl
from lookfar.networks.vit_small_mixer import VitSmallMixer
from lookfar.study.ablations import replaces
from lookfar.study.build import added_parameters, put_in
from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan

PLACES = "backbone.blocks.*.mixer"


@pytest.fixture(scope="module")
def host() -> nn.Module:
    torch.manual_seed(0)
    return build_classifier("vit_small_mixer", 4).eval()


def changed_cells(network: nn.Module, images: Tensor) -> Tensor:
    """Which cells of the map differ when the first cell of the images does, (h, w)."""
    other = images.clone()
    other[:, :, :8, :8] += 1
    return ((network(images) - network(other)).abs().amax((0, 1)) > 1e-6).int()


@torch.no_grad()
def test_without_a_mixer_no_cell_hears_of_another(host: nn.Module) -> None:
    images = torch.randn(2, 3, 20, 28)  # 3x4 cells, the last of them in part
    floor = host.get_submodule("backbone")
    assert changed_cells(floor, images).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    for mixer in ("self", "nonlocal"):
        body = VitSmallMixer(mixer="nonlocal(norm_layer=None)" if mixer == "nonlocal" else "self").eval()
        assert changed_cells(body, images).all()


@torch.no_grad()
def test_a_mixer_stands_in_its_place_without_its_sum(host: nn.Module, tmp_path) -> None:
    net, images = copy.deepcopy(host), torch.randn(2, 3, 32, 24)
    before = net(images)
    names = replace(net, "hamburger(bases=3)", PLACES, example=images)
    assert names == ["backbone.blocks.0.mixer", "backbone.blocks.1.mixer"]
    assert all(one.record.options["residual"] is False for one in insertions(net))
    after = net(images)
    assert not torch.equal(after, before)
    save(net, tmp_path / "net.safetensors")
    assert torch.equal(load(copy.deepcopy(host), tmp_path / "net.safetensors")(images), after)
    remove(net)
    assert torch.equal(net(images), before)
    with pytest.raises(ValueError, match="is of kind upsampler: a mixer keeps the shape"):
        replace(net, "carafe", PLACES, example=images)


@torch.no_grad()
def test_without_its_mixer_a_network_is_the_floor(host: nn.Module) -> None:
    net, images = copy.deepcopy(host), torch.randn(3, 3, 32, 32)
    names = replace(net, "nonlocal(norm_layer=None)", PLACES, example=images)
    logits: dict[str, Any] = {"judge": lambda output, labels, numbers: output, "predict": lambda output: output}
    found = ablations(net, names, images, kinds=["off", "mean"], **logits)
    assert torch.equal(torch.stack([*found.kept["off"]]), host(images))
    assert not torch.equal(torch.stack([*found.kept["mean"]]), host(images))


def test_a_study_puts_all_candidates_there(host: nn.Module) -> None:
    data = open_data("scenes:match")
    plan = Plan(data="scenes:match", host="vit_small_mixer", blocks=("nonlocal(heads=4)",))
    assert takes_mixers(host, PLACES)
    for text in ("nonlocal(heads=4)", "stand_alone(kernel_size=3)", "control"):
        net = copy.deepcopy(host)
        names = put_in(net, plan, Candidate.parse(text), data, 0, control_parameters=20_000)
        assert names == ["backbone.blocks.0.mixer", "backbone.blocks.1.mixer"]
        assert not replaces(net, names)  # its control is compared with it, the floor is not its convolution
        if text == "control":
            assert abs(added_parameters(net, names) - 20_000) < 1_000  # of both together
            control = net.get_submodule(names[0])
            assert isinstance(control, ConvControl)
            assert not control.residual
            assert control.norm.weight.all()
