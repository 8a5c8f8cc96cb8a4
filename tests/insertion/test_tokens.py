"""Transformers as hosts: tokens on the grid of their patches, maps with the channels last, blocks that take tokens."""

import copy
import functools

import pytest
import timm
import torch
import torchvision
from insertion.hosts import Identical, assert_equal, wake
from samples import assert_same, randomise
from torch import Tensor, nn

import lookfar
from lookfar import describe, insert
from lookfar.blocks import create_block
from lookfar.insertion import insertions, remove, switched_off, verify

X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(3))
SQUARE = X[..., :32]


@functools.cache
def _vit(**options) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})).eval()


def vit(**options) -> nn.Module:
    return copy.deepcopy(_vit(**options))


def swin() -> nn.Module:
    options = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)}
    return randomise(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **options)).eval()


def torchvision_swin() -> nn.Module:
    return randomise(torchvision.models.SwinTransformer([4, 4], 8, [1, 2], [1, 2], [4, 4], num_classes=5)).eval()


def torchvision_vit() -> nn.Module:
    return randomise(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=5)).eval()


class Marks(nn.Module):
    """Not the identity, and another number at each position: whoever lays tokens out otherwise gives other outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        ramp = torch.arange(H, dtype=x.dtype)[:, None] + 10 * torch.arange(W, dtype=x.dtype)
        return x + self.weight * (ramp + torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * 100)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_tokens_stand_on_the_grid_and_the_others_pass(options: dict) -> None:
    net = vit(**options)
    want = net(X)
    assert insert(net, Marks, "blocks.1", example=X) == ["blocks.1.marks"]
    assert torch.equal(net(X), want)
    nn.init.ones_(insertions(net)[0].module.weight)
    seen = []
    with switched_off(net):
        handle = net.blocks[1].register_forward_hook(lambda m, args, y: seen.append(y))
        net(X)
    net(X)
    handle.remove()
    prefix = net.num_prefix_tokens
    moved = (seen[1] - seen[0]).detach()
    assert torch.equal(moved[:, :prefix], torch.zeros_like(moved[:, :prefix]))
    n, c = torch.arange(24), torch.arange(16)  # 4 x 6 patches, row by row
    assert_same("grid", moved[0, prefix:], (n // 6 + 10 * (n % 6))[:, None] + 100.0 * c, 1e-4)
    text = describe(net, example=X)
    assert "tokens as a grid of 4×6" in text
    assert (f"behind {prefix}" in text) == bool(prefix)
    assert "16×4×6" in text


def test_the_grid_follows_the_image() -> None:
    net = vit(dynamic_img_size=True)
    insert(net, Marks, "blocks.1", example=X)
    nn.init.ones_(insertions(net)[0].module.weight)
    tall = X.transpose(2, 3)  # as many patches, another grid
    fresh = vit(dynamic_img_size=True)
    insert(fresh, Marks, "blocks.1", example=tall)
    nn.init.ones_(insertions(fresh)[0].module.weight)
    assert torch.equal(net(tall), fresh(tall))
    assert torch.equal(net(X), fresh(X))
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for x in (X, tall, SQUARE, X):
        assert_same("compiled", compiled(x), fresh(x), 1e-5)


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (swin, "layers.1"),
        (swin, "layers.1.blocks.0"),
        (torchvision_swin, "features.3"),
        (torchvision_swin, "features.1.0.mlp"),
        (torchvision_swin, "norm"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_channels_last(make, at: str) -> None:
    net = make()
    want = net(SQUARE)
    insert(net, Marks, at, example=SQUARE)
    assert torch.equal(net(SQUARE), want)
    seen = []
    insertions(net)[0].module.register_forward_hook(lambda m, args, y: seen.append(y))
    wake(net)
    assert not torch.equal(net(SQUARE), want)
    assert seen[0].shape[1] in (8, 16)
    assert seen[0].shape[2] == seen[0].shape[3] in (4, 8)
    assert "channels last, permuted" in describe(net, example=SQUARE)


def test_torchvision_vit() -> None:
    net = torchvision_vit()
    (name,) = insert(net, "nonlocal", "encoder.layers", example=SQUARE)
    assert name == "encoder.layers.encoder_layer_1.non_local"
    wake(net)
    assert "16×4×4" in describe(net, example=SQUARE)
    assert verify(net, SQUARE) == {}


@pytest.mark.parametrize("block", ["self_attention", "multi_head_external", "offset_attention"])
def test_blocks_on_tokens_take_them_all(block: str) -> None:
    net = vit()
    want = net(X)
    insert(net, block, "blocks.1", example=X, **({"heads": 2} if block != "offset_attention" else {}))
    assert torch.equal(net(X), want)
    wake(net)
    assert not torch.equal(net(X), want)
    assert insertions(net)[0].record.layout.kind in ("tokens", "points")
    assert verify(net, X) == {}


def test_what_cannot_be_is_said_in_a_line() -> None:
    with pytest.raises(ValueError, match=r"self_attention takes tokens \(B, N, C\), layers.1 gives a map .* of a ViT"):
        insert(swin(), "self_attention", "layers.1", example=SQUARE)
    with pytest.raises(ValueError, match=r"point_stage gives \(2, 64, 25\) for \(2, 16, 25\): only a block that keeps"):
        insert(vit(), "point_stage", "blocks.1", example=X)
    with pytest.raises(ValueError, match=r"carafe is of kind upsampler: only blocks of kind context"):
        insert(vit(), "carafe", "blocks.1", example=X)
    with pytest.raises(ValueError, match=r"position='branch' finds no residual block"):
        insert(vit(), "cbam", "blocks", example=X, position="branch")


def test_patches_of_which_some_are_dropped() -> None:
    """In training there are fewer tokens than the grid has."""
    net = vit(patch_drop_rate=0.5)
    with pytest.raises(
        ValueError, match=r"does not train on the example: 13 tokens came, want 1 and a grid of \(4, 6\)"
    ):
        insert(net, Identical, "blocks.1", example=X)
    assert not insertions(net)


def test_removed_without_a_trace() -> None:
    net, want = vit(), vit()
    insert(net, "cbam", "blocks.0", example=X)
    insert(net, "cbam", "blocks.2", example=X)
    assert len(net.patch_embed.proj._forward_hooks) == 1
    remove(net, "blocks.0")
    assert len(net.patch_embed.proj._forward_hooks) == 1
    remove(net)
    assert [len(m._forward_hooks) for m in net.modules()] == [len(m._forward_hooks) for m in want.modules()]
    with pytest.raises(ValueError, match="only a block that keeps"):
        insert(net, functools.partial(nn.Conv2d, out_channels=3, kernel_size=1), "blocks.1", example=X)
    assert [len(m._forward_hooks) for m in net.modules()] == [len(m._forward_hooks) for m in want.modules()]


def test_files_and_copies_keep_the_grid(tmp_path) -> None:
    net = vit(dynamic_img_size=True, reg_tokens=2)
    insert(net, "position_attention", "blocks", position="every", example=X)
    insert(net, "self_attention", "blocks.0", example=X, heads=2)
    wake(net)
    loaded = lookfar.load(vit(dynamic_img_size=True, reg_tokens=2), lookfar.save(net, tmp_path / "vit.safetensors"))
    for x in (X, SQUARE, X.transpose(2, 3)):
        assert_equal([loaded(x), copy.deepcopy(net)(x)], [net(x), net(x)])


@pytest.mark.parametrize("dims", [1, 3])
def test_sequences_and_video(dims: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)
    net = nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 8, 1)).eval()
    x = torch.randn(2, 3, *(9, 7, 6)[:dims])
    want = net(x)
    for at in "03":
        insert(net, "nonlocal", at, example=x)
        assert insertions(net)[-1].record.options == {"dims": dims}
    assert torch.equal(net(x), want)
    assert isinstance(create_block("nonlocal", 8, dims=dims), type(insertions(net)[0].module))
