"""Layers that blocks read instead of calling: adapters in their place, and weights that are made at each call."""

import copy

import pytest
import torch
from samples import Sample, samples
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lookfar.blocks._reading import weights_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Adapted(nn.Module):
    """A layer with another beside it, as LoRA's: what it has of its own, besides its output, is the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.beside = layer, copy.deepcopy(layer)
        nn.init.normal_(self.beside.weight, std=0.3)
        if self.beside.bias is not None:
            nn.init.zeros_(self.beside.bias)

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.beside(x)


def adapt(layer: nn.Module) -> nn.Module:
    return Adapted(layer)


def prune_and_train(layer: nn.Module) -> nn.Module:
    """What training does to a pruned layer: its weight is that of the last call."""
    prune.random_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        layer.weight_orig += 0.5
    return layer


def normalise_and_train(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)
    return layer


def merged(layer: nn.Module) -> torch.Tensor:
    """The weight that a layer has in effect."""
    if isinstance(layer, Adapted):
        return layer.base_layer.weight + layer.beside.weight
    if parametrize.is_parametrized(layer):
        return layer.weight
    return layer.weight_orig * layer.weight_mask


def learning(layer: nn.Module) -> torch.Tensor:
    return layer.beside.weight if isinstance(layer, Adapted) else layer.weight_orig


def run(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    torch.manual_seed(3)
    y = module(*inputs)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("change", [adapt, prune_and_train, normalise_and_train])
@samples("context", "layer", "upsampler", "region", "tokens")
def test_what_stands_in_a_layers_place_is_asked(sample: Sample, change, train: bool) -> None:
    torch.manual_seed(0)
    block = sample.make()
    usual = copy.deepcopy(block)
    names = [name for name, module in block.named_modules() if isinstance(module, LAYERS)]
    torch.manual_seed(1)
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(block.get_submodule(parent), last, change(block.get_submodule(name)))
    with torch.no_grad():
        for name in names:
            usual.get_submodule(name).weight.copy_(merged(block.get_submodule(name)))
    inputs = sample.inputs(block, batch=2)
    found, want = (run(module.train(train), inputs) for module in (block, usual))
    torch.testing.assert_close(found, want, rtol=1e-7, atol=1e-9)
    if change is normalise_and_train or not found.requires_grad:
        return
    pull = torch.linspace(-1, 1, want.numel(), dtype=want.dtype).view(want.shape)
    (found * pull).sum().backward()
    (want * pull).sum().backward()
    for name in names:
        layer, grad = block.get_submodule(name), usual.get_submodule(name).weight.grad
        grad = grad if grad is None or change is adapt else grad * layer.weight_mask
        torch.testing.assert_close(learning(layer).grad, grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4, bias=False),
        nn.Conv1d(4, 6, 1, groups=2),
        nn.Conv2d(3, 4, 3, padding=4, dilation=4),
        nn.Conv2d(4, 6, (3, 2), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.Conv3d(2, 3, (1, 3, 3)),
    ],
    ids=repr,
)
def test_an_asked_layer_says_its_weight(layer, monkeypatch):
    monkeypatch.setattr("lookfar.blocks._reading._AT_ONCE", 50)  # a few channels at a time
    adapted = Adapted(layer.double())
    weight, bias = weights_of(adapted)
    torch.testing.assert_close(weight, layer.weight + adapted.beside.weight)
    torch.testing.assert_close(bias, torch.zeros_like(bias) if layer.bias is None else layer.bias)
