"""Published networks: the wiring against the authors' numbers, what runs when, options, names and refusals."""

import os
from pathlib import Path
from typing import Any

import pytest
import test_goldens
import torch
import torch.nn.functional as F
from torch import nn

from lookfar import create_network, list_networks, weights
from lookfar.blocks._own import find_own, parse_address
from lookfar.networks import CGNet, Outputs, SegmentationNetwork, build_own, resolve_place
from lookfar.networks.plans import HEADS

SHARED = Path(os.environ.get("LOOKFAR_SHARED", Path(__file__).parents[2] / "../shared"))
VECTORS = SHARED / "goldens/segmentors"
HERE = Path(__file__).parents[1] / "goldens/segmentors"
THIN = {"channels": (4, 8, 16, 32), "stem_width": 4}
# millions of parameters with 19 classes, auxiliary head and all, as the networks' tables have them
MILLIONS = {
    **{"fcn": 49.5, "nonlocal": 50.0, "dnl": 50.0, "gcnet": 49.6, "ccnet": 49.8, "psanet": 59.1, "danet": 49.9},
    **{"isanet": 37.7, "ann": 46.2, "apcnet": 56.4, "emanet": 42.4, "pspnet": 49.0, "deeplabv3": 68.1, "ocrnet": 36.5},
}
OTHERS = sorted(MILLIONS.keys() - {path.stem for path in HERE.glob("*.npz")})


def thin(name: str, num_classes: int = 5, **options: Any) -> SegmentationNetwork:
    network = create_network(name, num_classes, **{"backbone_options": THIN, **options})
    assert isinstance(network, SegmentationNetwork)
    return network


def dilations(network: nn.Module) -> list[list[tuple[int, int]]]:
    """Of both convolutions of each block of the last two stages."""
    blocks = [*network.backbone.layer3, *network.backbone.layer4]  # type: ignore[misc]
    return [(b.conv1.dilation[0], b.conv2.dilation[0]) for b in blocks]


@pytest.mark.parametrize("name", OTHERS)
def test_equals_mmsegmentation(name: str) -> None:
    """Those whose vectors are not beside the tests; ``pytest tests/test_goldens.py`` asks the same of the others."""
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors in {VECTORS}")
    test_goldens.test_equals_the_original(VECTORS / f"{name}.npz", torch.float64, 1.0)


@pytest.mark.parametrize("name", MILLIONS)
def test_widths_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = create_network(f"{name}_resnet50_d8", 19)
    # within what the table's parts, each rounded, leave open
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - MILLIONS[name]) < 0.06


def test_widths_follow_the_backbone() -> None:
    with torch.device("meta"):
        network = create_network("pspnet_resnet18_d8", 19)
    assert isinstance(network, SegmentationNetwork)
    assert network.head.classifier.in_channels == 128
    assert network.auxiliary.classifier.in_channels == 64


def test_logits_are_resized_to_the_image() -> None:
    x = torch.randn(2, 3, 65, 49)
    for corners in (False, True):
        network = thin("fcn", align_corners=corners).eval()
        small = network.logits(x)
        assert small.shape == (2, 5, 9, 7)
        torch.testing.assert_close(network(x), F.interpolate(small, (65, 49), mode="bilinear", align_corners=corners))


@pytest.mark.parametrize(
    ("name", "weights_of_losses"), [("danet", (1.0, 1.0, 0.4)), ("ocrnet", (0.4,)), ("fcn", (0.4,))]
)
def test_auxiliary_logits_are_for_training(name: str, weights_of_losses: tuple[float, ...]) -> None:
    network = thin(name)
    ran = []
    network.auxiliary.register_forward_hook(lambda *_: ran.append(1))
    x = torch.randn(2, 3, 33, 33)
    out = network(x)
    assert isinstance(out, Outputs)
    assert network.auxiliary_weights == weights_of_losses
    assert [y.shape for y in (out.logits, *out.auxiliary)] == [(2, 5, 33, 33)] * (1 + len(weights_of_losses))
    assert len(ran) == 1
    assert network.eval()(x).shape == (2, 5, 33, 33)
    assert len(ran) == (2 if name == "ocrnet" else 1)
    alone = thin("fcn", auxiliary=False)
    assert alone(x).shape == (2, 5, 33, 33)
    assert alone.backbone.feature_info.channels() == [128]


def test_every_loss_trains_the_backbone() -> None:
    network = thin("danet")
    out = network(torch.randn(2, 3, 33, 33))
    stem = network.backbone.conv1[0].weight
    for y in (out.logits, *out.auxiliary):
        (grad,) = torch.autograd.grad(y.square().sum(), stem, retain_graph=True)
        assert grad.abs().sum() > 0


def test_dilations_are_mmsegmentations() -> None:
    basic = thin("fcn", backbone="resnet18c", auxiliary=False)
    assert dilations(basic) == [(1, 1), (2, 1), (2, 1), (4, 1)]  # timm dilates the second too
    deep = thin("fcn", auxiliary=False)
    assert [second for _, second in dilations(deep)] == [1, 2, 2, 2, 2, 2, 2, 4, 4]
    full = thin("fcn", contract_dilation=False, auxiliary=False)
    assert [second for _, second in dilations(full)] == [2] * 6 + [4] * 3
    grid = thin("fcn", output_stride=16, last_dilations=(1, 2, 4), auxiliary=False)
    assert [second for _, second in dilations(grid)] == [1] * 6 + [1, 2, 4]
    strided = thin("fcn", output_stride=32, dilations_of_stages=(2, 4), auxiliary=False)
    assert [second for _, second in dilations(strided)] == [1, 2, 2, 2, 2, 2, 2, 4, 4]
    assert strided.eval().logits(torch.randn(1, 3, 64, 96)).shape[2:] == (2, 3)
    assert grid.eval().logits(torch.randn(1, 3, 64, 96)).shape[2:] == (4, 6)
    assert thin("fcn", ceil_mode=True, auxiliary=False).eval().logits(torch.randn(1, 3, 66, 64)).shape[2:] == (9, 9)


def test_dilation_of_the_head_is_that_of_its_first_convolutions() -> None:
    network = thin("fcn", dilation=6).eval()
    way = network.head.paths[0]
    assert way.before.conv.dilation == way.after.conv.dilation == (6, 6)
    assert network.head.fuse.conv.dilation == (1, 1)
    assert network.auxiliary.paths[0].before.conv.dilation == (6, 6)
    assert network(torch.randn(1, 3, 33, 33)).shape == (1, 5, 33, 33)


def test_any_backbone_with_maps() -> None:
    network = create_network("gcnet", 4, backbone="mobilenetv2_035", output_stride=16, in_chans=2).eval()
    assert network(torch.randn(1, 2, 40, 33)).shape == (1, 4, 40, 33)
    with pytest.raises(ValueError, match=r"are settings of a ResNet, mobilenetv2_035 is none"):
        create_network("gcnet", 4, backbone="mobilenetv2_035", last_dilations=(1, 2, 4))


def test_options_go_to_the_blocks_that_have_them() -> None:
    assert thin("ccnet", recurrence=5).head.paths[0].block.recurrence == 5
    ann = thin("ann", bins=(1, 2))
    assert ann.head.merge.bins == ann.head.paths[0].block.bins == (1, 2)
    with pytest.raises(TypeError, match=r"criss_cross has no option 'recurence'. Did you mean recurrence"):
        thin("ccnet", recurence=3)
    assert thin("nonlocal", inner_channels=3).head.paths[0].block.query.out_channels == 3
    assert thin("danet", inner_channels=3).head.paths[0].block.query.out_channels == 3
    with pytest.raises(TypeError, match="criss_cross has no option 'inner_channels'"):
        thin("ccnet", inner_channels=3)
    with pytest.raises(TypeError, match="FCN has no block, so no 'recurrence'"):
        thin("fcn", recurrence=3)


def test_names() -> None:
    assert set(HEADS) < set(list_networks())
    assert list_networks("cgnet*") == ["cgnet", "cgnet_camvid"]
    assert thin("annnet").head.plan is HEADS["ann"]
    with torch.device("meta"):
        plain = create_network("fcn_resnet50b_d8", 5)
        deep = create_network("fcn_resnet101_d16", 5)
    assert "backbone.conv1.weight" in plain.state_dict()
    assert "backbone.layer3.22.conv3.weight" in deep.state_dict()
    with pytest.raises(ValueError, match=r"no network is called 'danett'. Did you mean danet"):
        create_network("danett", 5)
    with pytest.raises(ValueError, match=r"has backbone='resnet50c', got 'resnet18': give 'danet' for another"):
        create_network("danet_resnet50_d8", 5, backbone="resnet18")


def test_thin_plain_stem() -> None:
    network = thin("fcn", backbone="resnet50", backbone_options={"channels": THIN["channels"], "stem_channels": 6})
    assert network.backbone.conv1.weight.shape == (6, 3, 7, 7)
    assert network.eval()(torch.randn(1, 3, 33, 40)).shape == (1, 5, 33, 40)


@pytest.mark.parametrize(
    "name", ["glore", "cgnl", "a2net", "beyond_grids", "dgmn", "latentgnn", "hamnet", "ocnet", "sgr"]
)
def test_further_blocks_as_heads(name: str) -> None:
    """In FCN's frame, but for HamNet and OCNet; the loss reaches every parameter that learns."""
    network = thin(name, auxiliary=False)
    network(torch.randn(2, 3, 65, 65)).square().sum().backward()
    block = network.head.paths[0].block
    assert (network.head.fuse is None) == (name in ("hamnet", "ocnet"))
    assert block.training
    assert network.head.paths[0].before.conv.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no network is called 'stand_alone'"):
        thin("stand_alone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "fcn wants a number of classes, got None"),
        ({"num_classes": 0}, "fcn wants a number of classes, got 0"),
        ({"num_classes": 3, "class_names": ("sky", "road")}, "num_classes is 3, but 2 classes are named"),
        ({"num_classes": 3, "last_dilations": (1, 2)}, r"one for each of 3 blocks, got \(1, 2\)"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_network("fcn", backbone_options=THIN, **options)
    with pytest.raises(ValueError, match="auxiliary cannot be False"):
        thin("ocrnet", auxiliary=False)


def test_is_a_host_of_a_study() -> None:
    address = parse_address("lookfar.networks:create_network(name=ccnet, backbone=resnet18, output_stride=32)")
    host = build_own(find_own(address), classes=4, size=(33, 33))
    assert host.place == "backbone.head.paths.0.before"
    assert host.eval()(torch.randn(2, 3, 33, 33)).shape == (2, 4, 33, 33)
    assert resolve_place(thin("fcn"), "layer3") == "backbone.layer3"


def test_weights_that_do_not_fit_are_refused() -> None:
    network = thin("fcn")
    state = network.state_dict()
    weights.load(thin("fcn"), {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    lacking = {k: v for k, v in state.items() if k != "head.fuse.conv.weight"} | {"head.surplus": torch.ones(1)}
    with pytest.raises(ValueError, match=r"no place for: head\.surplus; missing: head\.fuse\.conv\.weight"):
        weights.load(network, lacking)
    with pytest.raises(
        ValueError, match=r"wrong shape: head\.classifier\.weight \(5, 32, 1, 1\), want \(7, 32, 1, 1\)"
    ):
        weights.load(thin("fcn", 7), state)


class TestCGNet:
    def test_sizes(self) -> None:
        network = CGNet(4, depths=(2, 2)).eval()
        for size in ((65, 49), (8, 8), (1, 1)):
            assert network(torch.randn(1, 3, *size)).shape == (1, 4, *size)
        x = torch.randn(1, 3, 40, 33)
        assert network.logits(x).shape == (1, 4, 5, 5)

    def test_what_is_joined_in_which_order(self) -> None:
        network, seen = CGNet(4, depths=(3, 3)).eval(), {}
        for name in ("down2", "stage2", "down3", "stage3"):
            getattr(network, name).register_forward_hook(lambda m, args, y, name=name: seen.update({name: y}))
        for name in ("norm1", "norm2", "norm3"):
            getattr(network, name).register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        x = torch.ones(1, 3, 32, 32)
        network(x)
        half = F.avg_pool2d(x, 3, 2, 1)
        assert half.min() < 0.5  # the padding's zeros count
        torch.testing.assert_close(seen["norm1"][:, 32:], half)
        quarter = F.avg_pool2d(half, 3, 2, 1)
        torch.testing.assert_close(seen["norm2"], torch.cat([seen["stage2"], seen["down2"], quarter], 1))
        torch.testing.assert_close(seen["norm3"], torch.cat([seen["down3"], seen["stage3"]], 1))

    def test_preset(self) -> None:
        network = create_network("cgnet_camvid")
        assert len(network.class_names) == len(network.palette) == 11
        assert sum(p.numel() for p in network.parameters()) == 494_258
        # (105.65, 103.37, 99.66) from (R, G, B): the mean as the authors have it, in the other order
        image = torch.tensor([105.65, 103.37, 99.66])[:, None, None]
        assert network.preprocessing(image).abs().max() == 0
        with pytest.raises(ValueError, match="cgnet is not a head on a backbone and has no align_corners"):
            create_network("cgnet", 3, align_corners=True)
        with pytest.raises(ValueError, match="num_classes is 12, but 11 classes are named"):
            create_network("cgnet_camvid", 12)

    @pytest.mark.slow
    def test_published_weights_on_the_images_they_were_trained_on(self, request: pytest.FixtureRequest) -> None:
        """mIoU 85.66, accuracy 97.08: a check of the code, not a result; about a minute."""
        import numpy as np
        from PIL import Image

        from lookfar.tasks.segmentation import scores

        file, root = SHARED / "published/cgnet_camvid/model_800.pth", SHARED / "data/camvid"
        if not (file.is_file() and root.is_dir()):
            pytest.skip(f"no {file} or no {root}")
        network = create_network("cgnet_camvid").eval()
        weights.load(network, file)
        confusion = torch.zeros(1, 11, 11, dtype=torch.int64)
        paths = sorted((root / "val").iterdir())
        assert len(paths) == 101
        torch.set_flush_denormal(True)  # half of its weights are such numbers, which some processors multiply slowly
        request.addfinalizer(lambda: torch.set_flush_denormal(False))
        for path in paths:
            image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
            truth = torch.from_numpy(np.array(Image.open(root / "valannot" / f"{path.stem}.png"))).long()
            with torch.no_grad():
                found = network(network.preprocessing(image))[0].argmax(0)
            pairs = (truth * 11 + found)[truth < 11]
            confusion[0] += torch.bincount(pairs, minlength=121).reshape(11, 11)
        result = scores(confusion.numpy())
        assert abs(100 * result["miou"] - 85.66) < 0.1
        assert abs(100 * result["accuracy"] - 97.08) < 0.1
