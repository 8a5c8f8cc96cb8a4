"""Insertion: the network computes the same, its checkpoints still load, the block learns, and all can be undone."""

import copy
import functools
import pickle

import pytest
import timm
import torch
import torchvision
from samples import assert_same, randomise
from torch import Tensor, nn

from lookfar import describe, insert, remove
from lookfar.blocks import block_info, list_blocks
from lookfar.insertion import Gated, insertions, switched_off

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


@pytest.mark.parametrize("features_only", [False, True], ids=["plain", "features_only"])
@pytest.mark.parametrize("name", HOSTS)
def test_nothing_changes_and_the_block_learns(name: str, features_only: bool) -> None:
    if features_only and name.startswith("torchvision"):
        pytest.skip("an idea of timm's")
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


class Identical(nn.Module):
    """The least that learns and starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.scale * x.sin()


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


@pytest.mark.parametrize("name", LIGHT)
def test_copies_are_independent(name: str) -> None:
    net = host(name).eval()
    insert(net, "position_attention", at=HOSTS[name][0], example=images())
    wake(net)
    want = run(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_equal(run(copied), want)
        wake(copied)
        assert not torch.equal(run(copied)[0], want[0])
        assert_equal(run(net), want)
        assert remove(copied)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002"])
def test_compile_and_export(name: str) -> None:
    net = host(name, features_only=True).eval()
    insert(net, "position_attention", at=HOSTS[name][0], example=images())
    wake(net)
    want = run(net)
    torch._dynamo.reset()
    with torch.no_grad():
        for got, w in zip(torch.compile(net, fullgraph=True, backend="aot_eager")(images()), want):
            assert_same(name, got, w, 1e-5)
        exported = torch.export.export(net, (images(),)).module()
        for got, w in zip(exported(images()), want):
            assert_same(name, got, w, 1e-5)


def test_two_blocks_at_one_place_run_in_order_of_insertion() -> None:
    net = host("resnet18")
    first = insert(net, "position_attention", at="layer3", example=images())
    wake(net)
    kept = run(net)
    second = insert(net, "position_attention", at="layer3", example=images())
    assert first + second == ["layer3.1.position_attention", "layer3.1.position_attention_2"]
    assert_equal(run(net), kept)
    wake(net)
    both = run(net)
    with switched_off(net, first):
        only_second = run(net)
    with switched_off(net, second):
        only_first = run(net)
    with switched_off(net):
        none = run(net)
    assert_equal(run(net), both)
    assert len({y[0].sum().item() for y in (both, only_first, only_second, none)}) == 4
    assert [found.name for found in insertions(net)] == first + second
    assert_equal(none, run(host("resnet18")))
    assert remove(net, first[0]) == first
    assert_equal(run(net), only_second)


def test_a_hook_added_while_switched_off_survives() -> None:
    net = host("resnet18")
    insert(net, Identical, at="layer3", example=images())
    calls = []
    with switched_off(net):
        handle = net.layer3.register_forward_hook(lambda *_: calls.append(1))
        run(net)
    run(net)
    assert len(calls) == 2
    handle.remove()
    assert len(net.layer3._forward_hooks) == 1


def test_blocks_of_another_process_are_not_replaced() -> None:
    """Hook ids start anew in each process: the id of an unpickled hook may be given out again."""
    net = host("resnet18")
    insert(net, Identical, at="layer3", example=images())
    ((key, hook),) = net.layer3._forward_hooks.items()
    del net.layer3._forward_hooks[key]
    net.layer3._forward_hooks[torch.utils.hooks.RemovableHandle.next_id + 3] = hook
    for _ in range(3):
        insert(net, Identical, at="layer3", example=images())
    assert len(insertions(net)) == 4


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
    with pytest.warns(UserWarning, match=r"position_attention after layer3 changes the network in eval mode: output 0"):
        insert(net, block, at="layer3", example=images())
    assert insertions(net)[0].module is block
    with pytest.raises(ValueError, match="one module cannot stand at 2 places"):
        insert(net, block, at=["layer1", "layer2"], example=images())
    with pytest.raises(TypeError, match="already built takes no options, got reduction"):
        insert(net, block, at="layer3", example=images(), reduction=2)


@pytest.mark.parametrize(
    ("at", "want"),
    [
        ("layer*", ["layer1", "layer2", "layer3", "layer4"]),
        ("layer3.*", ["layer3.0", "layer3.1"]),
        (["layer4", "layer2"], ["layer2", "layer4"]),
        (["layer2", "layer[2]"], ["layer2"]),
        ("layer?.1.conv1", [f"layer{n}.1.conv1" for n in (1, 2, 3, 4)]),
    ],
)
def test_globs_do_not_cross_dots(at: str | list[str], want: list[str]) -> None:
    net = host("resnet18")
    insert(net, Identical, at=at, example=images())
    assert [found.place for found in insertions(net)] == want
    # what has been inserted is no place itself, and moves no other block
    again = insert(net, Identical, at=at, example=images())
    assert len(again) == len(want)
    assert len(remove(net)) == 2 * len(want)


def test_leading_parts_may_be_left_out() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = host("densenet121", features_only=True)

        def forward(self, x: Tensor) -> list[Tensor]:
            return self.backbone(x)

    net = Wrapped()
    assert insert(net, Identical, at="features_denseblock2", example=images())[0].startswith("backbone.features_dense")
    assert insert(host("densenet121", features_only=True), Identical, at="denseblock2", example=images())
    with pytest.raises(ValueError, match=r"'conv1' could be .*denselayer1.conv1.* give the whole name"):
        insert(net, Identical, at="conv1", example=images())


def test_the_example_comes_from_timm() -> None:
    net = timm.create_model("resnet18", in_chans=5)
    net.pretrained_cfg["input_size"] = (3, 64, 64)
    insert(net, Identical, at="layer3")
    table = describe(net)
    assert "256×4×4" in table
    with pytest.raises(ValueError, match=r"does not say what it takes .* give example="):
        insert(host("torchvision resnet18"), Identical, at="layer3")


def test_describe_counts_what_was_added() -> None:
    net = host("resnet18")
    assert describe(net) == "no block has been inserted"
    insert(net, "position_attention", at=["layer2", "layer3"], example=images())
    (first, second, together, rest) = describe(net, example=images()).splitlines()[1:]
    parameters = [sum(p.numel() for p in found.module.parameters()) for found in insertions(net)]
    for line, found, count in zip((first, second), insertions(net), parameters):
        assert line.split()[:2] == [found.place, "position_attention"]
        assert str(count) in line
        assert "N^2 C" in line
    # layer2 gives 128 x 8 x 8: three projections and two products, a multiply-add is 2
    flops = 2 * 64 * (128 * (16 + 16 + 128) + 64 * (16 + 128)) / 1e9
    assert float(first.split()[4]) == pytest.approx(flops, rel=0.01)
    assert str(sum(parameters)) in together
    assert str(sum(p.numel() for p in host("resnet18").parameters())) in rest
    assert "–" in describe(timm_without_cfg(net))


def timm_without_cfg(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    net.pretrained_cfg = net.default_cfg = None
    return net


class Odd(nn.Module):
    """Calls its modules in ways that a block cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.twice = nn.Conv2d(8, 8, 1)
        self.never = nn.Conv2d(8, 8, 1)
        self.steps = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.pair = Pair()
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.conv(x)))
        for step in self.steps:
            x = step(x)
        return self.classifier(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("never", r"never \(Conv2d\) is never called in a forward pass"),
        ("twice", r"twice \(Conv2d\) is called 2 times in a forward pass, want once"),
        ("steps", r"steps \(Sequential\) is never called .* may call its children instead \(steps.0, steps.1\)"),
        ("pair", r"pair gives a tuple of 2, want one feature map"),
        ("classifier", r"classifier gives a tensor of shape \(2, 2\), want a feature map"),
        ("step", r"no module 'step'. Did you mean steps, "),
        ([], r"no place is given"),
    ],
)
def test_places_where_no_block_can_stand(at: str | list[str], message: str) -> None:
    net = Odd()
    keys = set(net.state_dict())
    with pytest.raises(ValueError, match=message):
        insert(net, Identical, at=at, example=images())
    assert set(net.state_dict()) == keys
    assert not any(module._forward_hooks for module in net.modules())


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


def test_blocks_that_do_not_fit() -> None:
    class Halving(nn.Conv2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 1, stride=2)

    net = host("resnet18")
    keys = set(net.state_dict())
    with pytest.raises(
        ValueError, match=r"Halving gives \(2, 256, 2, 2\) for \(2, 256, 4, 4\): only a block that keeps"
    ):
        insert(net, Halving, at="layer3", example=images())
    with pytest.raises(ValueError, match=r"no block is called 'position_atention'. Did you mean position_attention"):
        insert(net, "position_atention", at="layer3", example=images())
    with pytest.raises(TypeError, match="position_attention has no option 'bins'"):
        insert(net, "position_attention", at="layer3", example=images(), bins=2)
    with pytest.raises(ValueError, match="position is last, every or branch, got 'first'"):
        insert(net, Identical, at="layer3", example=images(), position="first")
    with pytest.raises(ValueError, match=r"layer3.1.conv1 \(Conv2d\) is no stage of several blocks"):
        insert(net, Identical, at="layer3.1.conv1", example=images(), position="every")
    with pytest.raises(ValueError, match="no inserted block is called 'layer9'; inserted blocks: there are none"):
        remove(net, "layer9")
    assert set(net.state_dict()) == keys
    assert not any(module._forward_hooks for module in net.modules())


def test_tokens_are_no_map() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Tokens())
    with pytest.raises(ValueError, match=r"1 gives \(2, 4096, 8\): tokens"):
        insert(net, Identical, at="1", example=images())


def test_a_frozen_half_of_the_network_stays_in_eval() -> None:
    net = host("resnet18").train()
    net.layer1.eval()
    flags = {name: module.training for name, module in net.named_modules()}
    insert(net, "position_attention", at=["layer1", "layer2"], example=images())
    assert {name: net.get_submodule(name).training for name in flags} == flags
    assert [found.module.training for found in insertions(net)] == [False, True]
