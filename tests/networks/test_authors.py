"""Networks of their authors: their names, and what their code does that no parameter shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookfar import create_network, from_checkpoint
from lookfar.networks import SegmentationNetwork
from lookfar.networks.authors import RELEASES, Release

THIN = {"channels": (4, 8, 16, 32), "stem_width": 4}
# our names in the authors' words, in order: the first beginning that fits decides
BACKBONES = {
    "hszhao/semseg": {"conv1.": "layer0.", "bn1.": "layer0.7.", "": ""},
    "XiaLiPKU/EMANet": {
        "conv1.": "extractor.0.", "bn1.": "extractor.1.", **{f"layer{n}.": f"extractor.{n + 3}." for n in range(1, 5)},
    },
    "junfu1115/DANet": {"": "pretrained."},
    "openseg-group/openseg.pytorch": {
        **{f"conv1.{k}.": f"backbone.resinit.{part}."
           for k, part in ((0, "conv1"), (1, "bn1"), (3, "conv2"), (4, "bn2"), (6, "conv3"))},
        "bn1.": "backbone.resinit.bn3.", "": "backbone.",
    },
    "speedinghzl/CCNet": {
        "conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3.",
        "bn1.": "bn3.", "": "",
    },
}  # fmt: skip
HEADS: dict[str, dict[str, str]] = {
    "pspnet": {
        **{f"paths.0.block.scales.{n}.{part}.": f"ppm.features.{n}.{k}."
           for n in range(4) for part, k in (("conv", 1), ("norm", 2))},
        "paths.0.after.conv.": "cls.0.", "paths.0.after.norm.": "cls.1.", "classifier.": "cls.4.",
    },
    "psanet": {
        **{f"paths.0.block.{ours}.{part}.{layer}.": f"psa.{theirs}{end}.{k}."
           for ours, end in (("first", ""), ("second", "_p"))
           for part, theirs in (("value", "reduce"), ("hidden", "attention"))
           for layer, k in (("conv", 0), ("norm", 1))},
        "paths.0.block.first.mask.": "psa.attention.3.", "paths.0.block.second.mask.": "psa.attention_p.3.",
        "paths.0.block.mix.conv.": "psa.proj.0.", "paths.0.block.mix.norm.": "psa.proj.1.",
        "paths.0.after.conv.": "cls.0.", "paths.0.after.norm.": "cls.1.", "classifier.": "cls.4.",
    },
    "emanet": {
        "paths.0.before.conv.": "fc0.conv.", "paths.0.before.norm.": "fc0.bn.",
        "paths.0.block.bases": "emau.mu", "paths.0.block.embed.": "emau.conv1.",
        "paths.0.block.project.": "emau.conv2.0.", "paths.0.block.norm.": "emau.conv2.1.",
        "paths.0.after.conv.": "fc1.0.conv.", "paths.0.after.norm.": "fc1.0.bn.", "classifier.": "fc2.",
    },
    "danet": {
        **{f"paths.{n}.{at}.{layer}.": f"head.{theirs}.{k}."
           for (n, at), theirs in {(0, "before"): "conv5a", (0, "after"): "conv51",
                                   (1, "before"): "conv5c", (1, "after"): "conv52"}.items()
           for layer, k in (("conv", 0), ("norm", 1))},
        **{f"paths.0.block.{part}.": f"head.sa.{part}_conv." for part in ("query", "key", "value")},
        "paths.0.block.gamma": "head.sa.gamma", "paths.1.block.gamma": "head.sc.gamma",
        "classifier.": "head.conv8.1.", "classifiers.0.": "head.conv6.1.", "classifiers.1.": "head.conv7.1.",
    },
    "ocrnet": {
        **{f"paths.0.block.{ours}.{part}.": f"spatial_ocr_head.{theirs}.{k}."
           for ours, theirs, conv, norm in (
               ("query.0", "object_context_block.f_pixel", "0", "1.0"),
               ("query.1", "object_context_block.f_pixel", "2", "3.0"),
               ("key.0", "object_context_block.f_object", "0", "1.0"),
               ("key.1", "object_context_block.f_object", "2", "3.0"),
               ("value", "object_context_block.f_down", "0", "1.0"),
               ("mix", "object_context_block.f_up", "0", "1.0"),
               ("fuse", "conv_bn_dropout", "0", "1.0"),
           )
           for part, k in (("conv", conv), ("norm", norm))},
        "paths.0.before.conv.": "conv_3x3.0.", "paths.0.before.norm.": "conv_3x3.1.0.", "classifier.": "head.",
    },
    "isanet": {
        **{f"paths.0.block.contexts.0.{at}.{ours}.": f"isa_head.2.stages.0.{theirs}_range_sa.{name}."
           for at, theirs in (("far", "long"), ("near", "short"))
           for ours, name in (
               *((f"{part}.{n}.{layer}", f"f_{part}.{k}") for part in ("query", "key")
                 for n, layer, k in ((0, "conv", "0"), (0, "norm", "1.0"), (1, "conv", "2"), (1, "norm", "3.0"))),
               ("value", "f_value"), ("project.conv", "W.0"), ("project.norm", "W.1.0"),
           )},
        "paths.0.block.fuse.conv.": "isa_head.2.conv_bn.0.", "paths.0.block.fuse.norm.": "isa_head.2.conv_bn.1.0.",
        "paths.0.before.conv.": "isa_head.0.", "paths.0.before.norm.": "isa_head.1.0.", "classifier.": "cls_head.",
    },
    "ccnet": {
        **{f"{ours}.{layer}.": f"head.{theirs}.{k}."
           for ours, theirs in {"paths.0.before": "conv1a", "paths.0.after": "conv1b", "fuse": "bottleneck"}.items()
           for layer, k in (("conv", 0), ("norm", 1))},
        **{f"paths.0.block.{part}.": f"head.cca.{part}_conv." for part in ("query", "key", "value")},
        "paths.0.block.gamma": "head.cca.gamma", "classifier.": "head.bottleneck.3.",
    },
}  # fmt: skip


AUXILIARY = {
    "paths.0.before.conv.": "dsn_head.0.",
    "paths.0.before.norm.": "dsn_head.1.0.",
    "classifier.": "dsn_head.3.",
}


def in_their_words(release: Release, state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        words = {"backbone": BACKBONES[release.code], "head": HEADS[release.name], "auxiliary": AUXILIARY}[part]
        ours = next(ours for ours in words if rest.startswith(ours))
        found[words[ours] + rest.removeprefix(ours)] = value
    return found


def thin(release: Release) -> SegmentationNetwork:
    options: dict[str, Any] = {"mask_size": (5, 5)} if release.name == "psanet" else {}
    stem = {} if release.name == "danet" else {"stem_width": 4}
    backbone = "resnet50" if release.name == "danet" else "resnet50c"
    network = create_network(
        release.name, 3, auxiliary=bool(release.auxiliary), backbone=backbone,
        backbone_options={"channels": THIN["channels"], **stem}, **{**release.arguments, **options},
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert isinstance(network, SegmentationNetwork)
    return network.eval()


@pytest.mark.parametrize("release", RELEASES, ids=[release.name for release in RELEASES])
def test_names_find_their_places(release: Release, tmp_path: Path) -> None:
    network = thin(release)
    state = in_their_words(release, network.state_dict())
    assert len(state) == len(network.state_dict())
    if release.code.startswith("openseg"):  # a convolution with a bias, which the mean of the norm behind it takes off
        layer = "conv_3x3" if release.name == "ocrnet" else "isa_head"
        state[f"{layer}.0.bias"] = torch.randn_like(state[f"{layer}.1.0.running_mean"])
        state[f"{layer}.1.0.running_mean"] = state[f"{layer}.1.0.running_mean"] + state[f"{layer}.0.bias"]
    left = {f"{start}1.weight": torch.zeros(1) for start in release.left}
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in {**state, **left}.items()}}, path)
    found = from_checkpoint(path)
    assert "authors' code: align_corners=True, output_stride=8" in str(found.recognised)
    if release.inplace_abn:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = module.weight.data.abs() + 1e-5
    assert str(found.head) == str(network.head)
    x = torch.randn(1, 3, 49, 57)
    with torch.no_grad():
        torch.testing.assert_close(found(x), network(x))


def second(network: nn.Module) -> list[int]:
    blocks = [*network.backbone.layer3, *network.backbone.layer4]  # type: ignore[misc]
    return [block.conv2.dilation[0] for block in blocks]


RATES = {
    **{name: [2] * 6 + [4] * 3 for name in ("pspnet", "psanet", "ccnet")},
    **{name: [1, *[2] * 6, 4, 4] for name in ("ocrnet", "isanet")},
    "emanet": [1, *[2] * 6, 8, 16],
    "danet": [1, *[2] * 5, 4, 8, 16],
}


@pytest.mark.parametrize(("name", "rates"), RATES.items())
def test_what_no_parameter_shows(name: str, rates: list[int]) -> None:
    network = thin(next(release for release in RELEASES if release.name == name))
    assert second(network) == rates
    assert network.align_corners
    assert network.backbone["maxpool"].ceil_mode == (name in ("ccnet", "ocrnet", "isanet"))
    way = network.head.paths[0]
    slope = getattr((way.after or way.before).act, "negative_slope", 0)
    assert slope == (0.01 if name == "ccnet" else 0)
