"""Names of places, and places and blocks that do not fit."""

import pytest
import timm
import torch
from insertion.hosts import Identical, host, images
from torch import Tensor, nn

from lookfar import describe, insert, remove
from lookfar.insertion import insertions


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
    with pytest.warns(UserWarning, match="Identical stands after .* twice now"):
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


def test_the_example_has_the_size_that_a_transformer_was_built_for() -> None:
    """Its pretrained_cfg keeps the size of the published weights."""
    net = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1, embed_dim=24)
    assert insert(net, "nonlocal", at="blocks.0") == ["blocks.0.non_local"]
    assert "24×2×3" in describe(net)
    net.patch_embed.img_size = None  # as of a network that keeps its size elsewhere
    with pytest.raises(
        ValueError, match=r"cannot take images \(2, 3, 224, 224\), as its pretrained_cfg .* give example="
    ):
        insert(net, "nonlocal", at="norm")
    with pytest.raises(RuntimeError):  # of an example that was given
        insert(net, "nonlocal", at="norm", example=torch.randn(1, 3, 64, 64))


class Odd(nn.Module):
    """Calls its modules in ways that a block cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.twice = nn.Conv2d(8, 8, 1)
        self.never = nn.Conv2d(8, 8, 1)
        self.steps = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.ReLU()])
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
        ("steps", r"steps \(ModuleList\) is never called .* may call its children instead \(steps.0, steps.1\)"),
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
    with pytest.raises(ValueError, match="position must be last, every or branch, got 'first'"):
        insert(net, Identical, at="layer3", example=images(), position="first")
    with pytest.raises(ValueError, match=r"layer3.1.conv1 \(Conv2d\) is not a stage of several blocks"):
        insert(net, Identical, at="layer3.1.conv1", example=images(), position="every")
    with pytest.raises(ValueError, match="no inserted block is called 'layer9'; inserted blocks: there are none"):
        remove(net, "layer9")
    assert set(net.state_dict()) == keys
    assert not any(module._forward_hooks for module in net.modules())


def test_tokens_without_a_grid() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

    with pytest.raises(ValueError, match=r"0 gives \(2, 4096, 3\): tokens or a sequence, and no convolution before"):
        insert(nn.Sequential(Tokens()), Identical, at="0", example=images())
