"""What is done to a network after an insertion leaves no block out in silence: it is called, or one error says so."""

import copy
import gc

import pytest
import timm
import torch
from insertion.hosts import assert_equal, host, images, run, wake
from samples import assert_same, randomise
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookfar import describe, insert, remove
from lookfar.insertion import insertions, switched_off, verify

CHECKPOINTED = {
    "resnet18": "layer3",
    "efficientnet_lite0": "blocks.4",
    "mobilenetv3_small_050": "blocks.3",
    "regnety_002": "s3",
    "convnext_atto": "stages.2",
    "densenet121": "features.denseblock2",
}


def off(net: nn.Module) -> list[Tensor]:
    with switched_off(net):
        return run(net)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_keeps_the_block(name: str) -> None:
    net = host(name)
    insert(net, "position_attention", CHECKPOINTED[name], example=images())
    wake(net)
    plain = copy.deepcopy(net)
    net.set_grad_checkpointing(True)
    for train in (False, True):
        assert_equal(run(net, train=train), run(plain, train=train))
        assert verify(net, images()) == {}
    grads = []
    for one in (plain, net):
        torch.manual_seed(5)
        one.train()(images()).square().mean().backward()
        grads.append([p.grad for p in insertions(one)[0].module.parameters()])
        assert max(float(g.abs().max()) for g in grads[-1]) > 0
    for a, b in zip(*grads):
        assert_same(name, a, b, 1e-5)


def test_stages_unrolled_into_one_sequential() -> None:
    net = host("resnet18")
    insert(net, "position_attention", "layer*", example=images())
    wake(net)
    unrolled = nn.Sequential(
        net.conv1, net.bn1, net.act1, net.maxpool,
        *net.layer1, *net.layer2, *net.layer3, *net.layer4, net.global_pool, net.fc,
    )  # fmt: skip
    assert_equal(run(unrolled), run(net))


def fuse_by_hand(net: nn.Module) -> nn.Module:
    for block in [m for m in net.modules() if hasattr(m, "bn2")]:
        block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
        block.bn2 = nn.Identity()
    return net


def fuse_modules(net: nn.Module) -> nn.Module:
    pairs = [[f"layer3.{n}.conv{k}", f"layer3.{n}.bn{k}"] for n in (0, 1) for k in (1, 2)]
    return torch.ao.quantization.fuse_modules(net, pairs)


def fuse_by_fx(net: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(net)


def other_activations(net: nn.Module) -> nn.Module:
    for block in [m for m in net.modules() if hasattr(m, "bn2")]:
        block.act1 = nn.SiLU()
    return net


CONVERSIONS = {
    "torch SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm SyncBatchNorm": convert_sync_batchnorm,
    "timm frozen": freeze_batch_norm_2d,
    "fx fuse": fuse_by_fx,
    "fuse_modules": fuse_modules,
    "by hand": fuse_by_hand,
    "activations": other_activations,
}
PLACES = {
    ("layer3", "last"): set(),
    ("layer3", "branch"): {"fuse_modules", "by hand"},
    ("layer3.0.bn1", "last"): {"fuse_modules"},
    ("layer3.1.bn2", "last"): {"fuse_modules", "by hand"},
    ("layer3.1.conv2", "last"): {"fuse_modules", "by hand"},
    ("layer3.1.act1", "last"): {"activations"},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch.ao")
@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("where", PLACES, ids="-".join)
def test_called_or_told(where: tuple[str, str], conversion: str) -> None:
    """Nobody else is to be touched by the conversion, so what it gives without the blocks is what to compare with."""
    net = host("resnet18").eval()
    place, position = where
    names = insert(net, "position_attention", place, position=position, example=images())
    wake(net)
    without = CONVERSIONS[conversion](host("resnet18").eval()).eval()(images())
    change = run(net)[0] - off(net)[0]
    converted = CONVERSIONS[conversion](net).eval()
    if conversion in PLACES[where]:
        with pytest.raises(RuntimeError, match=r"position_attention stood behind the \w+ '\w+' of a BasicBlock"):
            converted(images())
        calls = verify(converted, images())
        assert set(calls) <= set(names)
        assert set(calls.values()) == {0}
        assert f"{next(iter(calls))} is called not once in a forward pass" in describe(converted, example=images())
        remove(converted)
        assert_same(conversion, converted(images()), without, 1e-4)
        return
    got = converted(images())
    if conversion != "activations":
        assert_same(conversion, got - without, change, 1e-4)
        assert change.detach().abs().max() > 1e-2
    if conversion != "fx fuse":  # a GraphModule is not asked what was inserted
        assert verify(converted, images()) == {}
        remove(converted)
        assert_same(conversion, converted(images()), without, 1e-4)


def test_a_conversion_before_compiling_is_told() -> None:
    net = host("resnet18").eval()
    insert(net, "position_attention", "layer3", position="branch", example=images())
    wake(net)
    net = freeze_batch_norm_2d(net)
    torch._dynamo.reset()
    # torch 2.8 says that an exception was raised, not which
    with pytest.raises(Exception, match=r"run the network once before compiling|raised exception"):
        torch.compile(net, fullgraph=True, backend="eager")(images())
    want = run(net)
    torch._dynamo.reset()
    assert_same("compiled", torch.compile(net, fullgraph=True, backend="eager")(images()), want[0], 1e-5)


def test_replicas_of_data_parallel_call_their_own_block() -> None:
    """As torch.nn.parallel.replicate makes them: a copy of each module's dictionary, in which hooks are shared."""
    net = host("resnet18").layer3[0]
    x = torch.randn(2, 128, 4, 4)
    insert(net, "position_attention", "bn2", example=x)
    randomise(net.position_attention)
    net.eval()
    want = net(x)

    modules = dict(net.named_modules())
    replicas = {name: module._replicate_for_data_parallel() for name, module in modules.items()}
    for name, replica in replicas.items():
        for key, child in modules[name]._modules.items():
            if child is not None:
                replica._modules[key] = replicas[f"{name}.{key}".lstrip(".")]
        for key, p in modules[name]._parameters.items():
            value = None if p is None else p.detach() * (2 if "position_attention" in name else 1)
            replica.__dict__[key] = value
    got = replicas[""](x)
    assert not torch.equal(got, want), "the original's block was called"
    assert torch.equal(net(x), want)


def test_verify_names_what_is_called_otherwise() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = host("resnet18")
            self.again = False

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return self.net(x) if self.again else y

    net = Twice()
    insert(net, "position_attention", "net.layer3", example=images())
    assert verify(net, images()) == {}
    net.again = True
    assert verify(net, images()) == {"net.layer3.1.position_attention": 2}
    assert "net.layer3.1.position_attention is called 2 times" in describe(net, example=images())
    with switched_off(net):
        assert verify(net, images()) == {"net.layer3.1.position_attention": 0}
    net.net.layer3[1]._forward_hooks.clear()
    assert verify(net, images()) == {"net.layer3.1.position_attention": 0}


def test_a_block_of_ones_own_in_its_place_is_called() -> None:
    net = host("resnet18").eval()
    insert(net, "position_attention", "layer3", position="branch", example=images())
    zero = nn.Softplus()
    net.layer3[0].position_attention = zero
    calls = []
    zero.register_forward_hook(lambda *_: calls.append(1))
    run(net)
    assert calls == [1]


def test_nothing_holds_the_network() -> None:
    """Hooks refer to blocks, not to networks: a network that is let go is freed."""
    import weakref

    net = host("resnet18")
    insert(net, "position_attention", "layer3", position="branch", example=images())
    reference = weakref.ref(net)
    del net
    gc.collect()
    assert reference() is None


def test_timm_feature_nets_made_afterwards() -> None:
    """``features_only`` networks unroll the stages; the same happens to a network that is taken apart."""
    net = timm.create_model("resnet18").eval()
    randomise(net)
    insert(net, "position_attention", ["layer2", "layer4"], example=images())
    wake(net)
    features = net.forward_intermediates(images(), intermediates_only=True)
    assert_same("layer4", features[-1], net.forward_features(images()), 1e-6)
    assert float((features[-1] - host_features(net)).detach().abs().max()) > 1e-3


def host_features(net: nn.Module) -> Tensor:
    with switched_off(net):
        return net.forward_features(images())


def test_a_norm_in_a_network_of_sequentials() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    want = net(images())
    assert insert(net, "position_attention", "1", example=images()) == ["1.position_attention"]
    assert torch.equal(copy.deepcopy(net)(images()), want)
    converted = freeze_batch_norm_2d(copy.deepcopy(net))
    with pytest.raises(
        RuntimeError, match="position_attention was kept in the norm '1', in whose place there is another"
    ):
        converted(images())
    remove(net)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert torch.equal(net(images()), want)
