"""A layer in the place of a convolution: what it takes over, what is refused, and the way back."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from insertion.hosts import assert_equal, host, images, run
from torch import Tensor, nn

from lookfar import create_block, describe, insert, load, remove, replace, save
from lookfar.blocks import TokenBatchNorm
from lookfar.insertion import insertions, recipe, replay, switched_off, verify

LAYERS = ["stand_alone", "local_relation", "attention_augmented", "interleaved_group_convolution"]


@pytest.mark.parametrize(("name", "layer"), [("resnet50", "stand_alone"), *(("resnet18", one) for one in LAYERS)])
def test_a_layer_takes_the_place_and_the_convolution_comes_back(name: str, layer: str) -> None:
    net = host(name)
    want, before = run(net), {key: value.clone() for key, value in net.state_dict().items()}
    convolutions = {f"layer3.{n}.conv2": net.get_submodule(f"layer3.{n}.conv2") for n in range(len(net.layer3))}
    names = replace(net, layer, at="layer3.*.conv2", example=images())
    assert names == list(convolutions)
    assert not torch.equal(run(net)[0], want[0])
    assert verify(net, images()) == {}
    with switched_off(net):
        assert_equal(run(net), want)
    assert not torch.equal(run(net)[0], want[0])
    assert remove(net, "layer3.0.conv2") == ["layer3.0.conv2"]
    assert [one.name for one in insertions(net)] == names[1:]
    remove(net)
    assert all(net.get_submodule(place) is conv for place, conv in convolutions.items())
    assert_equal(run(net), want)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_050"])
def test_depthwise_convolutions_give_way_to_layers_with_groups(name: str) -> None:
    net, at = timm.create_model(name), {"convnext_atto": "stages.3.*.*.conv_dw"}.get(name, "blocks.5.*.conv_dw")
    for layer in ("local_relation", "interleaved_group_convolution"):
        names = replace(net, layer, at=at, example=images())
        assert len(names) > 1
        assert all(one.module.groups == one.record.replaced.groups > 1 for one in insertions(net))
        remove(net)
    want = (
        r"^\S+conv_dw has groups=\d+, and stand_alone has no such option; interleaved_group_\w+, local_relation have$"
    )
    with pytest.raises(ValueError, match=want):
        replace(net, "stand_alone", at=at, example=images())
    assert insertions(net) == []


def test_stride_dilation_extent_and_width_are_the_convolutions() -> None:
    net = timm.create_model("resnet50", output_stride=8)
    replace(net, "stand_alone", at="layer*.0.conv2", example=images())
    got = {one.name: one.record.options for one in insertions(net)}
    assert got["layer2.0.conv2"] == {"out_channels": 128, "stride": 2, "dilation": 1, "kernel_size": 3}
    assert got["layer4.0.conv2"] == {"out_channels": 512, "stride": 1, "dilation": 2, "kernel_size": 3}
    remove(net)
    replace(net, "stand_alone(kernel_size=7)", at="layer2.0.conv2", example=images(), dilation=2)
    assert insertions(net)[0].record.options == {"out_channels": 128, "stride": 2, "dilation": 2, "kernel_size": 7}
    with pytest.raises(ValueError, match=r"layer4.0.conv2 has dilation=2, and attention_augmented has no such option"):
        replace(net, "attention_augmented", at="layer4.0.conv2", example=images())
    replace(net, "attention_augmented", at="layer3.0.conv1", example=torch.randn(1, 3, 64, 96))
    assert insertions(net)[1].record.options["size"] == (8, 12)


def test_a_class_of_ones_own_is_given_what_it_names() -> None:
    class Blur(nn.Module):
        def __init__(self, channels: int, stride: int = 1) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(3, stride, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)

    net = host("resnet50")
    replace(net, Blur, at="layer2.*.conv2", example=images())
    assert insertions(net)[0].record.options == {"stride": 2}
    with pytest.raises(ValueError, match=r"layer1.0.conv3 has out_channels=256, and Blur has no such option"):
        replace(net, Blur, at="layer1.0.conv3", example=images())


@pytest.mark.parametrize(
    ("layer", "at", "says"),
    [
        ("nonlocal", "layer3.0.conv2", "nonlocal is of kind context: only blocks of kind layer stand in the place"),
        ("stand_alone", "layer3.0", r"layer3.0 is a Basic\w+: a layer takes .* in it: layer3.0.conv1, layer3.0.conv2"),
        ("stand_alone", "fc", "fc is a Linear: a layer takes the place of a Conv2d$"),
        ("stand_alone", "layer3.0.bn1", "a layer takes the place of a Conv2d$"),
        ("stand_alone", "layer9", "no module 'layer9'"),
        ("stand_alone(heads=7)", "layer3.0.conv2", "layer3.0.conv2: heads must divide out_channels=256, got 7"),
        ("stand_alone(stride=2)", "layer3.1.conv2", r"gives \(2, 256, 2, 2\) for .*; want \(2, 256, 4, 4\), as before"),
        ("glimpse", "layer3.1.conv2", r"glimpse gives \(2, 256\) for the input of layer3.1.conv2"),
        (create_block("stand_alone", 8), "layer3.0.conv2", "a name or a class, got a StandAlone that is built already"),
    ],
)
def test_refusals_leave_the_network_as_it_was(layer: str | nn.Module, at: str, says: str) -> None:
    net = host("resnet18")
    want, modules = run(net), list(net.modules())
    with pytest.raises(ValueError, match=says):
        replace(net, layer, at=at, example=images())
    assert modules == list(net.modules())
    assert_equal(run(net), want)


def test_what_is_called_twice_or_not_at_all_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice, self.never = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
            self.again = self.stem

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.again(x)))

    net, x = Net(), torch.randn(1, 3, 9, 8)
    for at, says in (
        ("twice", "called 2 times in"),
        ("never", "never called in"),
        ("stem", r"2 names \(stem, again\)"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(net, "stand_alone", at=at, example=x)
    with pytest.raises(ValueError, match="called 2 times"):
        replace(net, "stand_alone", at=["never", "twice"], example=x)
    assert type(net.twice) is nn.Conv2d

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if isinstance(self.conv, nn.Conv2d) else self.conv(self.conv(x))

    moody = Moody()
    with pytest.raises(ValueError, match="the layer at conv is called 2 times"):
        replace(moody, "stand_alone(heads=1)", at="conv", example=x)
    assert type(moody.conv) is nn.Conv2d


def test_flags_buffers_and_random_state_are_untouched() -> None:
    net = host("resnet18").train()
    net.layer4.eval()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    torch.manual_seed(3)
    for _ in range(2):
        create_block("stand_alone", 256, kernel_size=3, out_channels=256)
    for _ in range(2):
        create_block("stand_alone", 512, kernel_size=3, out_channels=512)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    names = replace(net, "stand_alone", at=["layer3.*.conv2", "layer4.*.conv2"], example=images())
    assert torch.equal(state, torch.random.get_rng_state()), "the trial runs moved the random state"
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert [net.get_submodule(name).training for name in names] == [True, True, False, False]
    assert not net.layer4.training
    assert net.layer3.training
    net.half()
    remove(net)
    assert net.layer3[0].conv2.weight.dtype == torch.float16
    assert net.layer3[0].conv2.training


def test_insertions_and_layers_live_together() -> None:
    net = host("resnet18")
    want = run(net)
    replace(net, "stand_alone", at="layer3.1.conv2", example=images())
    with pytest.raises(ValueError, match=r"layer3.1.conv2 is a StandAlone that replace has put there"):
        replace(net, "local_relation", at="layer3.*.conv2", example=images())
    insert(net, "nonlocal", at=["layer3", "layer3.1.conv2", "layer3.1.conv2.value"], example=images())
    with pytest.raises(ValueError, match=r"non_local_2 stands at layer3.1.conv2, which would go"):
        remove(net, "layer3.1.conv2")
    table = describe(net, example=images()).splitlines()
    assert sum("stand_alone for Conv2d" in line for line in table) == 1
    assert table[-1].split()[5] == str(sum(p.numel() for p in host("resnet18").parameters()))
    again = copy.deepcopy(net)
    assert len(remove(again)) == 4
    assert_equal(run(again), want)
    insert(net, "nonlocal", at="layer4.1.conv2", example=images())
    with pytest.raises(ValueError, match=r"layer4.1.conv2 is a Conv2d with layer4.1.\w+ behind it"):
        replace(net, "stand_alone", at="layer4.1.conv2", example=images())


def test_a_file_says_what_was_replaced(tmp_path: Path) -> None:
    net = host("resnet18")
    replace(net, "stand_alone(kernel_size=5)", at="layer4.*.conv2", example=images())
    insert(net, "nonlocal", at="layer3", example=images())
    want = run(net)[0]
    path = save(net, tmp_path / "network.safetensors")
    torch.save(want, tmp_path / "want.pt")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import timm, torch, lookfar
from insertion.hosts import images
net = lookfar.load(timm.create_model("resnet18"), {str(path)!r}).eval()
assert torch.equal(net(images()), torch.load({str(tmp_path / "want.pt")!r}))
assert lookfar.remove(net) == ["layer3.1.non_local", "layer4.0.conv2", "layer4.1.conv2"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(run(pickle.loads(pickle.dumps(net)))[0], want)
    steps = recipe(net)
    steps[0] |= {"channels": 256}
    with pytest.raises(ValueError, match=r"layer4.0.conv2 is a Conv2d here, for 512 .* 256: another host"):
        replay(host("resnet18"), steps)
    other = host("resnet18")
    with pytest.raises(ValueError, match="does not fit this"):
        load(_narrow(other), path)
    assert insertions(other) == []


def _narrow(net: nn.Module) -> nn.Module:
    net.fc = nn.Linear(512, 7)
    return net


def test_norms_are_replaced_by_norms_of_the_same_axis(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    x = torch.randn(2, 3, 64, 64)
    want = net(x)
    names = replace(net, TokenBatchNorm, at=["blocks.*.norm*", "norm"], example=x)
    assert len(names) == 5
    assert not any(isinstance(m, nn.LayerNorm) for m in net.modules())
    net.train()(x)
    got = net.eval()(x)
    again = load(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), save(net, tmp_path / "v.safetensors"))
    assert torch.equal(again.eval()(x), got)
    assert not torch.equal(got, want)
    remove(net)
    assert torch.equal(net(x), want)
    with pytest.raises(ValueError, match="BatchNorm1d would take another axis"):
        replace(net, nn.BatchNorm1d, at="blocks.0.norm1", example=x)
    resnet = host("resnet18")
    replace(resnet, nn.InstanceNorm2d, at="layer1.*.bn2", example=images())
    with pytest.raises(ValueError, match="is a BatchNormAct2d: a layer takes the place of a Conv2d, and a class of"):
        replace(timm.create_model("efficientnet_lite0"), nn.InstanceNorm2d, at="blocks.1.0.bn1", example=images())


def test_a_layer_in_a_layer_is_switched_off_and_on_again() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = torch.randn(1, 3, 6, 5)
    before = network(x)
    options = {"heads": 2, "key_channels": 4, "value_channels": 4, "size": (6, 5)}
    replace(network, "attention_augmented", at="1", example=x, **options)
    replace(network, "stand_alone", at="1.conv", example=x)
    with_layers, modules = network(x), dict(network.named_modules())
    with switched_off(network):
        assert torch.equal(network(x), before)
    assert torch.equal(network(x), with_layers)
    assert {name: id(module) for name, module in network.named_modules()} == {n: id(m) for n, m in modules.items()}


def test_a_context_block_without_its_sum_is_a_layer() -> None:
    net = host("resnet18")
    before = run(net)
    assert replace(net, "nonlocal(residual=False)", "layer4.0.conv2", example=images(), heads=2) == ["layer4.0.conv2"]
    assert not torch.equal(run(net)[0], before[0])
    with pytest.raises(ValueError, match="has out_channels=512, and nonlocal has no such option"):  # it keeps width
        replace(net, "nonlocal", "layer4.0.conv1", residual=False, example=images())
    remove(net)
    assert torch.equal(run(net)[0], before[0])
