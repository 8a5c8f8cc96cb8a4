"""Attention of torch, timm and transformers answers as blocks do, and the network that holds it is left alone."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lookfar.diagnostics import ablations, blocks_of, look, statistics
from lookfar.diagnostics.adapters import Adapted, TokenAttention, adapted
from lookfar.insertion import insert

SLIM = {"embed_dim": 96, "num_heads": 3}
TIMM = {
    "class token": ("vit_tiny_patch16_224", {"img_size": 64}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, **SLIM}),
    "rotations": ("eva02_tiny_patch14_224", {"img_size": 56}),
    "rotations, registers, one layer a projection": ("vit_small_patch16_dinov3", {"img_size": 64}),
    "biases of relative positions": ("beit_base_patch16_224", {"img_size": 64, **SLIM}),
    "biases of relative positions, norms": ("vit_relpos_small_patch16_224", {"img_size": 64, **SLIM}),
    "two class tokens": ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
}


def random_(network):
    """All parameters random, so that none of them is nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network.eval()


def of_timm(name, depth=1, **options):
    return random_(timm.create_model(name, pretrained=False, num_classes=5, depth=depth, **options))


def blocks_with_inputs(twin, x):
    """The blocks of an adapted network with what they were given and what they gave."""
    seen = []
    outside = [module for module in twin.modules() if isinstance(module, Adapted)]
    hooks = [one.register_forward_hook(lambda block, args, y: seen.append((block, args[0], y))) for one in outside]
    with torch.no_grad():
        twin(x)
    for hook in hooks:
        hook.remove()
    return seen


def assert_maps_give_the_output(network, x):
    twin = adapted(network)
    with torch.no_grad():
        got, want = twin(x), network(x)
        assert torch.equal(got, want) if isinstance(got, torch.Tensor) else torch.equal(got[0], want[0])
        found = blocks_with_inputs(twin, x)
        assert found
        for block, tokens, y in found:
            assert block.wrong == ""
            maps = block.attention(tokens)
            assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)
            again = block.finish(tokens, maps @ block.values(tokens))
            assert (again - y).abs().max() <= 1e-6 * max(1, float(y.abs().max()))
            some = torch.tensor([tokens.shape[-1] - 1, 0])
            assert torch.allclose(block.attention(tokens, some), maps[:, :, some], atol=1e-6)


@pytest.mark.parametrize("case", TIMM)
def test_of_timm(case):
    name, options = TIMM[case]
    size = options["img_size"]
    assert_maps_give_the_output(of_timm(name, **options), torch.randn(2, 3, size, size))


class Beside(nn.Module):
    """A linear layer with another beside it, as LoRA's."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.low, self.up = layer, nn.Linear(96, 4, bias=False), nn.Linear(4, 288, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.low(x))


def test_adapters_in_the_place_of_projections():
    network = of_timm("vit_tiny_patch16_224", img_size=64, **SLIM)
    attention = network.blocks[0].attn
    attention.qkv = Beside(attention.qkv)
    x = torch.randn(2, 3, 64, 64)
    assert_maps_give_the_output(network, x)
    assert look(network, x[0], (30, 30))[0].maps.shape == (3, 4, 4)


def test_windows_of_swin():
    """Shifted ones too, whose masks hide what is not beside them."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=56, depths=(2, 1))
    network, x = random_(swin), torch.randn(2, 3, 56, 56)
    assert_maps_give_the_output(network, x)
    assert look(network, x[0], (3, 3))[0].reason == "it sees 4 windows of the image, each by itself"
    with pytest.raises(ValueError, match="windows"):
        statistics(network, x, "layers.0.blocks.0.attn")
    with pytest.raises(ValueError, match="windows"):
        ablations(network, "layers.0.blocks.1.attn", x)


class Encoder(nn.Module):
    """A sequence through torch's own layers."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.mask = None

    def forward(self, x):
        t = self.embed(x).flatten(2).transpose(1, 2)
        t = t if self.attention.batch_first else t.transpose(0, 1)
        return self.attention(t, t, t, need_weights=False, attn_mask=self.mask)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "float", "of heads"])
def test_of_torch(batch_first, mask):
    network = random_(Encoder(batch_first=batch_first, bias=mask != "float"))
    hidden = torch.ones(6, 6).triu(1).bool()
    network.mask = {"bool": hidden, "float": torch.randn(6, 6), "of heads": torch.randn(4, 6, 6)}.get(mask)
    assert_maps_give_the_output(network, torch.randn(2, 3, 8, 12))
    if mask == "bool":
        (block, tokens, _), *_ = blocks_with_inputs(adapted(network), torch.randn(2, 3, 8, 12))
        assert bool((block.attention(tokens)[..., hidden] == 0).all())


def test_of_torchvision_and_of_torch_s_encoder():
    vit = torchvision.models.vision_transformer.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5)
    assert_maps_give_the_output(random_(vit), torch.randn(2, 3, 32, 32))
    layer = random_(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    twin, x = adapted(nn.Sequential(layer)), torch.randn(2, 5, 8)
    ((block, tokens, y),) = blocks_with_inputs(twin, x)
    again = block.finish(tokens, block.attention(tokens) @ block.values(tokens))
    assert torch.allclose(again, y, atol=1e-6)


def test_attention_to_another_sequence_says_so():
    decoder = random_(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True))
    twin = adapted(decoder)
    with torch.no_grad():
        twin(torch.randn(2, 5, 8), torch.randn(2, 7, 8))
    assert twin.self_attn.block.wrong == ""
    assert "from one sequence to another" in twin.multihead_attn.block.wrong


@pytest.mark.parametrize("name", ["ViT", "Segformer", "DINOv3ViT", "CLIPVision"])
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_of_transformers(name, how):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if name != "Segformer":
        if not hasattr(transformers, f"{name}Model"):
            pytest.skip("this version of transformers has no such network")
        config = getattr(transformers, f"{name}Config")(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
        )
    else:
        config = transformers.SegformerConfig(
            hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], sr_ratios=[4, 2, 1, 1]
        )
    config._attn_implementation = how
    network = random_(getattr(transformers, f"{name}Model")(config))
    if not any(hasattr(module, "q_proj") for module in network.modules()):
        pytest.skip("this version of transformers has other layers")
    assert_maps_give_the_output(network, torch.randn(2, 3, 32, 32))
    looks = look(network, torch.randn(3, 32, 32), (9, 20))
    assert [one.maps is not None for one in looks] == [True] * len(looks)
    if name == "Segformer":
        assert (looks[0].size, looks[0].maps.shape) == ((8, 8), (1, 2, 2))


class OfMaps(nn.Module):
    """Looks like attention with projections, and sees maps (B, H, W, C); or gives half of its tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.num_heads, self.scale, self.tokens = 2, 0.5, tokens
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        y = self.proj(self.qkv(x)[..., :8])
        return y[:, ::2] if self.tokens else y


class WithAttentionOfMaps(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.patches, self.attn = nn.Conv2d(3, 8, 4, 4), OfMaps(tokens)

    def forward(self, x):
        maps = self.patches(x).permute(0, 2, 3, 1)
        return self.attn(maps.flatten(1, 2) if self.attn.tokens else maps)


@pytest.mark.parametrize(("tokens", "said"), [(False, "it sees no sequences of tokens"), (True, "gives other tokens")])
def test_attention_that_is_not_of_tokens_to_tokens_says_so(tokens, said):
    """As that of SAM, MaxViT, VOLO and Hiera."""
    network = WithAttentionOfMaps(tokens).eval()
    (found,) = look(network, torch.rand(3, 16, 20), (3, 3))
    assert said in found.reason
    if not tokens:
        with pytest.raises(ValueError, match=f"attn: {said}"):
            statistics(network, torch.rand(2, 3, 16, 20))


def test_look_is_the_attention_computed_densely():
    """By hand from the weights of a plain ViT: softmax of q . k / sqrt(D), the grid behind the class token."""
    network, image = of_timm("vit_tiny_patch16_224", depth=2, img_size=(48, 64)), torch.randn(3, 48, 64)
    looks = look(network, image, (20, 40))
    assert [one.name for one in looks] == ["blocks.0.attn", "blocks.1.attn"]
    with torch.no_grad():
        x = network.patch_embed(image[None])
        x = network._pos_embed(x)
        t = network.blocks[0].norm1(x)
        q, k, _ = network.blocks[0].attn.qkv(t).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        maps = (q @ k.transpose(-1, -2) / 8).softmax(-1)[0].double()  # (3, 13, 13)
    found = looks[0]
    assert (found.query, found.size) == ((1, 2), (3, 4))
    row = maps[:, 1 + 1 * 4 + 2]
    assert torch.allclose(found.maps, row[:, 1:].view(3, 3, 4), atol=1e-6)
    assert torch.allclose(found.outside, row[:, 0], atol=1e-6)
    assert torch.allclose(found.mean, maps[:, 1:].mean(1)[:, 1:].view(3, 3, 4), atol=1e-6)
    assert "% on class and register tokens" in str(found)
    assert looks.picture().size[0] > 0


def test_the_network_is_left_alone():
    network = of_timm("vit_tiny_patch16_224", img_size=32).train()
    before, modules = copy.deepcopy(network.state_dict()), [type(m) for m in network.modules()]
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    look(network, torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1)), (3, 3))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    statistics(network, x)
    ablations(network, None, x)
    assert torch.equal(torch.rand(3), drawn)
    assert [type(m) for m in network.modules()] == modules
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert blocks_of(network) == []


def test_ablations_are_of_the_branch():
    """Off: nothing is added to the stream; the module's own map: nothing changes; the mean map: what a loop gives."""
    network, x = of_timm("vit_tiny_patch16_224", img_size=32), torch.randn(3, 3, 32, 32)
    kept = {}

    def judge(kind):
        return lambda output, labels, numbers: kept.setdefault(kind, output)

    for kind in ("full", "off", "mean", "constant"):
        ablations(network, None, x, kinds=(kind,), judge=judge(kind), training=x)
    with torch.no_grad():
        assert torch.equal(kept["full"], network(x))
        attn, stream = network.blocks[0].attn, {}
        hook = attn.register_forward_hook(lambda _, args, y: stream.update(x=args[0], y=y))
        network(x)
        hook.remove()
        q, k, v = attn.qkv(stream["x"]).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        mean = (q @ k.transpose(-1, -2) / 8).softmax(-1).mean(-2, keepdim=True) @ v
        of_mean = attn.proj(mean.transpose(1, 2).flatten(2)).expand_as(stream["y"])
        for kind, y in {
            "off": torch.zeros_like(stream["y"]),
            "mean": of_mean,
            "constant": stream["y"].mean((0, 1)).expand_as(stream["y"]),
        }.items():
            hook = attn.register_forward_hook(lambda *_, y=y: y)
            assert torch.allclose(kept[kind], network(x), atol=1e-4 * float(kept[kind].abs().max()))
            assert not torch.allclose(kept[kind], kept["full"], atol=1e-2 * float(kept[kind].abs().max()))
            hook.remove()


def test_statistics_are_of_the_branch():
    network, x = of_timm("vit_tiny_patch16_224", img_size=32), torch.randn(3, 3, 32, 32)
    found = statistics(network, x)
    stream = {}
    hook = network.blocks[0].attn.register_forward_hook(lambda _, args, y: stream.update(x=args[0], y=y))
    with torch.no_grad():
        network(x)
    hook.remove()
    want = stream["y"].flatten(1).norm(dim=1) / stream["x"].flatten(1).norm(dim=1)
    assert torch.allclose(found["contribution"].plain[:, 0], want.double(), rtol=1e-4)
    assert not found["unary_share"].plain.isnan().any()
    assert found["distance"].reason == "its 5 keys form no grid"


def test_blocks_of_ours_go_first():
    network = of_timm("vit_tiny_patch16_224", depth=2, img_size=32)
    insert(network, "nonlocal", at="blocks.0", example=torch.randn(1, 3, 32, 32))
    assert adapted(network) is network
    assert [one.block for one in look(network, torch.randn(3, 32, 32), (3, 3))] == ["nonlocal"]


def test_other_mathematics_says_so_in_the_place_of_maps():
    network = random_(timm.create_model("cait_xxs24_224", num_classes=5, img_size=64, depth=1))
    (found, *_) = look(network, torch.randn(3, 64, 64), (3, 3))
    assert found.reason == "its output is not what its queries, keys and values give"
    with pytest.raises(ValueError, match="its output is not what"):
        statistics(network, torch.randn(2, 3, 64, 64))


def test_half_precision():
    network = of_timm("vit_tiny_patch16_224", img_size=32).bfloat16()
    (found,) = look(network, torch.randn(3, 32, 32).bfloat16(), (3, 3))
    assert found.reason == ""
    assert isinstance(adapted(network).blocks[0].attn.block, TokenAttention)
    assert F.relu(found.maps).sum() > 0


def test_maps_of_a_query_for_a_page():
    """The two terms, cut from the tokens as the map itself is: together they are the query's map."""
    from lookfar.diagnostics.seeing import see
    from lookfar.insight.pictures import maps_of

    (seen,) = see(of_timm("vit_tiny_patch16_224", img_size=(32, 48)), torch.randn(3, 32, 48))
    found = maps_of(seen, (20, 40))
    assert {name: maps.shape for name, maps in found.items()} == dict.fromkeys(found, (3, 2, 3))
    assert list(found) == ["map of the query", "mean of all queries", "pairwise alone", "unary alone"]
    product = found["pairwise alone"] * found["unary alone"]
    product /= product.sum((1, 2), keepdims=True)
    own = found["map of the query"] / found["map of the query"].sum((1, 2), keepdims=True)
    assert abs(product - own).max() < 1e-5
