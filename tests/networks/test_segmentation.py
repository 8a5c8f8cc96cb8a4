"""Hosts: shapes, places, weights from files, and errors that say what would work."""

import logging
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lookfar.networks import ConvControl, build_network, control_of, resolve_place

SHARED = Path(os.environ.get("LOOKFAR_SHARED", Path(__file__).parents[2] / "../shared"))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 8), (65, 64)])
def test_small_takes_any_size(size):
    network = build_network("small", 5, in_chans=2).eval()
    assert network(torch.randn(2, 2, *size)).shape == (2, 5, *size)


def test_small_is_what_its_documentation_says():
    network = build_network("small", 5).eval()
    layers = [(c.in_channels, c.out_channels, c.stride[0]) for c in network.modules() if isinstance(c, nn.Conv2d)]
    assert layers == [(3, 24, 2), (24, 48, 2), (48, 64, 2), (64, 64, 1), (64, 64, 1), (64, 5 * 64, 1)]
    assert network.place == "backbone.layer4"
    x = torch.randn(1, 3, 16, 24)
    b = network.backbone
    y = F.pixel_shuffle(network.classifier(network.head(b.layer4(b.layer3(b.layer2(b.layer1(x)))))), 8)
    torch.testing.assert_close(network(x), y)


def test_every_pixel_of_an_odd_image_counts():
    """Sizes are rounded up and the result cut, so the last row reaches the output and is reached by it."""
    network = build_network("small", 2).eval()
    x = torch.randn(1, 3, 17, 9)
    other = x.clone()
    other[..., 16, :] += 1.0
    assert (network(x) - network(other)).abs()[..., 16, :].max() > 1e-6


def test_of_an_odd_image_the_upper_left_is_kept():
    """What stands over the edge lies below and on the right: a pixel's logits stay where the pixel is."""
    network = build_network("small", 2).eval()
    x = torch.randn(1, 3, 24, 16)
    network.head.register_forward_hook(lambda module, args, y: torch.ones_like(y))
    whole = network(x)
    torch.testing.assert_close(network(x[..., :17, :9]), whole[..., :17, :9])


def test_logits_are_not_stretched_to_the_corners():
    """Upsampling by s moves a value from i to s i + (s - 1) / 2, where the convolutions saw it."""
    network = build_network("resnet18", 1, output_stride=8, width=4).eval()
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    network.classifier = nn.Identity()
    network.head.register_forward_hook(lambda module, args, y: ramp)
    y = network(torch.randn(1, 3, 64, 64))[0, 0, 30]
    torch.testing.assert_close(y[4:-4], (torch.arange(4.0, 60) - 3.5) / 8)


@pytest.mark.parametrize(
    ("host", "stride", "channels"),
    [("resnet18", 8, 512), ("mobilenetv2_050", 16, 160), ("convnext_atto", 16, 320), ("densenet121", 32, 1024)],
)
def test_timm_hosts_keep_the_stride_and_use_all_their_parameters(host, stride, channels):
    network = build_network(host, 3, output_stride=stride, width=16).train()
    shapes = []
    network.head.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    y = network(torch.randn(2, 3, 64, 96))
    assert y.shape == (2, 3, 64, 96)
    assert shapes == [(2, channels, 64 // stride, 96 // stride)]
    assert network(torch.randn(2, 3, 65, 47)).shape == (2, 3, 65, 47)
    y.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []  # DDP stops on those
    assert network.place == "head"


@pytest.mark.parametrize(
    ("host", "name", "module"),
    [
        ("small", "layer3", "backbone.layer3"),
        ("resnet18", "layer3", "backbone.layer3"),
        ("resnet18", "layer3.0", "backbone.layer3.0"),
        ("resnet18", "backbone.layer3", "backbone.layer3"),
        ("resnet18", "head", "head"),
        ("mobilenetv2_050", "blocks.4", "backbone.blocks.4"),
        ("convnext_atto", "stages.1", "backbone.stages_1"),
    ],
)
def test_places_by_the_names_users_know(host, name, module):
    network = build_network(host, 2, output_stride=8)
    assert resolve_place(network, name) == module
    network.get_submodule(module)
    assert all(resolve_place(network, stage) == where for stage, where in network.places().items())


def test_a_place_that_is_not_there():
    with pytest.raises(ValueError, match=r"no place 'layr3'; the stages are layer1, .* Did you mean layer3\?"):
        resolve_place(build_network("small", 2), "layr3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"host": "resnet81"}, "no host is called 'resnet81'.* Did you mean resnet"),
        ({"host": "densenet121"}, "densenet121 cannot have output stride 8; try output_stride=32"),
        ({"host": "vgg11_bn", "output_stride": 16}, "cannot have output stride 16"),
        ({"host": "vit_tiny_patch16_224", "output_stride": 32}, "images of any size"),
        ({"host": "swin_tiny_patch4_window7_224", "output_stride": 32}, "images of any size"),
        ({"host": "resnet18", "output_stride": 4}, "8, 16 or 32, got 4"),
        ({"host": "small", "output_stride": 16}, "'small' has output stride 8, got 16"),
        ({"host": "small", "pretrained": True}, "no pretrained weights"),
        ({"host": "resnet18", "pretrained": True, "weights": "a.pt"}, "exclude each other"),
        ({"host": "resnet18.nope"}, "Invalid pretrained tag"),
        ({"host": "small", "classes": 0}, "classes must be a positive integer, got 0"),
    ],
)
def test_errors_say_what_would_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_network(**{"classes": 3, **arguments})


def test_without_a_network_pretrained_weights_are_asked_for(monkeypatch, caplog):
    log = logging.getLogger("huggingface_hub.utils")

    def offline(*args, **kwargs):
        log.warning("retrying")
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"resnet18 .*weights=FILE.*no route to host"):
        build_network("resnet18", 3, pretrained=True)
    assert caplog.text == "", "every attempt is told"
    log.warning("of something else")
    assert caplog.text != ""


@pytest.mark.parametrize("host", ["resnet18", "convnext_atto", "mobilenetv2_050"])
def test_weights_of_a_classifier(host, tmp_path):
    """The classifier's own features come out; its head is left out; both kinds of file are read."""
    classifier = timm.create_model(host).eval()
    save_file(classifier.state_dict(), tmp_path / "net.safetensors")
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "net.pt")
    x = torch.randn(1, 3, 64, 64)
    want = classifier.forward_intermediates(x, intermediates_only=True)[-1]
    for file in ("net.safetensors", "net.pt"):
        network = build_network(host, 3, output_stride=32, weights=tmp_path / file).eval()
        torch.testing.assert_close(network.backbone(x)[-1], want)


def test_weights_of_another_study_start_a_host_with_other_classes(tmp_path):
    source = build_network("small", 7)
    save_file(source.state_dict(), tmp_path / "final.safetensors")
    network = build_network("small", 3, weights=tmp_path / "final.safetensors")
    for key, value in source.backbone.state_dict().items():
        assert network.backbone.state_dict()[key].equal(value)


def test_weights_for_other_bands_are_adapted_as_timm_does(tmp_path):
    source = timm.create_model("resnet18")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    weight = source.conv1.weight.detach()
    one = build_network("resnet18", 3, in_chans=1, weights=tmp_path / "net.safetensors").backbone.conv1.weight
    torch.testing.assert_close(one.detach(), weight.sum(1, keepdim=True))
    five = build_network("resnet18", 3, in_chans=5, weights=tmp_path / "net.safetensors").backbone.conv1.weight
    torch.testing.assert_close(five.detach(), weight.repeat(1, 2, 1, 1)[:, :5] * 3 / 5)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    path = tmp_path / "net.safetensors"
    state = build_network("small", 3).backbone.state_dict()
    del state["layer1.conv.weight"]
    state["layer2.extra"] = torch.zeros(1)
    state["layer3.conv.weight"] = torch.zeros(64, 48, 1, 1)
    save_file(state, path)
    with pytest.raises(ValueError, match=r"no place for: layer2.extra; missing: layer1.conv.weight; wrong shape: lay"):
        build_network("small", 3, weights=path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        build_network("small", 3, weights=tmp_path / "nothing.safetensors")


def test_the_published_features_load():
    path = SHARED / "data/weights/mobilenetv2_050_features.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}: set LOOKFAR_SHARED")
    network = build_network("mobilenetv2_050", 11, output_stride=16, weights=path)
    twin = timm.create_model("mobilenetv2_050", features_only=True, output_stride=16)
    twin.load_state_dict(network.backbone.state_dict(), strict=True)
    assert network.backbone.conv_stem.weight.std() > 0.1  # trained, unlike timm's initialisation


def test_the_control_starts_as_the_identity_and_learns():
    block, x = ConvControl(8, 4), torch.randn(2, 8, 5, 3)
    assert block(x).equal(x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().max() > 0
    nn.init.ones_(block.norm.weight)
    block.zero_grad()
    block(x).square().sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("form", [{}, {"dims": 1}, {"dims": 3}, {"dims": 1, "kernel_size": 1}], ids=str)
@pytest.mark.parametrize("channels", [16, 256])
def test_no_width_is_nearer_to_the_parameters(channels, form):
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    for parameters in (0, 100, 8_000, 8_320, 130_000):
        got = control_of(channels, parameters, **form)
        width = got.mix.out_channels
        others = [ConvControl(channels, w, **form) for w in (width - 1, width + 1) if w > 0]
        assert all(abs(count(got) - parameters) <= abs(count(o) - parameters) for o in others)
