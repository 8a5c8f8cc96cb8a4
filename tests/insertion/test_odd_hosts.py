"""Hosts that draw, count, share or have been made into something else: right, or one line that names the cure."""

import random

import numpy as np
import pytest
import timm
import torch
from insertion.hosts import Identical, host, images
from torch import Tensor, nn

from lookfar import describe, insert, remove
from lookfar.blocks import block_info
from lookfar.insertion import LEAVES, Gated, insertions, verify


class Draws(nn.Module):
    """A host that is another one each time it runs."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.what = what
        self.steps = 0
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        drawn = {
            "numpy": np.random.rand,
            "random": random.random,
            "torch": lambda: torch.rand(()),
            "steps": lambda: self.steps,
            "own generator": self.generator.random,
            "steps in training": lambda: self.steps if self.training else 1,
        }
        return self.conv(x) * drawn[self.what]()


@pytest.mark.parametrize("what", ["numpy", "random", "torch", "steps in training"])
def test_hosts_that_draw_are_held_still(what: str) -> None:
    states = np.random.get_state()[1].copy(), random.getstate(), torch.random.get_rng_state()
    net = Draws(what)
    insert(net, "position_attention", "conv", example=images())
    assert (np.random.get_state()[1] == states[0]).all()
    assert random.getstate() == states[1]
    assert net.steps == 3, "the host is run three times"


@pytest.mark.parametrize("what", ["steps", "own generator"])
def test_hosts_that_cannot_be_held_still_are_told_of(what: str) -> None:
    with pytest.warns(UserWarning, match="Draws itself gives other outputs each time it runs in eval mode"):
        insert(Draws(what), "position_attention", "conv", example=images())


def test_a_block_is_blamed_for_what_it_does() -> None:
    class Drawing(Identical):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(())
            return super().forward(x)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + torch.rand_like(y)

    net = Noisy()
    with pytest.raises(
        ValueError, match=r"Drawing after conv draws random numbers in eval mode. The network is as it was"
    ):
        insert(net, Drawing, "conv", example=images())
    assert not insertions(net)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.encoder(a) - self.encoder(b)


def test_a_siamese_encoder() -> None:
    net = Siamese()
    pair = (images(), images().flip(0))
    with pytest.raises(ValueError, match=r"encoder \(Sequential\) is called 2 times .* insert\(network.encoder, ...\)"):
        insert(net, "position_attention", "encoder", example=pair)
    insert(net.encoder, "position_attention", "2", example=images())
    assert verify(net, pair) == {"encoder.2.position_attention": 2}
    remove(net)
    insert(net, "position_attention", "encoder", example=pair, shared=True)
    assert verify(net, pair) == {}
    assert "is called" not in describe(net, example=pair)


def test_an_activation_that_stands_in_two_stages() -> None:
    relu = nn.ReLU()
    net = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 8, 1), relu), "b": nn.Sequential(nn.Conv2d(8, 8, 1), relu)})
    net.forward = lambda x: net["b"](net["a"](x))  # type: ignore[method-assign]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = net

        def forward(self, x: Tensor) -> Tensor:
            return self.stages["b"](self.stages["a"](x))

    whole = Whole()
    insert(whole, "position_attention", "stages.b", example=images())
    assert verify(whole, images()) == {}


def test_the_gate_does_not_depend_on_the_hosts_weights() -> None:
    """A fresh timm ResNet gives zero at the end of each branch, where any block looks like the identity."""
    fresh, trained = timm.create_model("resnet18"), host("resnet18")
    for block in ("squeeze_excitation", "position_attention"):
        for net in (fresh, trained):
            insert(net, block, "layer3", position="branch", example=images())
    assert fresh.state_dict().keys() == trained.state_dict().keys()
    fresh.load_state_dict(trained.state_dict())
    for one in insertions(fresh):
        assert isinstance(one.module, Gated) != block_info(one.record.block).residual
    remove(fresh)

    class Doubling(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    insert(fresh, Doubling, "layer3", position="branch", example=images())
    assert all(isinstance(one.module, Gated) for one in insertions(fresh))


def test_a_host_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=3)
    real = timm.create_model("resnet18", num_classes=3)
    for one in (net, real):
        insert(one, "position_attention", "layer3", example=images().to(next(one.parameters()).device))
        insert(one, "squeeze_excitation", "layer2", example=images().to(next(one.parameters()).device))
    assert all(p.is_meta for p in net.parameters())
    net.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(net.eval()(images()), real.eval()(images()))


def test_in_inference_mode() -> None:
    net = host("resnet18")
    with torch.inference_mode():
        insert(net, "position_attention", "layer3", example=images().clone())
        frozen = timm.create_model("resnet18")
        insert(frozen, "position_attention", "layer3", example=images())
    net.train()(images()).sum().backward()
    assert insertions(net)[0].module.gamma.grad is not None
    with torch.no_grad():
        assert frozen.eval()(images()).isfinite().all()


def made_into(how: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    if how == "compiled":
        return torch.compile(net, backend="eager")
    if how == "compiled in place":
        net.compile(backend="eager")
        return net
    if how == "traced by fx":
        return torch.fx.symbolic_trace(host("resnet18"))
    if how == "exported":
        return torch.export.export(net, (images(),)).module()
    return torch.jit.trace(net, images())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("compiled", r"\(OptimizedModule\) is compiled and would not see a block: insert first, compile then"),
        ("compiled in place", r"\(Sequential\) is compiled and would not see"),
        ("traced by fx", r"layer3 \(Module\) is not called by a network that torch.fx has traced: insert first"),
        ("exported", "is a traced graph that calls no modules any more: insert first, trace or export then"),
        ("traced by jit", "is a ScriptModule, which takes no block: insert, then trace it"),
    ],
)
def test_what_a_network_has_been_made_into(how: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        insert(made_into(how), "position_attention", "layer3" if "fx" in how else "0", example=images())


def test_torch_fx() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    net = host("resnet18").eval()
    insert(net, "nonlocal", "layer3", example=images())
    insert(net, "cbam", "layer2", position="branch", example=images())
    insert(net, "global_context", "bn1", example=images())
    for one in insertions(net):
        nn.init.constant_(next(p for n, p in one.module.named_parameters() if n.endswith(("gamma", "weight"))), 0.3)
    want = net(images())
    with pytest.raises(
        ValueError, match=r"cannot trace a BatchNorm2d with a block .* trace torch.nn.Sequential\(network\)"
    ):
        torch.fx.symbolic_trace(net)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(net))(images()), want)
    remove(net, "bn1")
    want = net(images())
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(images()), want)
    assert dict(traced.named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert torch.equal(traced.train()(images()), net.train()(images())), "the trace has baked in a mode"
    net.eval()
    want, seen = net(images()), []
    handle = net.layer3[1].register_forward_hook(lambda m, args, y: seen.append(y))
    net(images())
    handle.remove()
    for options in ({}, {"tracer_kwargs": {"leaf_modules": LEAVES}}):
        features = create_feature_extractor(net, ["layer3", "fc"], **options).eval()(images())
        assert torch.equal(features["fc"], want)
        assert torch.equal(features["layer3"], seen[0])


def test_arguments_by_position() -> None:
    assert insert(host("resnet18"), "nonlocal", "layer3", example=images()) == ["layer3.1.non_local"]


def test_what_is_waited_for_is_said_on_a_terminal(monkeypatch, capsys) -> None:
    import sys
    import time

    class Slow(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.05)
            return super().forward(x)

    monkeypatch.setattr("lookfar.insertion.dry_run.PATIENCE", 0.01)
    net = nn.Sequential(Slow(3, 8, 1))
    insert(net, "position_attention", "0", example=images())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    remove(net)
    insert(net, "position_attention", "0", example=images())
    assert "running Sequential on the example" in capsys.readouterr().err
