"""Nothing changes: outputs, buffers, keys, flags; and the block runs once on what its place gave."""

import pytest
import timm
import torch
from insertion.hosts import HOSTS, Identical, assert_equal, host, images, run, wake
from samples import assert_same
from torch import Tensor, nn

from lookfar import insert, remove
from lookfar.blocks import block_info, list_blocks
from lookfar.insertion import Gated, insertions, switched_off, verify


@pytest.mark.parametrize("features_only", [False, True], ids=["plain", "features_only"])
@pytest.mark.parametrize("name", HOSTS)
def test_nothing_changes_and_the_block_learns(name: str, features_only: bool) -> None:
    if features_only and name.startswith("torchvision"):
        pytest.skip("only timm builds networks for their features alone")
    want, net = host(name, features_only=features_only), host(name, features_only=features_only)
    state = torch.random.get_rng_state()
    stage = HOSTS[name][0]
    (inserted,) = insert(net, Identical, at=stage, example=images())
    assert torch.equal(state, torch.random.get_rng_state()), "the trial runs moved the random state"
    assert net.training, "the trial runs changed the mode"
    for key, value in want.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    assert {key for key in net.state_dict() if key not in want.state_dict()} == {f"{inserted}.scale"}
    assert not net.load_state_dict(want.state_dict(), strict=False).unexpected_keys

    assert_equal(run(net), run(want))
    # outputs and statistics after a pass in training
    assert_equal(run(net, train=True), run(want, train=True))
    for key, value in want.named_buffers():
        assert torch.equal(net.get_buffer(key), value), key

    sum(y.square().mean() for y in run(net, train=True)).backward()
    assert net.get_parameter(f"{inserted}.scale").grad.abs() > 0

    assert remove(net) == [inserted]
    assert net.state_dict().keys() == want.state_dict().keys()
    hooks = [len(module._forward_hooks) for module in net.modules()]
    assert hooks == [len(module._forward_hooks) for module in want.modules()]
    net.load_state_dict(want.state_dict())
    assert_equal(run(net), run(want))


@pytest.mark.parametrize("features_only", [False, True], ids=["plain", "features_only"])
@pytest.mark.parametrize("name", [n for n in HOSTS if not n.startswith("torchvision")])
def test_the_block_runs_once_on_what_the_stage_gave(name: str, features_only: bool) -> None:
    """A container that runs all it contains would run a block kept in it twice."""
    net = host(name, features_only=features_only).eval()
    (inserted,) = insert(net, Identical, at=HOSTS[name][0], example=images())
    (found,) = insertions(net)
    block, place = found.module, net.get_submodule(found.place)
    assert found.name == inserted
    with torch.no_grad():
        block.scale.fill_(0.5)
    gave = []
    handle = place.register_forward_hook(lambda module, args, y: gave.append(y.clone()))
    block.calls = 0
    run(net)
    assert block.calls == 1
    with switched_off(net):
        run(net)
    assert block.calls == 1
    handle.remove()
    assert_same(name, gave[0], gave[1] + 0.5 * gave[1].sin(), 1e-6)


@pytest.mark.parametrize("position", ["every", "branch"])
@pytest.mark.parametrize("name", HOSTS)
def test_positions_inside_a_stage(name: str, position: str) -> None:
    stage, works = HOSTS[name]
    net = host(name)
    want = run(net)
    if position not in works:
        with pytest.raises(ValueError, match="position='last' works"):
            insert(net, Identical, at=stage, position=position, example=images())
        return
    inserted = insert(net, Identical, at=stage, position=position, example=images())
    assert len(inserted) > 1
    assert_equal(run(net), want)
    wake(net)
    assert not torch.equal(run(net)[0], want[0])
    remove(net)
    assert_equal(run(net), want)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_branch_is_where_timm_puts_attention(name: str) -> None:
    net = host(name)
    theirs = timm.create_model(name, block_args={"attn_layer": Identical2})
    missing = theirs.load_state_dict(net.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert len(missing.missing_keys) == len(insert(net, Identical2, at="layer*", position="branch", example=images()))
    for number, module in enumerate(m for m in theirs.modules() if isinstance(m, Identical2)):
        nn.init.constant_(module.scale, 0.1 * (number + 1))
    for number, found in enumerate(insertions(net)):
        nn.init.constant_(found.module.scale, 0.1 * (number + 1))
    assert_equal(run(net), run(theirs))


class Identical2(Identical):
    def __init__(self, channels: int, device=None, dtype=None) -> None:
        super().__init__(channels)


@pytest.mark.parametrize("block", list_blocks(kind="context"))
def test_every_context_block(block: str) -> None:
    """Inserted, it changes nothing and all of it learns; and timm takes it as an ``attn_layer``."""
    net = host("resnet18", features_only=True)
    want = run(net)
    insert(net, block, at="layer2", example=images())
    assert_equal(run(net), want)
    (found,) = insertions(net)
    wake(net)
    net.eval()(images())[-1].square().mean().backward()
    learned = [p.grad is not None and p.grad.abs().max() > 0 for p in found.module.parameters() if p.requires_grad]
    assert any(learned)
    assert isinstance(found.module, Gated) != block_info(block).residual

    theirs = timm.create_model("resnet18", block_args={"attn_layer": block_info(block).cls})
    assert sum(isinstance(m, block_info(block).cls) for m in theirs.modules()) >= 8
    assert theirs.eval()(images(1)).isfinite().all()


def test_a_module_that_runs_all_its_children() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            for child in self.children():
                x = child(x)
            return x

    net = nn.Sequential(Chain(), nn.ReLU())
    assert insert(net, Identical, at="0", example=images()) == ["0.second.identical"]
    with torch.no_grad():
        net[0].second.identical.scale.fill_(1.0)
    net(images())
    assert net[0].second.identical.calls > 0


def test_a_stage_whose_children_the_network_runs() -> None:
    """A block that is kept beside them would run as one of them, and again behind the norm."""

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Module()
            self.stage.conv, self.stage.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            for child in self.stage.children():
                x = child(x)
            return x

    net = Host()
    insert(net, Identical, at="stage.norm", example=images())
    assert verify(net, images()) == {}


def test_a_frozen_half_of_the_network_stays_in_eval() -> None:
    net = host("resnet18").train()
    net.layer1.eval()
    flags = {name: module.training for name, module in net.named_modules()}
    insert(net, "position_attention", at=["layer1", "layer2"], example=images())
    assert {name: net.get_submodule(name).training for name in flags} == flags
    assert [found.module.training for found in insertions(net)] == [False, True]
