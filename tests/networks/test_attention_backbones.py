"""The backbones of the family's papers: sizes, interface, files of their authors, and what is refused."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookfar import create_network, from_checkpoint, insert, list_networks, remove
from lookfar.blocks import block_info
from lookfar.networks import build_classifier, build_network
from lookfar.networks.attention_backbones import ATTENTION_BACKBONES

GOLDENS = Path(__file__).parents[1] / "goldens" / "t2t_vit"

# million trainable parameters; papers and authors' code give 10.3, 14.1, 18.0, 14.7, 23.3, 25.8, 4.3, 21.5, 39.1, ...
MILLIONS = {
    "sasa_resnet26": 10.34,
    "sasa_resnet38": 14.19,
    "sasa_resnet50": 18.04,
    "lr_net26": 14.61,
    "lr_net50": 23.37,
    "aa_resnet50": 25.79,
    "t2t_vit_7": 4.26,
    "t2t_vit_14": 21.47,
    "t2t_vit_19": 39.09,
    "t2t_vit_t_14": 21.47,
    "eamlp_7": 6.096,
    "eamlp_14": 29.80,
    "eamlp_19": 54.47,
}


@functools.cache
def sketch(name: str, **options: Any) -> nn.Module:
    """Without numbers, which takes no time."""
    with torch.device("meta"):
        return create_network(name, **options)


def trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_parameters_are_those_of_the_paper(name: str, millions: float) -> None:
    digits = 3 if name == "eamlp_7" else 2
    assert round(trained(sketch(name)) / 1e6, digits) == millions


def test_the_stem_of_attention_takes_away_ten_thousand() -> None:
    assert round(trained(sketch("sasa_resnet26", stem="attention")) / 1e6, 2) == 10.33


@pytest.mark.parametrize(
    ("name", "layer", "stages", "count", "convolutions"),
    [
        ("sasa_resnet38", "stand_alone", (1, 2, 3, 4), 12, ("conv2",)),
        ("lr_net26", "local_relation", (1, 2, 3, 4), 8, ("conv2",)),
        ("aa_resnet50", "attention_augmented", (2, 3, 4), 13, ("conv2",)),
        ("aa_resnet34", "attention_augmented", (2, 3, 4), 13, ("conv1", "conv2")),
    ],
)
def test_every_convolution_of_its_stages_is_a_layer(
    name: str, layer: str, stages: tuple[int, ...], count: int, convolutions: tuple[str, ...]
) -> None:
    network, cls = sketch(name), block_info(layer).cls
    found = [at for at, module in network.named_modules() if isinstance(module, cls) and at.startswith("layer")]
    want = [
        f"layer{stage}.{n}.{conv}"
        for stage in stages
        for n in range(len(network.get_submodule(f"layer{stage}")))
        for conv in convolutions
    ]
    assert found == want
    assert len(found) == count * len(convolutions)
    left = [at for at, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(at.startswith("layer1.") or at.endswith(".conv") for at in left), "the convolutions of AA alone"
    assert not any(hasattr(module, "inserted") for module in network.modules())


def test_augmented_maps_follow_the_size_of_the_input() -> None:
    network = sketch("aa_resnet50", size=(320, 224))
    tables = {n: network.get_submodule(f"layer{n}.0.conv2").key_rel_h.shape[0] for n in (2, 3, 4)}
    assert tables == {2: 2 * 20 - 1, 3: 2 * 20 - 1, 4: 2 * 10 - 1}
    assert [network.get_submodule(f"layer{n}.0.conv2").pool for n in (2, 3, 4)] == [2, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["sasa_resnet26", "lr_net26", "aa_resnet34", "t2t_vit_7", "t2t_vit_t_14", "eamlp_7"])
def test_images_of_the_paper_and_of_another_size_run(name: str) -> None:
    network = sketch(name).eval()
    for size in ((224, 224), (160, 256)):
        assert network(torch.empty(1, 3, *size, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("name", ["sasa_resnet26", "lr_net26", "aa_resnet34", "t2t_vit_7", "eamlp_7"])
def test_they_train_and_have_timms_interface(name: str) -> None:
    torch.manual_seed(0)
    network = create_network(name, 5, in_chans=2, size=64)
    for module in network.modules():  # timm starts the last norm of a branch at zero, and no gradient reaches the rest
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    images = torch.randn(2, 2, 64, 80)
    features = network.forward_features(images)
    logits = network.forward_head(features)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    dead = {at for at, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert dead <= inert(network), dead - inert(network)
    assert network.pretrained_cfg["input_size"] == (2, 64, 64)
    assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)
    network.reset_classifier(3)
    assert network.eval()(images).shape == (2, 3)
    assert network.get_classifier().out_features == network.num_classes == 3
    network.reset_classifier(0)
    assert network(images).shape == (2, network.num_features)
    stage = network.feature_info[-1]["module"]
    (inserted,) = insert(network, "nonlocal", at=stage, example=images)
    assert network.get_submodule(inserted)(torch.randn(1, network.feature_info[-1]["num_chs"], 4, 5)).shape[2:] == (
        4,
        5,
    )
    assert remove(network) == [inserted]


def inert(network: nn.Module) -> set[str]:
    """Parameters that their blocks declare to be without effect, and one behind which a softmax takes it off."""
    names = set()
    for at, module in network.named_modules():
        names |= {f"{at}.{name}" for name in getattr(module, "inert_parameters", ())}
    return names | {at for at, _ in network.named_parameters() if at.endswith("qkv.bias")}


@pytest.mark.parametrize("name", ["sasa_resnet26", "t2t_vit_7"])
def test_they_are_hosts_of_segmentation_and_classification(name: str) -> None:
    network = build_network(name, 3, output_stride=16, width=8).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 48, 64)).shape == (1, 3, 48, 64)
        assert build_classifier(name, 3, size=(48, 64))(torch.randn(2, 3, 48, 64)).shape == (2, 3)
    place = "layer3" if name.startswith("sasa") else "blocks.6"
    assert network.get_submodule(network.places()[place]) is not None


def golden(kind: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    with np.load(GOLDENS / f"t2t_vit_{kind}_48.npz") as file:
        state = {key[2:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("p:")}
        return state, torch.from_numpy(file["x0"]).double(), torch.from_numpy(file["y0"])


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_files_of_the_authors_give_their_logits(kind: str, tmp_path: Path) -> None:
    state, images, want = golden(kind)
    torch.save({"epoch": 3, "state_dict_ema": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "t2t.pth.tar")
    with pytest.warns(UserWarning, match=r"t2t.pth.tar does not say everything; assumed by default: scale=0.35"):
        network = from_checkpoint(tmp_path / "t2t.pth.tar", heads=3)
    assert network.recognised.arguments["depth"] == 2
    got = network.double()(images).detach()
    assert float((got - want).abs().max()) < 1e-9
    if kind == "transformer":
        torch.save({"state_dict": of_mmpretrain(state)}, tmp_path / "mm.pth")
        with pytest.warns(UserWarning, match="scale"):
            again = from_checkpoint(tmp_path / "mm.pth", heads=3, size=64)
        assert again.pos_embed.shape == (1, 17, 24)
        again = again.double()
        assert not torch.equal(again(images), got)  # positions there and back are no longer the same
        again.pos_embed, again.grid_size = nn.Parameter(state["pos_embed"].double()), (3, 3)
        assert float((again(images).detach() - want).abs().max()) < 1e-9


def of_mmpretrain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
    found = {}
    for key, value in state.items():
        for theirs, other in names.items():
            key = key.replace(f".{theirs}.", f".{other}.")
        key = key.replace("blocks.", "encoder.")
        found[key.replace("head.", "head.fc.") if key.startswith("head.") else f"backbone.{key}"] = value
    return found


def test_what_has_no_weights_or_no_such_option_says_so() -> None:
    assert set(ATTENTION_BACKBONES) <= set(list_networks())
    for name, reason in (("lr_net26", "published the op alone"), ("t2t_vit_14", "read by lookfar.from_checkpoint")):
        with pytest.raises(ValueError, match=f"{name} comes without pretrained weights: .*{reason}"):
            create_network(name, pretrained=True)
    with pytest.raises(ValueError, match="lr_net26 has one stem: stem= is an option of sasa_resnet26, 38 and 50"):
        create_network("lr_net26", stem="attention")
    with pytest.raises(TypeError, match=r"t2t_vit_7 has no option 'stem'. It takes: in_chans, size, scale"):
        create_network("t2t_vit_7", stem="conv")
    with pytest.raises(ValueError, match="t2t_vit_7 is not a head on a backbone and has no width"):
        create_network("t2t_vit_7", width=3)
    with pytest.raises(ValueError, match="has dilation=2, and attention_augmented has no such option"):
        create_network("aa_resnet50", output_stride=8)
    with pytest.raises(ValueError, match="t2t_vit_7 has output stride 16, got 8"):
        build_network("t2t_vit_7", 3, output_stride=8)
