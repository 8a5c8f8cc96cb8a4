"""Hosts for classification: shapes, places, weights from files with another head, and networks of somebody's own."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lookfar.blocks._own import find_own, parse_address
from lookfar.networks import Classifier, build_classifier, build_own_classifier, resolve_place


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 48)])
def test_small_takes_any_size(size):
    network = build_classifier("small", 5, in_chans=2).eval()
    x = torch.randn(3, 2, *size)
    assert network(x).shape == (3, 5)
    assert network.place == "backbone.layer4"
    torch.testing.assert_close(network(x), network.classifier(network.backbone(x).mean((2, 3))))


# the last stage but one, and three quarters of the way through a transformer
@pytest.mark.parametrize(
    ("host", "place", "pooled"),
    [
        ("resnet18", "backbone.layer3", True),
        ("test_convnext", "backbone.stages.2", True),
        ("mobilenetv3_small_050", "backbone.blocks.3", True),
        ("test_vit", "backbone.blocks.3", False),  # of six
        ("test_efficientnet", "backbone.blocks.3", True),
    ],
)
def test_timm_models_say_where_blocks_go(host, place, pooled):
    network = build_classifier(host, 7, in_chans=1, size=(64, 64)).eval()
    assert network.place == place
    assert network.pooled == pooled
    assert place in dict(network.named_modules())
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    if host == "resnet18":
        assert resolve_place(network, "layer2") == "backbone.layer2"


def test_a_resnet_may_keep_its_last_maps_large():
    network = build_classifier("resnet18", 3, output_stride=16).eval()
    shapes = []
    network.backbone.layer4.register_forward_hook(lambda m, args, y: shapes.append(y.shape[-2:]))
    network(torch.randn(1, 3, 64, 64))
    assert shapes == [(4, 4)]


@pytest.mark.parametrize("host", ["resnet18", "test_convnext", "test_vit"])
def test_weights_of_a_classifier_are_taken_without_its_head(host, tmp_path):
    """ConvNeXt has parts of the backbone beside its classifier in ``head``: only the classifier is left out."""
    torch.manual_seed(0)
    taught = timm.create_model(host, num_classes=11, **({"img_size": 64} if host == "test_vit" else {}))
    save_file(taught.state_dict(), tmp_path / "taught.safetensors")
    network = build_classifier(host, 4, size=(64, 64), weights=tmp_path / "taught.safetensors").eval()
    x = torch.randn(2, 3, 64, 64)
    features = taught.eval().forward_head(taught.forward_features(x), pre_logits=True)
    torch.testing.assert_close(network(x), network.classifier(features))
    again = build_classifier(host, 6, size=(64, 64))
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    again = build_classifier(host, 6, size=(64, 64), weights=tmp_path / "ours.safetensors").eval()
    torch.testing.assert_close(again.backbone(x), network.backbone(x))


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit this host"):
        build_classifier("resnet18", 4, weights=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "resnet81"}, "no host is called 'resnet81'.*Did you mean"),
        ({"host": "small", "pretrained": True}, "'small' has no pretrained weights"),
        ({"host": "small", "output_stride": 16}, "'small' has output stride 8, got 16"),
        ({"host": "test_vit", "output_stride": 16}, "test_vit cannot have output stride 16: leave it out"),
        ({"host": "small", "classes": 0}, "classes must be a positive integer"),
        ({"host": "resnet18", "pretrained": True, "weights": "x"}, "pretrained and weights exclude each other"),
        ({"host": "efficientformer_l1", "size": (64, 64)}, "does not take images of 64×64"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        build_classifier(**{"classes": 3, **options})


OWN = """
import torch
from torch import nn


class Logits(nn.Module):
    place = "conv"

    def __init__(self, num_classes, in_chans=3):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return {"logits": self.fc(self.pool(self.conv(x)).flatten(1))}


def maps(in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3, stride=2), nn.ReLU())


def handed_on(**options):
    return Logits(**options)


def taking_anything(**options):
    if options:
        raise TypeError(f"unexpected keyword argument {next(iter(options))!r}")
    return maps()


def vectors(in_chans=3):
    return nn.Sequential(maps(in_chans), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def wrong(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1))


def odd():
    return nn.Flatten(2)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return lambda name, **options: build_own_classifier(find_own(parse_address(f"own.py:{name}")), 5, **options)


@pytest.mark.parametrize(
    ("name", "bands", "logits", "place"),
    [
        ("Logits", 2, True, "backbone.conv"), ("handed_on", 3, True, "backbone.conv"), ("maps", 2, False, ""),
        ("vectors", 2, False, ""), ("taking_anything", 3, False, ""),
    ],
)  # fmt: skip
def test_own_hosts_give_logits_maps_or_vectors(own, name, bands, logits, place):
    network = own(name, in_chans=bands, size=(16, 12)).eval()
    assert network(torch.randn(3, bands, 16, 12)).shape == (3, 5)
    assert (network.pooled, network.place) == (True, place)
    assert isinstance(network, Classifier) != logits
    if not place:
        with pytest.raises(ValueError, match=r"give --place, such as backbone\.|give --place, such as"):
            resolve_place(network, network.place)


def test_own_hosts_that_fit_no_classification_are_refused(own):
    with pytest.raises(ValueError, match=r"wrong gives \(2×5×64×96\).*want logits \(B, 5\)"):
        own("wrong")
    with pytest.raises(ValueError, match=r"odd gives .*want features \(B, C\)"):
        own("odd")
    with pytest.raises(ValueError, match="--pretrained is for timm hosts"):
        own("maps", pretrained=True)


def test_dropping_the_head_leaves_no_parameter_behind():
    names = [name for name, _ in build_classifier("test_convnext", 4, size=(64, 64)).named_parameters()]
    assert [name for name in names if name.startswith("classifier")] == ["classifier.weight", "classifier.bias"]
    assert not any(name.startswith("backbone.head.fc") for name in names)
    assert isinstance(build_classifier("small", 4).classifier, nn.Linear)
