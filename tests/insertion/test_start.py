"""How a block enters: as the identity, gated where it is none by nature, or as it is."""

import pytest
import torch
from insertion.hosts import assert_equal, host, images, run
from torch import Tensor, nn

from lookfar import insert, remove
from lookfar.insertion import Gated, insertions


def test_blocks_that_are_not_residual_are_gated_unless_raw() -> None:
    class Doubling(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((channels, 1, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    net = host("resnet18")
    want = run(net)
    (name,) = insert(net, Doubling, at="layer3", example=images())
    assert name == "layer3.1.doubling"
    gated = net.get_submodule(name)
    assert isinstance(gated, Gated)
    assert_equal(run(net), want)
    x = torch.randn(2, 256, 3, 3)
    with torch.no_grad():
        gated.gamma.fill_(0.5)
    assert torch.equal(gated(x), 1.5 * x)
    assert gated(x.bfloat16()).dtype == torch.bfloat16
    remove(net)
    (name,) = insert(net, Doubling, at="layer3", example=images(), raw=True)
    assert isinstance(net.get_submodule(name), Doubling)
    assert not torch.equal(run(net)[0], want[0])


def test_the_authors_start_is_taken_at_its_word() -> None:
    net = host("resnet18")
    want = run(net)
    insert(net, "position_attention(zero_init=False)", at="layer3", example=images())
    assert not torch.equal(run(net)[0], want[0])


def test_a_trained_module_may_enter_and_the_change_is_said() -> None:
    from lookfar import create_block

    net = host("resnet18")
    block = create_block("position_attention", 256, zero_init=False)
    with pytest.warns(UserWarning, match=r"after layer3 changes the network in eval mode: its output differs"):
        insert(net, block, at="layer3", example=images())
    assert insertions(net)[0].module is block
    with pytest.raises(ValueError, match="one module cannot stand at 2 places"):
        insert(net, block, at=["layer1", "layer2"], example=images())
    with pytest.raises(TypeError, match="already built takes no options, got reduction"):
        insert(net, block, at="layer3", example=images(), reduction=2)


def test_a_host_of_zeros_does_not_decide_what_is_gated() -> None:
    class Doubles(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    (name,) = insert(net, Doubles(), "0", example=torch.randn(2, 3, 4, 4))
    assert hasattr(net.get_submodule(name), "gamma")
