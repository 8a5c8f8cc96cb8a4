"""Batch norms folded into convolutions: the same outputs, and nothing folded that must not be."""

import pytest
import timm
import torch
from torch import Tensor, nn

from lookfar import create_block, insert, optimize
from lookfar._drawing import randomise

NORMS = nn.modules.batchnorm._BatchNorm


def drawn(network: nn.Module) -> nn.Module:
    """Parameters and statistics that differ by channel."""
    randomise(network)
    for module in network.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


def assert_same(network: nn.Module, x: Tensor, left: int) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    done = optimize(network, x)
    assert norms(done) == left
    assert not done.training
    with torch.no_grad():
        want, got = network.eval()(x), done(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    "text", ["nonlocal", "expectation_maximization", "interlaced", "pyramid_pooling", "disentangled_nonlocal"]
)
def test_blocks(text):
    assert_same(drawn(create_block(text, 16)), torch.randn(2, 16, 9, 11), 0)


def test_a_network_with_a_block():
    network = timm.create_model("resnet10t", num_classes=5)
    example = torch.randn(1, 3, 64, 64)
    insert(network, "nonlocal", at="layer2", example=example)
    assert_same(drawn(network), torch.randn(2, 3, 48, 80), 0)


class Odd(nn.Module):
    """A convolution that is read twice, one that is run twice, one whose norm has no statistics; tied weights may."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.batch, self.tied, self.other = (nn.Conv2d(4, 4, 1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, track_running_stats=n != 2) for n in range(5))
        self.other.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(x)
        x = y + self.norms[0](y)
        x = self.again(self.norms[1](self.again(x)))
        x = self.norms[2](self.batch(x))
        return self.norms[3](self.tied(x)) + self.other(self.norms[4](x))


def test_what_must_not_be_folded():
    assert_same(drawn(Odd()), torch.randn(2, 4, 5, 6), 4)


class Gated(Odd):
    """Behind a factor that is 0, where no mistake shows in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * super().forward(x)


def test_a_branch_that_is_still_shut():
    assert norms(optimize(Gated(), torch.randn(2, 4, 5, 6))) == 4


def test_an_example_is_asked_for():
    with pytest.raises(ValueError, match="give example="):
        optimize(nn.Conv2d(3, 4, 1))
