"""AACN: a convolution that gives part of its output channels to self-attention over the whole map.

Traps: the scale is applied to the queries, so to the relative logits as well; the convolution's channels come first;
the tables of relative positions belong to one map size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Natural, Odd, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.blocks._projections import Projections, Switches, after_mixing
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._precision import widened
from lookfar.ops.attention import Normalization, attention, attention_weights
from lookfar.ops.relative_attention import WHY_NOT_DOUBLE, relative_attention, relative_attention_weights


@block(
    "attention_augmented",
    title="Attention augmented convolution (AACN)",
    paper="Attention Augmented Convolutional Networks (ICCV 2019)",
    arxiv="1904.09925",
    formula=(
        r"y = [\,\text{conv}_{k \times k}(x),\; W_o\,o\,]",
        r"o_i = \sum_j \text{softmax}_j\left(\frac{q_i^\top (k_j + \text{row}_{j_y - i_y} + \text{column}_{j_x"
        r" - i_x})}{\sqrt{d}}\right) v_j",
    ),
    family="pairwise",
    kind="layer",
    complexity="N^2 (D + E) + N C O k^2",
    memory="N (D + E + O)",
    verified=("equations, float64 loop (the order of operations of the paper's appendix)",),
    attends="weights",
    residual=False,
    aliases=("aacn", "aac", "attention_augmented_convolution"),
    differences=(
        "The paper's tables fit one map size; on others they are interpolated linearly, which is ours.",
        "The appendix gives random_normal_initializer(d^-0.5), whose first argument is the mean; here it is the "
        "standard deviation, as meant.",
        "The paper pools and enlarges around the attention on large maps only: pool=2. With a stride the attention "
        "sees the map average-pooled by it, before any such pooling.",
    ),
)
class AttentionAugmented(nn.Module):
    """Replaces a convolution: [conv_kxk(x), W_o attention(x)] side by side.

    o_i = sum_j softmax_j(d^-1/2 q_i . (k_j + row_{jy - iy} + column_{jx - ix})) v_j

    Args:
        channels: Channels C of the input.
        out_channels: Channels O of the output, E of which are the attention's; as many as the input has when None.
        kernel_size: Odd extent of the convolution.
        stride: Stride of the convolution; the attention sees the map average-pooled by it.
        key_channels: Width D of queries and keys, all heads together; a fifth of the output, at least 20 a head, when
            None.
        value_channels: Width E of the values, all heads together; a tenth of the output, at least 1 a head, when None.
            0 leaves the convolution alone, O the attention alone.
        heads: Groups of channels that attend by themselves; None is the published 8, or one a channel where there are
            fewer.
        normalization: Normalisation of the similarities: ``softmax`` as published, ``l1``, ``sigmoid``, ``none``, and
            without ``relative`` also ``double``.
        relative: Embed relative positions, one table for all heads.
        size: Height and width of the map that the layer gives, for which the tables are made; interpolated elsewhere.
        pool: Stride of a 3x3 average pool before the attention, whose output is enlarged again, bilinearly; the paper
            has 2 on maps of 28 x 28, and 1, no pooling, on smaller ones. Exported with it, a program serves maps that
            keep two positions a side at least, and refuses others.

    Shape: ``(B, C, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))``

    Raises:
        ValueError: ``heads`` does not divide ``key_channels`` and ``value_channels``, more values than output channels,
            an even kernel, a size that is none, an unknown choice, choices that exclude each other.

    Example:
        >>> block = AttentionAugmented(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: Odd = 3,
        stride: int = 1,
        key_channels: int | None = None,
        value_channels: Natural | None = None,
        heads: int | None = None,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        relative: bool = True,
        size: int | tuple[int, int] = 14,
        pool: int = 1,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        out = out_channels or channels
        heads = min(8, out) if heads is None else heads
        keys = heads * max(round(0.2 * out / heads), 20) if key_channels is None else key_channels
        values = heads * max(round(0.1 * out / heads), 1) if value_channels is None else value_channels
        divides("heads", heads, key_channels=keys, value_channels=values)
        if values > out:
            raise ValueError(f"value_channels are a part of {out} out_channels, got {values}; fewer heads need fewer")
        if relative and normalization == "double":
            raise ValueError(f"normalization='double' has no form with relative=True: {WHY_NOT_DOUBLE}")
        inside = Switches(heads, normalization, share_query_key, projections).inside
        self.split = (keys,) if not inside else (keys, values) if share_query_key else (keys, keys, values)
        self.heads, self.stride, self.pool = heads, stride, pool
        self.normalization: Any = normalization
        self.conv = self.qkv = self.attn_out = self.key_rel_w = self.key_rel_h = None
        self.attends = "weights" if values else "none"
        if values < out:
            self.conv = nn.Conv2d(channels, out - values, kernel_size, stride, kernel_size // 2, **dd)
        if values:
            self._add_attention(channels, values, size if relative else None, **dd)

    def _add_attention(self, channels: int, values: int, size: int | tuple[int, int] | None, **dd: Any) -> None:
        """One layer for queries, keys and values, one behind them, embeddings of the distances on a map of ``size``."""
        self.qkv = nn.Conv2d(channels, sum(self.split), 1, **dd)
        self.attn_out = nn.Conv2d(self.split[-1], values, 1, **dd)
        if size is not None:
            H, W = (-(-n // self.pool) for n in ((size, size) if isinstance(size, int) else size))
            d = self.split[0] // self.heads
            self.key_rel_w = nn.Parameter(torch.randn(2 * W - 1, d, **dd).mul_(d**-0.5))
            self.key_rel_h = nn.Parameter(torch.randn(2 * H - 1, d, **dd).mul_(d**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.qkv is None:
            return self.conv(x)  # type: ignore[misc]
        q, k, v = self._tokens(x)
        tables = self._tables(x)
        if tables is None:
            mixed = attention(q, k, v, normalization=self.normalization)
        else:
            mixed = relative_attention(q, k, v, *tables, size=self._grid(x), normalization=self.normalization)
        return self.finish(x, mixed)

    def key_grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid that keys and queries form on a map of ``size``."""
        given = [math.ceil(n / self.stride) for n in size]
        return tuple(math.ceil(n / self.pool) for n in given)

    query_grid = key_grid

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of flat positions ``(Q,)`` of the (pooled) map, of all when None."""
        q, k, _ = self._tokens(x)
        tables = self._tables(x)
        if tables is None:
            some = q if queries is None else q[..., queries, :]
            return attention_weights(some, k, normalization=self.normalization, all_queries=q)
        return relative_attention_weights(
            q, k, *tables, size=self._grid(x), queries=queries, normalization=self.normalization
        )

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, E/h)``."""
        return self._tokens(x)[2]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and the weighted sums ``(B, h, N, E/h)``."""
        attended = after_mixing(self.attn_out, to_map(mixed, self._pooled(x)), self.normalization)
        if self.pool > 1:
            attended = F.interpolate(attended, self._given(x), mode="bilinear", align_corners=False)
        return attended if self.conv is None else torch.cat([self.conv(x), attended], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        x = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        return x if self.pool == 1 else F.avg_pool2d(x, 3, self.pool, 1, count_include_pad=False)

    def _given(self, x: Tensor) -> tuple[int, int]:
        """Size of the output."""
        H, W = ((n + self.stride - 1) // self.stride for n in x.shape[2:])
        return H, W

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Size of the map that the attention sees."""
        H, W = ((n + self.pool - 1) // self.pool for n in self._given(x))
        return H, W

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.qkv is not None
        parts = [to_tokens(t, self.heads) for t in self.qkv(self._pooled(x)).split(self.split, 1)]
        q, k, v = parts[0], parts[(len(parts) - 1) // 2], parts[-1]
        scale = (self.split[0] // self.heads) ** -0.5
        return scale * q, k, widened(v) if self.normalization == "none" else v

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.key_rel_h is None or self.key_rel_w is None:
            return None
        H, W = self._grid(x)
        return _resized(self.key_rel_h, H), _resized(self.key_rel_w, W)


def _resized(table: Tensor, n: int) -> Tensor:
    """Embeddings ``(2m - 1, D)`` of the distances within m positions at those within n, ``(2n - 1, D)``."""
    m = (len(table) + 1) // 2
    distances = torch.arange(2 * n - 1, device=table.device) - (n - 1)
    # the same number of positions gives whole numbers and so the table itself
    at: Tensor = distances * (m - 1) / distances.max().clamp_min(1) + (m - 1)
    low = at.floor().long().clamp(0, 2 * m - 2)
    share = (at - low).to(table.dtype)[:, None]
    return (1 - share) * table[low] + share * table[(low + 1).clamp(max=2 * m - 2)]
