"""Blocks of ours beside what one would pick instead: mmcv's, mmsegmentation's and timm's modules, plain PyTorch.

Each pair is the same function: the peer's weights, loaded into ours, give the same output and the same gradient. Peers
are imported where they are built, so that each can be missing.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import ops
from lookfar.blocks import create_block, parse_block
from lookfar.weights import load

TESTS = Path(__file__).parent.parent / "tests"
PACKAGES = ("mmcv", "mmseg", "timm")


# why ours loses, where it does: by reading both, not by measurement
SMALL = (
    "On a small map nearly all time is the same products, as fast one by one; the rest is Python, with cold caches. "
    "Tried: projections as products, tokens that are views of a map, of which none is copied."
)
HALF = (
    "In bfloat16 it is the same for nearly all: logits are products of float32 numbers here, or torch's fused kernel's "
    "where widths are equal, which take twice the time, and softmax and sums over tiles are float32; there all is "
    "rounded to bfloat16. Tried: logits as a product in bfloat16 and another one of what it lost, which take as long "
    "as one in float32; rounded logits where all are small, which in networks that learn they do not stay."
)
WHY = {
    "mmcv NonLocal2d": SMALL,
    "timm NonLocalAttn": SMALL,
    "mmcv NonLocal2d, gaussian": SMALL,
    "mmcv NonLocal2d, dot product": SMALL,
    "mmcv GeneralizedAttention, 1111": "Weights are computed for some queries at a time, in training twice.",
    "mmcv GeneralizedAttention, 0010": "Not known: with more channels it is far ahead.",
    "mmcv NonLocal2d, sub-sampled": "Weights are computed again in the backward pass; in memory the gradients of the "
    "layers come in another order, the largest ones together.",
    "mmseg PAM": SMALL,
    "mmseg DisentangledNonLocal2d": SMALL,
    "mmcv CrissCrossAttention": "The same convolutions, whose maps are then copied into lines.",
    "mmseg CAM": "The same products, in training one less.",
    "mmcv ContextBlock": "The same reads of the map; ours checks its input, in Python with cold caches.",
    "timm SEModule": "The same reads of the map; ours checks its input, some microseconds.",
    "timm CbamModule": "The same reads of the map; the descriptors are stacked, some microseconds.",
    "mmseg PPM": "Most is the same convolutions, resizing and concatenation; tried: the means over all bins at once.",
    "plain PyTorch": "The same products; ours looks at shapes, precision and the number of weights first, in Python.",
    "torch SDPA": "The definition, where weights are few, beside a fused kernel, which needs fewer calls.",
    "mmseg EMAHead, inside": "The same products; its ReLUs work in place.",
    "mmcv NonLocal3d": SMALL,
    "mmcv NonLocal3d, sub-sampled": SMALL,
    "mmseg ISAHead, inside": "Its ReLUs work in place; tried: each map is let go once it is cut into blocks.",
}


@dataclass(frozen=True)
class Pair:
    """A block of ours and its peer.

    Attributes:
        ours: As written on the command line.
        peer: What it is compared with.
        build: Makes the peer for a number of channels.
        options: Options of ours that go with the channels.
        translate: Makes our state dict of the peer's, where the block does not know its names.
        weights: How many matrices of N x N weights the peer holds for a map.
        dims: Axes of the map.
    """

    ours: str
    peer: str
    build: Callable[[int], nn.Module]
    options: Callable[[int], dict[str, Any]] = lambda channels: {}
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state
    weights: float = 0
    dims: int = 2

    @property
    def missing(self) -> str:
        """The package that the peer is from, where it is not installed."""
        package = self.peer.split()[0]
        return package if package in PACKAGES and importlib.util.find_spec(package) is None else ""

    def create(self, channels: int) -> tuple[nn.Module, nn.Module]:
        """Ours and the peer, in float32, with the same random weights."""
        torch.manual_seed(0)
        peer = self.build(channels)
        _draw(peer)
        if isinstance(peer, Op):
            return Op(OPS[self.ours.partition(",")[0]], peer.widths), peer
        name, options = parse_block(self.ours)
        ours = create_block(name, channels, **options, **self.options(channels))
        return load(ours, self.translate(peer.state_dict())), peer


def renamed(names: Mapping[str, str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A translation by the starts of names."""

    def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, value in state.items():
            start = next(n for n in names if key.startswith(n + "."))
            found[names[start] + key[len(start) :]] = value
        return found

    return translate


def _linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 1x1 convolutions of a perceptron as the linear layers that they are."""
    return {k: v.flatten(1) if k.endswith("weight") and v.ndim == 4 else v for k, v in state.items()}


def _se(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return _linear(renamed({"fc1": "reduce", "fc2": "expand"})(state))


def _cbam(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm has the mean first, the authors (and we) the largest value."""
    gates, spatial = ({k: v for k, v in state.items() if k.startswith(n)} for n in ("channel", "spatial"))
    gates = _linear(renamed({"channel.fc1": "reduce", "channel.fc2": "expand"})(gates))
    spatial = renamed({"spatial.conv.conv": "spatial", "spatial.conv.bn": "norm"})(spatial)
    return {**gates, **spatial, "spatial.weight": spatial["spatial.weight"].flip(1)}


def _draw(module: nn.Module) -> None:
    """Weights that keep the size of what passes; nothing is left at zero, where everything equals everything."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
            else:
                p.uniform_(0.2, 1.0)


def _mmseg() -> None:
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    from oracles.mmsegmentation import import_mmseg

    import_mmseg()


def _mmcv(name: str, *args: object, **options: object) -> Callable[[int], nn.Module]:
    def build(channels: int) -> nn.Module:
        _mmseg()
        from mmcv import cnn
        from mmcv.cnn.bricks import GeneralizedAttention
        from mmcv.ops import CrissCrossAttention

        cls = {"GeneralizedAttention": GeneralizedAttention, "CrissCrossAttention": CrissCrossAttention}.get(name)
        return (cls or getattr(cnn, name))(channels, *args, **options)

    return build


def _position_attention(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.da_head import PAM

    return PAM(channels, max(channels // 8, 1))


def _channel_attention(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.da_head import CAM

    return CAM()


def _disentangled(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.dnl_head import DisentangledNonLocal2d

    return DisentangledNonLocal2d(channels, temperature=0.05)


def _interlaced(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.isa_head import ISAHead

    class Inside(ISAHead):
        """The head without its first and its last convolution."""

        def _transform_inputs(self, inputs: Tensor) -> Tensor:
            return inputs

    head = Inside(
        channels // 2, in_channels=channels, channels=channels, num_classes=2, norm_cfg={"type": "BN"}, dropout_ratio=0
    )
    head.in_conv = head.conv_seg = nn.Identity()
    return head


def _expectation_maximization(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.ema_head import EMAHead

    class Inside(nn.Module):
        """What stands between the head's first convolution and its bottleneck."""

        def __init__(self) -> None:
            super().__init__()
            head = EMAHead(
                channels, 64, 3, in_channels=8, channels=8, num_classes=2, norm_cfg={"type": "BN", "momentum": 0.01}
            )
            self.ema_module, self.ema_mid_conv, self.ema_out_conv = (
                head.ema_module,
                head.ema_mid_conv,
                head.ema_out_conv,
            )

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.ema_module(self.ema_mid_conv(x)), inplace=True)
            return F.relu(x + self.ema_out_conv(y), inplace=True)

    return Inside()


def _hamburger(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.ham_head import Hamburger

    module = Hamburger(channels, {}, norm_cfg={"type": "BN"})
    # its own asks mmengine for a device, which is another one where there are several
    own = module.ham._build_bases
    module.ham._build_bases = lambda *args, device: own(*args, device=device)
    return module


def _pyramid_pooling(channels: int) -> nn.Module:
    _mmseg()
    from mmseg.models.decode_heads.psp_head import PPM

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.psp_modules = PPM(
                (1, 2, 3, 6),
                channels,
                channels // 4,
                conv_cfg=None,
                norm_cfg={"type": "BN"},
                act_cfg={"type": "ReLU"},
                align_corners=False,
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, *self.psp_modules(x)], 1)

    return Joined()


def _timm(module: str, name: str, **options: Any) -> Callable[[int], nn.Module]:
    def build(channels: int) -> nn.Module:
        return getattr(importlib.import_module(f"timm.layers.{module}"), name)(channels, **options)

    return build


class External(nn.Module):
    """External attention as its authors wrote it, between its two convolutions."""

    def __init__(self, channels: int, slots: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.linear_0 = nn.Conv1d(channels, slots, 1, bias=False)
        self.linear_1 = nn.Conv1d(slots, channels, 1, bias=False)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        weights = self.linear_0(y.flatten(2)).softmax(-1)
        weights = weights / (1e-9 + weights.sum(1, keepdim=True))
        y = self.linear_1(weights).unflatten(2, x.shape[2:])
        return F.relu(self.conv2(y) + x)


class Op(nn.Module):
    """An op on parts of the channels of a map: queries and keys of the first widths, values of the last."""

    def __init__(self, f: Callable[..., Tensor], widths: tuple[int, int]) -> None:
        super().__init__()
        self.f, self.widths = f, widths

    def forward(self, x: Tensor) -> Tensor:
        D, E = self.widths
        t = x.flatten(2).transpose(1, 2)[:, None]
        q, k, v = (part.contiguous() for part in (t[..., :D], t[..., D : 2 * D], t[..., -E:]))
        return self.f(q, k, v)


def _op(f: Callable[..., Tensor], width: Callable[[int], tuple[int, int]]) -> Callable[[int], nn.Module]:
    def build(channels: int) -> nn.Module:
        return Op(f, width(channels))

    return build


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As a user writes it; torch builds all weights where the widths differ."""
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def plain_dot(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / k.shape[-2]) @ v


def plain_concatenation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q + k.transpose(-2, -1)).relu() / k.shape[-2]) @ v


def concatenation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.concatenation(q.squeeze(-1), k.squeeze(-1), v)


OPS: dict[str, Callable[..., Tensor]] = {
    "ops.embedded_gaussian": ops.embedded_gaussian,
    "ops.dot_product": ops.dot_product,
    "ops.concatenation": concatenation,
}


def narrow(channels: int) -> tuple[int, int]:
    return max(channels // 8, 1), channels


def equal(channels: int) -> tuple[int, int]:
    return channels // 2, channels // 2


def single(channels: int) -> tuple[int, int]:
    return 1, channels // 2


PAIRS = [
    Pair("nonlocal(norm_layer=None)", "mmcv NonLocal2d", _mmcv("NonLocal2d"), weights=1),
    Pair("nonlocal(norm_layer=None, dims=3)", "mmcv NonLocal3d", _mmcv("NonLocal3d"), weights=1, dims=3),
    Pair(
        "nonlocal(subsample=2, norm_layer=None, dims=3)",
        "mmcv NonLocal3d, sub-sampled",
        _mmcv("NonLocal3d", sub_sample=True),
        weights=0.25,
        dims=3,
    ),
    Pair(
        "nonlocal(reduction=8)",
        "timm NonLocalAttn",
        _timm("non_local_attn", "NonLocalAttn", rd_divisor=1),
        lambda channels: {"scale": channels**-0.5},
        renamed({"t": "query", "p": "key", "g": "value", "z": "project", "norm": "norm"}),
        weights=1,
    ),
    Pair(
        "nonlocal(mode=gaussian, norm_layer=None)",
        "mmcv NonLocal2d, gaussian",
        _mmcv("NonLocal2d", mode="gaussian"),
        weights=1,
    ),
    Pair(
        "nonlocal(mode=dot_product, norm_layer=None)",
        "mmcv NonLocal2d, dot product",
        _mmcv("NonLocal2d", mode="dot_product"),
        weights=1,
    ),
    Pair(
        "nonlocal(subsample=2, norm_layer=None)",
        "mmcv NonLocal2d, sub-sampled",
        _mmcv("NonLocal2d", sub_sample=True),
        weights=0.25,
    ),
    Pair("position_attention", "mmseg PAM", _position_attention, weights=1),
    Pair("channel_attention", "mmseg CAM", _channel_attention),
    Pair("disentangled_nonlocal(variant=mmseg)", "mmseg DisentangledNonLocal2d", _disentangled, weights=1),
    Pair("global_context", "mmcv ContextBlock", _mmcv("ContextBlock", 1 / 16)),
    Pair("criss_cross(recurrence=1)", "mmcv CrissCrossAttention", _mmcv("CrissCrossAttention")),
    *(
        Pair(
            f"generalized_attention(terms={terms})",
            f"mmcv GeneralizedAttention, {terms}",
            _mmcv("GeneralizedAttention", num_heads=8, kv_stride=2, attention_type=terms),
            weights=weights,
        )
        for terms, weights in (("1111", 2.0), ("0010", 0.0))
    ),
    Pair("interlaced(value_bias=True, form=published)", "mmseg ISAHead, inside", _interlaced),
    Pair("pyramid_pooling(form=published, align_corners=False)", "mmseg PPM", _pyramid_pooling),
    Pair("squeeze_excitation", "timm SEModule", _timm("squeeze_excite", "SEModule", rd_divisor=1), translate=_se),
    Pair("cbam", "timm CbamModule", _timm("cbam", "CbamModule", mlp_bias=True), translate=_cbam),
    Pair("expectation_maximization(variant=mmseg)", "mmseg EMAHead, inside", _expectation_maximization),
    Pair("hamburger(gradient=full, random_bases=always)", "mmseg Hamburger", _hamburger),
    Pair("external_attention", "the authors' form", External),
    Pair("ops.embedded_gaussian, D = C / 8, E = C", "plain PyTorch", _op(plain, narrow), weights=1),
    Pair("ops.embedded_gaussian, D = C / 8, E = C", "torch SDPA", _op(fused, narrow), weights=1),
    Pair("ops.embedded_gaussian, D = E = C / 2", "plain PyTorch", _op(plain, equal), weights=1),
    Pair("ops.embedded_gaussian, D = E = C / 2", "torch SDPA", _op(fused, equal)),
    Pair("ops.dot_product, D = E = C / 2", "plain PyTorch", _op(plain_dot, equal), weights=1),
    Pair("ops.concatenation, E = C / 2", "plain PyTorch", _op(plain_concatenation, single), weights=1),
]
