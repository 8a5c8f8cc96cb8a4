"""A network with its blocks in one file, read in another process, and recipes beside other people's files."""

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from insertion.hosts import Identical, assert_equal, host, images, run, wake
from torch import Tensor, nn

import lookfar
from lookfar import insert
from lookfar.insertion import Gated, insertions, recipe, replay


def filled() -> nn.Module:
    """Several blocks: two in a meaningful order at one place, gated ones, one with a class among its options."""
    net = host("resnet18")
    insert(net, "nonlocal(mode=dot_product)", "layer3", example=images(), norm_layer=nn.BatchNorm2d)
    insert(net, "nonlocal", "layer3", example=images(), mode="dot_product", subsample=2)
    insert(net, "squeeze_excitation", "layer2", position="branch", example=images(), reduction=4)
    insert(net, "pyramid_pooling", "layer4", example=images(), bins=(1, 2))
    wake(net)
    return net


def test_load_gives_the_network(tmp_path: Path) -> None:
    net = filled()
    want = run(net)
    path = lookfar.save(net, tmp_path / "net.safetensors")
    fresh = host("resnet18").train()
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    state = torch.random.get_rng_state()
    assert lookfar.load(fresh, path) is fresh
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in fresh.modules())
    assert_equal(run(fresh), want)
    assert fresh.state_dict().keys() == net.state_dict().keys()
    for one, other in zip(insertions(net), insertions(fresh)):
        assert (one.name, one.place, one.spot) == (other.name, other.place, other.spot)
        assert (one.record.block, one.record.options) == (other.record.block, other.record.options)
        assert isinstance(one.module, Gated) == isinstance(other.module, Gated)
    # once more into what is there, and into what has been taken out again
    lookfar.load(fresh, path)
    lookfar.remove(fresh)
    lookfar.load(fresh, path)
    assert_equal(run(fresh), want)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "densenet121", "torchvision resnet18"])
def test_hosts_and_positions(name: str, tmp_path: Path) -> None:
    stage = {"regnety_002": "s3", "densenet121": "denseblock2"}.get(name, "layer3")
    net = host(name)
    insert(net, "position_attention", stage, example=images())
    if name != "densenet121":
        insert(net, "cbam", stage, position="branch", example=images())
        insert(net, "global_context", stage, position="every", example=images())
    wake(net)
    loaded = lookfar.load(host(name), lookfar.save(net, tmp_path / "net.safetensors"))
    assert_equal(run(loaded), run(net))


def test_in_another_process(tmp_path: Path) -> None:
    net = filled()
    path = lookfar.save(net, tmp_path / "net.safetensors")
    torch.save((images(), run(net)[0].detach()), tmp_path / "data.pt")
    script = f"""
        import timm, torch, lookfar
        x, want = torch.load({str(tmp_path / "data.pt")!r}, weights_only=True)
        net = lookfar.load(timm.create_model("resnet18"), {str(path)!r}).eval()
        assert torch.equal(net(x), want)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_what_strict_loading_cannot_see(tmp_path: Path) -> None:
    """The same keys with another mode, or in another order."""
    net = host("resnet18")
    insert(net, "nonlocal", "layer3", example=images(), mode="dot_product")
    wake(net)
    other = host("resnet18")
    insert(other, "nonlocal", "layer3", example=images())
    other.load_state_dict(net.state_dict())
    assert not torch.equal(run(other)[0], run(net)[0])
    path = lookfar.save(net, tmp_path / "net.safetensors")
    with pytest.raises(
        ValueError, match=r"has inserted blocks already \(layer3.1.non_local\): give it as it was before"
    ):
        lookfar.load(other, path)
    lookfar.remove(other)
    assert_equal(run(lookfar.load(other, path)), run(net))


def test_a_recipe_beside_the_weights(tmp_path: Path) -> None:
    net = filled()
    torch.save({"recipe": recipe(net), "weights": net.state_dict()}, tmp_path / "net.pt")
    file = torch.load(tmp_path / "net.pt", weights_only=True)
    assert json.loads(json.dumps(file["recipe"])) == file["recipe"]
    fresh = host("resnet18")
    assert replay(fresh, file["recipe"]) == [step["name"] for step in file["recipe"]]
    fresh.load_state_dict(file["weights"])
    assert_equal(run(fresh), run(net))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.stage = nn.Conv2d(8, 8, 1)
        self.again = nn.Conv2d(8, 8, 1)
        self.again.weight = self.stage.weight
        self.register_buffer("part", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("whole", torch.zeros(2, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.stage(self.conv(x)).relu())


def test_tied_weights_and_views(tmp_path: Path) -> None:
    net = Tied()
    insert(net, "position_attention", "stage", example=images())
    wake(net)
    path = lookfar.save(net, tmp_path / "tied.safetensors")
    loaded = lookfar.load(Tied(), path)
    assert loaded.again.weight is loaded.stage.weight
    assert_equal(run(loaded), run(net))
    assert torch.equal(loaded.part, net.part)


def test_wrapped_networks(tmp_path: Path) -> None:
    net = filled()
    path = lookfar.save(torch.compile(net, backend="eager"), tmp_path / "net.safetensors")
    assert_equal(run(lookfar.load(host("resnet18"), path)), run(net))
    path = lookfar.save(nn.DataParallel(net), tmp_path / "net.safetensors")
    assert_equal(run(lookfar.load(host("resnet18"), path)), run(net))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = lookfar.save(filled(), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"RegNet has no module 'layer3.1'.*hangs: another host"):
        lookfar.load(host("regnety_002"), path)
    narrow = host("resnet18")
    narrow.fc = nn.Linear(512, 3)
    keys = set(narrow.state_dict())
    message = (
        r"net.safetensors does not fit this ResNet. of another shape: fc.weight \(1000, 512\) for \(3, 512\), fc.bias"
    )
    with pytest.raises(ValueError, match=message):
        lookfar.load(narrow, path)
    assert set(narrow.state_dict()) == keys
    narrow.fc = nn.Identity()
    with pytest.raises(ValueError, match=r"not in the host: fc.bias, fc.weight"):
        lookfar.load(narrow, path)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in narrow.modules())
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lookfar.load(narrow, tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ValueError, match=r"was not written by lookfar.save"):
        lookfar.load(narrow, tmp_path / "text")
    from safetensors.torch import save_file

    save_file(narrow.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not say what was inserted"):
        lookfar.load(narrow, tmp_path / "plain.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors", "plain.safetensors", "text"]


def test_blocks_of_ones_own_are_given(tmp_path: Path) -> None:
    net = host("resnet18")
    insert(net, Identical, "layer3", example=images())
    insert(net, lookfar.create_block("position_attention", 128, reduction=4), "layer2", example=images())
    wake(net)
    path = lookfar.save(net, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"layer3.1.identical is a Identical .* class of yours: give blocks="):
        lookfar.load(host("resnet18"), path)
    mine = {"Identical": Identical}
    with pytest.raises(ValueError, match=r"layer2.1.position_attention is a .* module of yours: give blocks="):
        lookfar.load(host("resnet18"), path, blocks=mine)
    mine["position_attention"] = lookfar.create_block("position_attention", 128, reduction=4)
    assert_equal(run(lookfar.load(host("resnet18"), path, blocks=mine)), run(net))


@pytest.mark.parametrize(
    "value",
    [2, 0.5, "word", None, True, (1, (2, 3)), [1, 2], nn.BatchNorm2d, functools.partial(nn.GroupNorm, 4, eps=1e-3)],
)
def test_options_return_as_they_were(value: Any) -> None:
    from lookfar.insertion.files import _read, _written

    if isinstance(value, functools.partial):
        value = functools.partial(nn.BatchNorm2d, eps=1e-3)
        got = _read(json.loads(json.dumps(_written(value, "option", "name"))))
        assert (got.func, got.keywords) == (value.func, value.keywords)
        return
    got = _read(json.loads(json.dumps(_written(value, "option", "name"))))
    assert got == value
    assert type(got) is type(value)


def test_a_file_names_no_other_code(tmp_path: Path) -> None:
    net = host("resnet18")
    insert(net, "global_context", "layer3", example=images())
    steps = recipe(net)
    for path in (
        "os.system",
        "torch.nn.functional.relu",
        "torch.nn.Module.__init__",
        "lookfar.cli.main",
        "lookfar.x.Y",
    ):
        steps[0]["options"] = {"act_layer": {"class": path}}
        with pytest.raises(ValueError, match=r"a file may name classes of torch.nn and lookfar"):
            replay(host("resnet18"), steps)
    net = host("resnet18")
    insert(net, "nonlocal", "layer3", example=images(), norm_layer=lambda c, **kw: nn.BatchNorm2d(c, **kw))
    with pytest.raises(ValueError, match=r"norm_layer=.* of layer3.1.non_local cannot be written into a file"):
        lookfar.save(net, tmp_path / "net.safetensors")
