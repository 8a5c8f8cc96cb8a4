"""ISA: attention among far positions of equal phase, then among the neighbours of a block; together all see all.

Traps: a map that the grid does not divide is padded on both sides, and the zeros take part: after their projections
they are keys like others.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Share
from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Form, Norm, Placement, activated, normed, projected, projection
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, after_mixing, value_width
from lookfar.ops._layout import from_blocks, to_blocks
from lookfar.ops.attention import Normalization

Pair = tuple[int, int]


class GroupAttention(PairwiseAttention):
    """Self-attention within groups of positions; projections act before the grouping, since they are pointwise."""

    def __init__(
        self,
        channels: int,
        inner: int,
        value_channels: int,
        out_channels: int,
        factor: Pair,
        *,
        far: bool,
        switches: Switches,
        norm_layer: Norm | None,
        value_bias: bool,
        **dd: Any,
    ) -> None:
        layers: dict[str, Any] = {"norm_layer": norm_layer, "act_layer": nn.ReLU, **dd}
        super().__init__(
            switches,
            lambda: nn.Sequential(ConvNorm(channels, inner, **layers), ConvNorm(inner, inner, **layers)),
            partial(nn.Conv2d, channels, value_channels, 1, bias=value_bias, **dd),
        )
        self.factor, self.far = factor, far
        self.scale = (inner // switches.heads) ** -0.5
        self.project = ConvNorm(value_channels, out_channels, **layers)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The map from the weighted sums ``(B h groups, 1, P, E)``."""
        y = from_blocks(mixed, x.shape[2:], self.factor, self.heads, far=self.far)
        del mixed  # and y gives way to what is made of it: no map is held longer than it is needed
        y = y if self.normalization == "none" else y.to(x.dtype)
        project = cast(ConvNorm, self.project)
        y = after_mixing(project.conv, y, self.normalization)
        y = normed(project.norm, y)
        return activated(project.act, y)

    def _split(self, t: Tensor) -> Tensor:
        return to_blocks(t, self.factor, self.heads, far=self.far)


class InterlacedAttention(nn.Module):
    """The two attentions for one grid: ``(B, C, H, W) -> (B, O, H, W)``."""

    def __init__(self, channels: int, inner: int, values: int, out: int, factor: Pair, **options: Any) -> None:
        super().__init__()
        self.factor = factor
        self.far = GroupAttention(channels, inner, values, out, factor, far=True, **options)
        self.near = GroupAttention(out, inner, values, out, factor, far=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        (H, W), (top, left) = x.shape[2:], self._margins(x)
        y = self.near(self.far(self._pad(x)))
        return y[:, :, top : top + H, left : left + W]

    def far_weights(self, x: Tensor) -> Tensor:
        """``(B, h phases, P, P)``."""
        weights = self.far.attention(self._pad(x))
        return weights.unflatten(0, (x.shape[0], self.far.heads * math.prod(self.factor))).flatten(1, 2)

    def _margins(self, x: Tensor) -> Pair:
        dh, dw = self.factor
        return (-x.shape[2] % dh) // 2, (-x.shape[3] % dw) // 2

    def _pad(self, x: Tensor) -> Tensor:
        (dh, dw), (top, left) = self.factor, self._margins(x)
        return F.pad(x, (left, -x.shape[3] % dw - left, top, -x.shape[2] % dh - top))


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
    formula=(r"y = x + P\,\text{ReLU}(\text{norm}(W\,[\,x,\; \text{near}(\text{far}(x))\,]))",),
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
        "The original replaces its input; here its result is added to the input through a 1x1 convolution that starts "
        "at zero."
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
        down_factor: (dh, dw), the size of a block and the step of a phase; a list of them for several grids.
        inner_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of values; ``channels`` by default.
        out_channels: Channels of the published module; ``channels`` by default.
        value_bias: Bias of the values' convolutions.
        share_query_key: One projection for the queries and keys of an attention.
        projections: ``inside`` has queries, keys and values; ``around`` has one, the queries' two convolutions, whose
            result is all three.
        norm_layer: After every convolution but the values'; None for none.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown choice, heads that do not divide the widths, choices that exclude each other.

    Example:
        >>> block = Interlaced(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
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
        heads: int = 1,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        dropout: Share = 0.0,
        norm_layer: Norm | None = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        single = isinstance(down_factor[0], int)
        factors: list[Pair] = [tuple(f) for f in ([down_factor] if single else down_factor)]  # type: ignore[misc]
        inner, out = inner_channels or max(channels // 2, 1), out_channels or channels
        switches = Switches(heads, normalization, share_query_key, projections)
        values = value_width(value_channels, channels, inner, switches)
        layers: dict[str, Any] = {"norm_layer": norm_layer, **dd}
        self.contexts = nn.ModuleList(
            InterlacedAttention(channels, inner, values, out, f, switches=switches, value_bias=value_bias, **layers)
            for f in factors
        )
        several = len(factors) > 1
        width = out * len(factors) if several else channels
        self.widen = ConvNorm(channels, width, act_layer=nn.ReLU, **layers) if several else None
        self.fuse = ConvNorm(width + out * len(factors), out, act_layer=nn.ReLU, **layers)
        self.dropout = nn.Dropout2d(dropout)
        self.project = projection(form, out, channels, zero_init=zero_init, **dd)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """mmsegmentation, recognised by its biases, fuses the context, then x; the authors x, then the context."""
        weight = state.get("fuse.conv.weight")
        if weight is None or "contexts.0.far.value.bias" not in state:
            return state
        context, own = weight.split(weight.shape[1] // 2, 1)
        return {**state, "fuse.conv.weight": torch.cat([own, context], 1)}

    def forward(self, x: Tensor) -> Tensor:
        contexts = [context(x) for context in self.contexts]
        own = x if self.widen is None else self.widen(x)
        y = self.dropout(self.fuse(torch.cat([own, *contexts], 1)))
        return projected(self, x, y)

    def maps(self, x: Tensor) -> Tensor:
        """Weights of the first grid's far attention, ``(B, h dh dw, P, P)``: among the positions of each phase."""
        return self.contexts[0].far_weights(x)  # type: ignore[operator]
