"""Networks to insert into, and what is asked of them."""

import copy
import functools

import timm
import torch
import torchvision
from samples import randomise
from torch import Tensor, nn

from lookfar.insertion import insertions

# host -> a stage of several blocks, for which positions it has a meaning
HOSTS = {
    "resnet18": ("layer3", {"every", "branch"}),
    "resnet50": ("layer3", {"every", "branch"}),
    "mobilenetv3_small_050": ("blocks.3", {"every", "branch"}),
    "convnext_atto": ("stages.2", {"every"}),
    "efficientnet_lite0": ("blocks.4", {"every", "branch"}),
    "regnety_002": ("s3", {"every", "branch"}),
    "densenet121": ("features.denseblock2", set()),
    "torchvision resnet18": ("layer3", {"every", "branch"}),
}


LIGHT = ("resnet18", "regnety_002", "mobilenetv3_small_050")


SIDE = 64


@functools.cache
def _built(name: str, features_only: bool) -> nn.Module:
    if name.startswith("torchvision "):
        return randomise(torchvision.models.get_model(name.removeprefix("torchvision "), weights=None))
    return randomise(timm.create_model(name, features_only=features_only))


def host(name: str, *, features_only: bool = False) -> nn.Module:
    """With random norm weights: timm starts the last of each branch at zero, and any block looks like the identity."""
    return copy.deepcopy(_built(name, features_only))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def run(network: nn.Module, *, train: bool = False) -> list[Tensor]:
    torch.manual_seed(5)
    y = network.train(train)(images())
    return list(y) if isinstance(y, list | tuple) else [y]


def wake(network: nn.Module) -> None:
    """Random weights for the inserted blocks."""
    for found in insertions(network):
        randomise(found.module)


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    assert all(torch.equal(g, w) for g, w in zip(got, want))


class Identical(nn.Module):
    """The least that learns and starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.scale * x.sin()
