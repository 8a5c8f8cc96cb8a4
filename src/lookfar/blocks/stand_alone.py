"""SASA: attention to a window in place of every convolution, and a stem of attention inside blocks.

Traps: logits are not divided by sqrt(d); the row's embedding meets the first half of a head's channels, the column's
the second.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.blocks._projections import Projections, QueryKeyValue, Switches, after_mixing
from lookfar.ops._layout import from_blocks, match_format, to_blocks, to_map, to_tokens
from lookfar.ops._normalization import RowNormalization
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._window import window_of
from lookfar.ops.attention import Normalization, attention, attention_weights
from lookfar.ops.neighborhood import (
    neighborhood,
    neighborhood_rows,
    neighborhood_weights,
    relative_logits,
)

_PAPER = "Stand-Alone Self-Attention in Vision Models (NeurIPS 2019)"
_VERIFIED = ("equations, float64 loop (the authors published no code)",)


def _projection(channels: int, out_channels: int, **dd: Any) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, 1, bias=False, **dd)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@block(
    "stand_alone",
    title="Stand-alone self-attention (SASA)",
    paper=_PAPER,
    arxiv="1906.05909",
    formula=(r"y_i = \sum_{j \in \text{window}(i)} \text{softmax}_j(q_i^\top k_j + q_i^\top r_{j - i})\,v_j",),
    family="local",
    kind="layer",
    complexity="N k^2 O",
    memory="N (O + h k^2)",
    verified=_VERIFIED,
    attends="weights",
    residual=False,
    aliases=("sasa",),
    differences=(
        "The text gives every head its own group of input channels; the parameters that it reports fit projections of "
        "all of them, which is what is here.",
        "A head of odd width, which the paper does not have, gives the row's embedding the odd channel.",
        "The paper has no dilation: the embeddings are those of the cells, whatever lies between them.",
        "The paper does not say what lies outside the map: nothing (`mask`), or `zeros` as after padding.",
    ),
)
class StandAlone(QueryKeyValue):
    """Replaces a k x k convolution by attention to the window, with embeddings of the relative position.

    y_i = sum_{j in window(i)} softmax_j(q_i . k_j + q_i . r_{j - i}) v_j

    Heads stand side by side.

    Args:
        channels: Channels C of the input.
        heads: Groups of channels that attend by themselves; None is the published 8, or the largest divisor below it.
        stride: Extent of the average pool after the layer, the paper's place of a stride.
        dilation: Step between the cells of a window.
        relative: Embed relative positions.
        shared: One table of embeddings for all heads.
        content: Compare queries with keys; off, a query asks for relative positions alone, and there are no keys.
        border: What is outside the map does not exist (``mask``), takes part as ``zeros``, or is avoided by pushing the
            window inward (``clamped``; offsets are then those of its cells).

    Shape: ``(B, C, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))``

    Raises:
        ValueError: ``heads`` does not divide ``out_channels``, nothing is left to compare, a dilated clamped window.

    Example:
        >>> block = StandAlone(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: Odd = 7,
        heads: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        relative: bool = True,
        shared: bool = False,
        content: bool = True,
        border: Literal["mask", "zeros", "clamped"] = "mask",
        normalization: RowNormalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        **dd: Unpack[Placement],
    ) -> None:
        out = out_channels or channels
        heads = largest_divisor(8, out // 2 if relative and out % 2 == 0 else out) if heads is None else heads
        divides("heads", heads, out_channels=out)
        if not (relative or content):
            raise ValueError("with relative=False and content=False nothing is left to compare")
        window_of(kernel_size, 1, dilation, border)  # clamped windows are not dilated: said now
        share = share_query_key or (not content and projections == "inside")  # nobody asks for keys
        layer = partial(_projection, channels, out, **dd)
        super().__init__(Switches(heads, normalization, share, projections), layer, layer)
        self.stride, self.content = stride, content
        self.window: dict[str, Any] = {"kernel_size": kernel_size, "dilation": dilation, "border": border}
        self.project = None if projections == "inside" else _projection(out, out, **dd)
        tables, half = 1 if shared else heads, out // heads // 2
        self.rel_row = nn.Parameter(torch.randn(tables, out // heads - half, kernel_size, **dd)) if relative else None
        self.rel_col = nn.Parameter(torch.randn(tables, half, kernel_size, **dd)) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._queries_keys_values(x)
        q, k, bias = self._compared(q, k)
        y = neighborhood(q, k, v, bias=bias, normalization=self.normalization, **self.window)
        return self._finish_map(x, match_format(y.flatten(1, 2), x))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of flat positions ``(Q,)`` before the pool, of all when None; 0 off the window."""
        q, k, bias = self._compared(*self._queries_keys_values(x)[:2])
        cells = neighborhood_weights(q, k, bias=bias, normalization=self.normalization, **self.window)
        return neighborhood_rows(cells, (x.shape[2], x.shape[3]), queries=queries, **self.window)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, O/h)``."""
        return self._queries_keys_values(x)[2].flatten(3).transpose(2, 3)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and the weighted sums ``(B, h, N, O/h)``."""
        return self._finish_map(x, to_map(mixed, x))

    def _split(self, t: Tensor) -> Tensor:
        return t.contiguous().unflatten(1, (self.heads, -1))  # (B, h, O/h, H, W)

    def _compared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys and what relative positions add to their logits."""
        rows, columns = self.rel_row, self.rel_col
        bias = None if rows is None or columns is None else relative_logits(q, rows, columns)
        if self.content:
            return q, k, bias
        nothing = torch.zeros_like(q[:, :, :1])
        return nothing, nothing, bias

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        y = after_mixing(self.project, y, self.normalization)
        y = y.to(x.dtype) if self.normalization == "none" else y
        return y if self.stride == 1 else F.avg_pool2d(y, self.stride, ceil_mode=True)


@block(
    "stand_alone_stem",
    title="Stand-alone attention stem (SASA)",
    paper=_PAPER,
    arxiv="1906.05909",
    formula=(
        r"y_i = \sum_{j \in \text{block}(i)} \text{softmax}_j(q_i^\top k_j)\,V_{p(j)}\,x_j",
        r"V_p = \sum_m \text{softmax}_m((\text{row}_p + \text{col}_p)^\top \nu_m)\,V_m",
    ),
    family="local",
    kind="layer",
    complexity="N k^2 O + k^2 M C O",
    memory="N O",
    verified=_VERIFIED,
    attends="weights",
    residual=False,
    aliases=("sasa_stem",),
    differences=("BatchNorm and the k x k max-pool that follow in the paper are not part of it.",),
    author_keys={"values": "mixtures"},
)
class StandAloneStem(QueryKeyValue):
    """A network's first layer: attention inside k x k blocks, with values that depend on the place in the block.

    y_i = sum_{j in block(i)} softmax_j(q_i . k_j) V_p(j) x_j, V_p = sum_m softmax_m((row_p + col_p) . nu_m) V_m

    Args:
        channels: Channels C of the input, 3 for an image.
        kernel_size: Extent k of a block.
        heads: Groups of channels that attend by themselves; None is the published 8, or the largest divisor below it.
        mixtures: Number M of value matrices that are mixed.
        embed_channels: Width of the embeddings of rows, columns and mixtures; O / heads when None.

    Shape: ``(B, C, H, W) -> (B, O, H, W)``, H and W multiples of k

    Raises:
        ValueError: ``heads`` does not divide ``out_channels``; in forward, a map that k does not divide.

    Example:
        >>> block = StandAloneStem(16)
        >>> block(torch.randn(2, 16, 24, 20)).shape
        torch.Size([2, 16, 24, 20])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: int = 4,
        heads: int | None = None,
        mixtures: int = 4,
        embed_channels: int | None = None,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        **dd: Unpack[Placement],
    ) -> None:
        out = out_channels or channels
        heads = largest_divisor(8, out) if heads is None else heads
        divides("heads", heads, out_channels=out)
        layer = partial(_projection, channels, out, **dd)
        super().__init__(Switches(heads, normalization, share_query_key), layer, None)
        embed = embed_channels or out // heads
        self.channels, self.kernel_size = channels, kernel_size
        self.mixtures = nn.Parameter(torch.randn(mixtures, out, channels, **dd).mul_((2 / out) ** 0.5))
        self.emb_row = nn.Parameter(torch.randn(kernel_size, embed, **dd))
        self.emb_col = nn.Parameter(torch.randn(kernel_size, embed, **dd))
        self.nu = nn.Parameter(torch.randn(mixtures, embed, **dd))

    def forward(self, x: Tensor) -> Tensor:
        n = self.kernel_size
        y = attention(*self._queries_keys_values(x), normalization=self.normalization)  # (B h blocks, 1, k^2, O/h)
        return match_format(from_blocks(y.to(x.dtype), x.shape[2:], (n, n), self.heads), x)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None; 0 off the block."""
        (H, W), n = x.shape[2:], self.kernel_size
        weights = attention_weights(*self._queries_keys_values(x)[:2], normalization=self.normalization)
        weights = weights[:, 0].unflatten(0, (x.shape[0], self.heads, -1))
        at = torch.arange(H * W, device=x.device)
        at = at if queries is None else at[queries]
        y, column = at // W, at % W
        home = (y // n) * (W // n) + column // n
        found = weights[:, :, home, (y % n) * n + column % n]  # (B, h, Q, k^2)
        inside = torch.arange(n, device=x.device)
        rows, columns = (y // n * n)[:, None] + inside, (column // n * n)[:, None] + inside
        keys = (W * rows[:, :, None] + columns[:, None]).flatten(1)  # (Q, k^2)
        return found.new_zeros((*found.shape[:3], H * W)).scatter(3, keys.expand_as(found), found)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, O/h)``."""
        v = to_tokens(self._value_map(x), self.heads)
        return widened(v) if self.normalization == "none" else v

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and the weighted sums ``(B, h, N, O/h)``."""
        return to_map(mixed, x).to(x.dtype)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """A random map of ``size`` blocks."""
        return (torch.randn(batch, self.channels, *(n * self.kernel_size for n in size)),)

    def _split(self, t: Tensor) -> Tensor:
        """``(B, O, H, W) -> (B h blocks, 1, k^2, O/h)``."""
        return to_blocks(t, (self.kernel_size, self.kernel_size), self.heads)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (H, W), n = x.shape[2:], self.kernel_size
        if H % n or W % n:
            raise ValueError(f"the stem's blocks are {n} x {n}: want H and W in multiples of {n}, got {H} x {W}")
        query, key, _ = super()._maps(x)
        return query, key, self._value_map(x)

    def _value_map(self, x: Tensor) -> Tensor:
        """One matrix a place in the block, mixed before it is applied: M times fewer products."""
        n = self.kernel_size
        with without_autocast(x):
            places = widened(self.emb_row)[:, None] + widened(self.emb_col)  # (k, k, e)
            shares = (places @ widened(self.nu).T).softmax(-1)  # (k, k, M)
            matrices = torch.einsum("yxm,moc->yxoc", shares, widened(self.mixtures))
            inside = x.reshape(*x.shape[:2], x.shape[2] // n, n, x.shape[3] // n, n)
            y = torch.einsum("bciyjx,yxoc->boiyjx", widened(inside), matrices)
            return y.flatten(4).flatten(2, 3).to(x.dtype)
