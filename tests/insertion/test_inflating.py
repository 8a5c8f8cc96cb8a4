"""Networks of videos from networks of images: a frame that stands still, weights, blocks, and what is refused."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet

from lookfar import inflate, insert
from lookfar.insertion import insertions

THIN: dict[str, Any] = {"channels": (8, 8, 16, 16), "stem_width": 4, "num_classes": 5}


def of_timm(name: str = "resnet18", **options: Any) -> nn.Module:
    return drawn(timm.create_model(name, **{**THIN, **options}))


def of_torchvision(block: Any = resnet.BasicBlock, layers: tuple[int, ...] = (2, 2, 2, 2)) -> nn.Module:
    return drawn(resnet.ResNet(block, list(layers), num_classes=5, width_per_group=16 if block.expansion == 4 else 64))


def drawn(network: nn.Module) -> nn.Module:
    """No norm that is silent or the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


HOSTS = {
    "timm resnet18": of_timm,
    "timm resnet50": lambda: of_timm("resnet50"),
    "timm resnet50c": lambda: of_timm("resnet50c"),
    "timm resnet50d": lambda: of_timm("resnet50d"),  # pools by averages in its shortcuts
    "timm maps": lambda: drawn(timm.create_model("resnet18", features_only=True, output_stride=8, **_maps_of(THIN))),
    "torchvision resnet18": of_torchvision,
    "torchvision resnet50": lambda: of_torchvision(resnet.Bottleneck, (3, 4, 6, 3)),
}


def _maps_of(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "num_classes"}


def still(x: Tensor, frames: int = 4) -> Tensor:
    return x.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def assert_stands_still(network: nn.Module, video: nn.Module, frames: int = 4) -> None:
    x = torch.randn(2, 3, 49, 65)
    with torch.no_grad():
        want, y = network.eval()(x), video.eval()(still(x, frames))
    for one, other in zip(*(v if isinstance(v, list) else [v] for v in (want, y))):
        one = still(one, frames) if one.ndim == 4 else one
        assert (other - one).abs().max() < 1e-5 * one.abs().max()


@pytest.mark.parametrize(("host", "frames"), [*((host, 3) for host in HOSTS), ("timm resnet18", 1)])
def test_a_frame_that_stands_still(host: str, frames: int) -> None:
    network = HOSTS[host]()
    video = inflate(network, frames)
    assert_stands_still(network, video)
    assert_stands_still(network, video, 1)
    assert video.state_dict().keys() == network.state_dict().keys()


def test_what_moves_is_seen_with_frames_alone() -> None:
    network = HOSTS["timm maps"]()
    x = torch.randn(1, 3, 5, 33, 33)
    other = x.clone()
    other[:, :, 2] += 1
    with torch.no_grad():
        for frames, reach in ((1, [False, False, True, False, False]), (3, [True] * 5)):
            video = inflate(network, frames)
            moved = (video(x)[-1] - video(other)[-1]).abs().amax((0, 1, 3, 4)) > 1e-6
            assert moved.tolist() == reach
        apart = torch.stack([network(frame)[-1] for frame in x.unbind(2)], 2)
        torch.testing.assert_close(inflate(network, 1)(x)[-1], apart)


def test_which_convolutions_look_along_time() -> None:
    video = inflate(of_timm("resnet50"), 3)
    assert video.conv1.kernel_size == (5, 7, 7)
    looks = {
        stage: [block.conv1.kernel_size[0] == 3 for block in getattr(video, stage)]  # type: ignore[union-attr]
        for stage in ("layer1", "layer2", "layer3", "layer4")
    }
    assert looks == {
        "layer1": [True] * 3,
        "layer2": [True, False] * 2,
        "layer3": [True, False] * 3,
        "layer4": [False, True, False],
    }
    assert video.layer1[0].conv2.kernel_size == (1, 3, 3)


def test_weights_are_repeated_and_divided() -> None:
    network = of_torchvision()
    before = copy.deepcopy(network.state_dict())
    network.train()
    network.layer2.requires_grad_(False)
    video = inflate(network, 3)
    weight = video.layer1[0].conv1.weight
    torch.testing.assert_close(weight.sum(2), network.layer1[0].conv1.weight)
    assert torch.equal(weight[:, :, 0], weight[:, :, 2])
    with torch.no_grad():
        for parameter in video.parameters():
            parameter.add_(1)
        video(torch.randn(1, 3, 2, 33, 33))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in (*network.modules(), *video.modules()))
    assert [p.requires_grad for p in video.parameters()] == [p.requires_grad for p in network.parameters()]


BLOCKS = ["nonlocal", "global_context", "position_attention", "double_attention", "squeeze_excitation(reduction=1)"]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_look_at_all_frames(block: str) -> None:
    network = of_timm()
    insert(network, block, at="layer3", example=torch.randn(1, 3, 33, 33))
    insert(network, block, at="layer2", position="branch", example=torch.randn(1, 3, 33, 33))
    for one in insertions(network):
        for parameter in one.module.parameters():
            nn.init.normal_(parameter, std=0.3)
    random = torch.get_rng_state()
    video = inflate(network, 3)
    assert torch.equal(torch.get_rng_state(), random)
    assert [one.name for one in insertions(video)] == [one.name for one in insertions(network)]
    assert_stands_still(network, video)
    one = next(one for one in insertions(video) if one.place == "layer3")
    x = torch.randn(1, 16, 3, 4, 4)
    other = x.clone()
    other[:, :, 2] += 1
    with torch.no_grad():
        assert not torch.allclose(one.module(x)[:, :, 0], one.module(other)[:, :, 0])


def test_blocks_that_count_a_position_by_frames_are_named() -> None:
    network = of_timm()
    insert(network, "criss_cross", at="layer3", example=torch.randn(1, 3, 33, 33))
    nn.init.ones_(insertions(network)[0].module.gamma)  # type: ignore[arg-type]
    with pytest.warns(
        UserWarning, match=r"on a repeated frame layer3\.1\.criss_cross \(criss_cross\) gives something e"
    ):
        video = inflate(network)
    assert video(torch.randn(1, 3, 2, 33, 33)).shape == (1, 5)


class Own(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: timm.create_model("seresnet18", **THIN), "SEModule: want a ResNet of timm or torchvision"),
        (lambda: timm.create_model("mobilenetv2_035"), "want a ResNet of timm or torchvision"),
        (lambda: timm.create_model("resnetblur18", **THIN), r"BlurPool2d: want a ResNet"),
        (lambda: of_timm(global_pool="fast"), r"FastAdaptiveAvgPool; give global_pool='avg'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "Sequential has no layer1: want a ResNet"),
    ],
)
def test_other_networks_are_refused(network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inflate(network())


def test_what_knows_no_videos_is_refused() -> None:
    for block, message in (("cbam", "is a cbam, which knows images alone"), (Own, "is a Own of yours")):
        network = of_timm()
        insert(network, block, at="layer3", example=torch.randn(1, 3, 33, 33))
        with pytest.raises(ValueError, match=message):
            inflate(network)
        assert len(insertions(network)) == 1
    for frames, message in ((0, "frames must be a positive integer, got 0"), (2, "frames must be odd, got 2")):
        with pytest.raises(ValueError, match=message):
            inflate(of_timm(), frames)
