"""ISA: attention among far positions of equal phase, then among the neighbours of a block; together all see all.

Traps: a map that the grid does not divide is padded on both sides, and the zeros take part: after their projections
they are keys like others.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Norm, zero_
from lookfar.ops._layout import match_format
from lookfar.ops.embedded_gaussian import embedded_gaussian, embedded_gaussian_weights

Pair = tuple[int, int]


class GroupAttention(nn.Module):
    """Self-attention within groups of positions; projections act before the grouping, since they are pointwise."""

    def __init__(
        self,
        channels: int,
        inner: int,
        value_channels: int,
        out_channels: int,
        norm: Norm | None,
        value_bias: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()

        def projection() -> nn.Sequential:
            first = ConvNorm(channels, inner, norm_layer=norm, act_layer=nn.ReLU, **dd)
            return nn.Sequential(first, ConvNorm(inner, inner, norm_layer=norm, act_layer=nn.ReLU, **dd))

        self.query, self.key = projection(), projection()
        self.value = nn.Conv2d(channels, value_channels, 1, bias=value_bias, **dd)
        self.project = ConvNorm(value_channels, out_channels, norm_layer=norm, act_layer=nn.ReLU, **dd)

    def forward(self, x: Tensor, factor: Pair, far: bool) -> Tensor:
        q, k, v = (_group(t, factor, far) for t in (self.query(x), self.key(x), self.value(x)))
        y = embedded_gaussian(q, k, v, scale=q.shape[-1] ** -0.5)
        return self.project(_ungroup(y, x.shape[2:], factor, far).to(x.dtype))

    def weights(self, x: Tensor, factor: Pair, far: bool) -> Tensor:
        """``(B groups, 1, P, P)``."""
        q, k = _group(self.query(x), factor, far), _group(self.key(x), factor, far)
        return embedded_gaussian_weights(q, k, scale=q.shape[-1] ** -0.5)


class InterlacedAttention(nn.Module):
    """The two attentions for one grid: ``(B, C, H, W) -> (B, O, H, W)``."""

    def __init__(
        self,
        channels: int,
        inner: int,
        value_channels: int,
        out: int,
        factor: Pair,
        norm: Norm | None,
        value_bias: bool = False,
        **dd,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.far = GroupAttention(channels, inner, value_channels, out, norm, value_bias, **dd)
        self.near = GroupAttention(out, inner, value_channels, out, norm, value_bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        (H, W), (top, left) = x.shape[2:], self._margins(x)
        y = self.near(self.far(self._pad(x), self.factor, far=True), self.factor, far=False)
        return y[:, :, top : top + H, left : left + W]

    def far_weights(self, x: Tensor) -> Tensor:
        """``(B, phases, P, P)``."""
        weights = self.far.weights(self._pad(x), self.factor, far=True)
        return weights.unflatten(0, (x.shape[0], math.prod(self.factor))).flatten(1, 2)

    def _margins(self, x: Tensor) -> Pair:
        dh, dw = self.factor
        return (-x.shape[2] % dh) // 2, (-x.shape[3] % dw) // 2

    def _pad(self, x: Tensor) -> Tensor:
        (dh, dw), (top, left) = self.factor, self._margins(x)
        return F.pad(x, (left, -x.shape[3] % dw - left, top, -x.shape[2] % dh - top))


def _group(x: Tensor, factor: Pair, far: bool) -> Tensor:
    """``(B, C, a dh, b dw) -> (B groups, 1, P, C)``: groups of equal phase (far) or of one block."""
    B, C, H, W = x.shape
    dh, dw = factor
    x = x.reshape(B, C, H // dh, dh, W // dw, dw)
    groups, inside = ((0, 3, 5), (2, 4)) if far else ((0, 2, 4), (3, 5))
    return x.permute(*groups, *inside, 1).flatten(0, 2).flatten(1, 2)[:, None].contiguous()


def _ungroup(t: Tensor, size: Sequence[int], factor: Pair, far: bool) -> Tensor:
    (H, W), (dh, dw) = size, factor
    if far:
        t = t[:, 0].unflatten(1, (H // dh, W // dw)).unflatten(0, (-1, dh, dw))  # (B, dh, dw, a, b, C)
        t = t.permute(0, 5, 3, 1, 4, 2)
    else:
        t = t[:, 0].unflatten(1, (dh, dw)).unflatten(0, (-1, H // dh, W // dw))  # (B, a, b, dh, dw, C)
        t = t.permute(0, 5, 1, 3, 2, 4)
    return t.reshape(t.shape[0], t.shape[1], H, W)


# the layers of one attention in mmsegmentation
_MMSEG = {
    r"(key|query)_project\.(\d)\.conv": r"\1.\2.conv",
    r"(key|query)_project\.(\d)\.(bn|gn|in)": r"\1.\2.norm",
    "value_project": "value",
    r"output_project\.conv": "project.conv",
    r"output_project\.(bn|gn|in)": "project.norm",
}


@block(
    "interlaced",
    title="Interlaced sparse self-attention (ISA)",
    paper="Interlaced Sparse Self-Attention for Semantic Segmentation (2019; OCNet, IJCV 2021)",
    arxiv="1907.12273",
    family="sparse",
    complexity="N (N / P + P) C, P positions a block",
    memory="N C",
    verified=(
        "openseg-group/openseg.pytorch@aefc7551:lib/models/modules/isa_block.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/isa_head.py (SelfAttentionBlock)",
    ),
    attends="maps",
    aliases=("isa", "isanet"),
    differences=(
        "The original replaces its input; here it is added to it through a 1x1 convolution that starts at zero."
        ' form="published" gives the module alone.',
        "The authors' values have no bias (the default), mmsegmentation's have one (value_bias=True).",
    ),
    author_keys={
        r"stages\.(\d+)\.long_range_sa\.f_(key|query)\.0": r"contexts.\1.far.\2.0.conv",
        r"stages\.(\d+)\.long_range_sa\.f_(key|query)\.1\.0": r"contexts.\1.far.\2.0.norm",
        r"stages\.(\d+)\.long_range_sa\.f_(key|query)\.2": r"contexts.\1.far.\2.1.conv",
        r"stages\.(\d+)\.long_range_sa\.f_(key|query)\.3\.0": r"contexts.\1.far.\2.1.norm",
        r"stages\.(\d+)\.long_range_sa\.f_value": r"contexts.\1.far.value",
        r"stages\.(\d+)\.long_range_sa\.W\.0": r"contexts.\1.far.project.conv",
        r"stages\.(\d+)\.long_range_sa\.W\.1\.0": r"contexts.\1.far.project.norm",
        r"stages\.(\d+)\.short_range_sa\.f_(key|query)\.0": r"contexts.\1.near.\2.0.conv",
        r"stages\.(\d+)\.short_range_sa\.f_(key|query)\.1\.0": r"contexts.\1.near.\2.0.norm",
        r"stages\.(\d+)\.short_range_sa\.f_(key|query)\.2": r"contexts.\1.near.\2.1.conv",
        r"stages\.(\d+)\.short_range_sa\.f_(key|query)\.3\.0": r"contexts.\1.near.\2.1.norm",
        r"stages\.(\d+)\.short_range_sa\.f_value": r"contexts.\1.near.value",
        r"stages\.(\d+)\.short_range_sa\.W\.0": r"contexts.\1.near.project.conv",
        r"stages\.(\d+)\.short_range_sa\.W\.1\.0": r"contexts.\1.near.project.norm",
        r"up_conv\.0": "widen.conv",
        r"up_conv\.1\.0": "widen.norm",
        r"conv_bn\.0": "fuse.conv",
        r"conv_bn\.1\.0": "fuse.norm",
        **{
            rf"{theirs}_relation\.{layer}": rf"contexts.0.{ours}.{place}"
            for theirs, ours in (("global", "far"), ("local", "near"))
            for layer, place in _MMSEG.items()
        },
        r"out_conv\.conv": "fuse.conv",
        r"out_conv\.(bn|gn|in)": "fuse.norm",
    },
)
class Interlaced(nn.Module):
    """Attention among positions of equal phase on a grid, then within its blocks: everything reaches everything.

    y = x + P ReLU(norm(W [x, near(far(x))]))

    Args:
        channels: Channels C of input and output.
        down_factor: (dh, dw), the size of a block and the step of a phase; a list of them for several grids.
        inner_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of values; ``channels`` by default.
        out_channels: Of the published module; ``channels`` by default.
        value_bias: Bias of the values' convolutions.
        dropout: Of the published module's last map, in training.
        norm_layer: After every convolution but the values'; None for none.
        form: ``"block"`` keeps the shape; ``"published"`` gives the module's ``(B, out_channels, H, W)``.
        zero_init: Start as the identity (P is zero).

    Shape: ``(B, C, H, W) -> (B, C, H, W)``
    """

    def __init__(
        self,
        channels: int,
        *,
        down_factor: Pair | Sequence[Pair] = (8, 8),
        inner_channels: int | None = None,
        value_channels: int | None = None,
        out_channels: int | None = None,
        value_bias: bool = False,
        dropout: float = 0.0,
        norm_layer: Norm | None = nn.BatchNorm2d,
        form: Literal["block", "published"] = "block",
        zero_init: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        single = isinstance(down_factor[0], int)
        factors: list[Pair] = [tuple(f) for f in ([down_factor] if single else down_factor)]  # type: ignore[misc]
        inner, out = inner_channels or max(channels // 2, 1), out_channels or channels
        values = value_channels or channels
        self.contexts = nn.ModuleList(
            InterlacedAttention(channels, inner, values, out, f, norm_layer, value_bias, **dd) for f in factors
        )
        width = channels if len(factors) == 1 else out * len(factors)
        self.widen = (
            None if len(factors) == 1 else ConvNorm(channels, width, norm_layer=norm_layer, act_layer=nn.ReLU, **dd)
        )
        self.fuse = ConvNorm(width + out * len(factors), out, norm_layer=norm_layer, act_layer=nn.ReLU, **dd)
        self.dropout = nn.Dropout2d(dropout)
        self.project = nn.Conv2d(out, channels, 1, **dd) if form == "block" else None
        if self.project is not None and zero_init:
            zero_(self.project)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """mmsegmentation, told by its biases, fuses the context and then x, the authors x and then the context."""
        weight = state.get("fuse.conv.weight")
        if weight is None or "contexts.0.far.value.bias" not in state:
            return state
        context, own = weight.split(weight.shape[1] // 2, 1)
        return {**state, "fuse.conv.weight": torch.cat([own, context], 1)}

    def forward(self, x: Tensor) -> Tensor:
        contexts = [context(x) for context in self.contexts]
        own = x if self.widen is None else self.widen(x)
        y = self.dropout(self.fuse(torch.cat([own, *contexts], 1)))
        return match_format(y if self.project is None else x + self.project(y), x)

    def maps(self, x: Tensor) -> Tensor:
        """Weights of the first grid's far attention, ``(B, dh dw, P, P)``: among the positions of each phase."""
        return self.contexts[0].far_weights(x)  # type: ignore[operator]
