"""OCNet: attention that learns to gather what belongs to a position's own object.

Traps: the authors published two incompatible codes under the same class names (``variant``); a pyramid's blocks have
floor(H / n) rows, the last ones take what remains, and of a map lower than n they are the whole of it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Share
from lookfar.blocks._base import block
from lookfar.blocks._layers import (
    CONV,
    DROPOUT,
    ConvNorm,
    Dims,
    Form,
    Norm,
    Placement,
    activated,
    max_pool,
    norm_of,
    normed,
    only_on_images,
    projected,
    projection,
    resized,
    zero_,
)
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, after_mixing, value_width
from lookfar.blocks.pyramid_pooling import AtrousConv
from lookfar.ops._layout import from_blocks, to_blocks, to_map, to_tokens
from lookfar.ops._normalization import normalised
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.attention import Normalization, attention
from lookfar.ops.double_normalization import double_normalization

Mode = Literal["base", "context", "pyramid", "asp"]
Variant = Literal["ocnet", "openseg"]

_KEYS = {
    r"stages\.(\d+)\.f_(key|query)\.0": r"contexts.\1.\2.0.conv",
    r"stages\.(\d+)\.f_(key|query)\.1(\.0)?": r"contexts.\1.\2.0.norm",
    r"stages\.(\d+)\.f_(key|query)\.2": r"contexts.\1.\2.1.conv",
    r"stages\.(\d+)\.f_(key|query)\.3\.0": r"contexts.\1.\2.1.norm",
    r"stages\.(\d+)\.f_value": r"contexts.\1.value",
    r"stages\.(\d+)\.W": r"contexts.\1.mix",
    r"conv_bn_dropout\.0": "fuse.conv",
    r"conv_bn_dropout\.0\.0": "fuse.norm",
    r"conv_bn_dropout\.1(\.0)?": "fuse.norm",
    r"up_dr\.0": "widen.conv",
    r"up_dr\.1": "widen.norm",
}


class ObjectAttention(PairwiseAttention):
    """Attention over the whole map, pooled by ``stride``, or within each block of a grid; one 1x1 convolution after."""

    def __init__(
        self,
        channels: int,
        inner: int,
        value_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        grid: int = 1,
        deep: bool,
        switches: Switches,
        dims: Dims,
        **layers: Any,
    ) -> None:
        layers["dims"] = dims
        dd: Placement = {k: layers[k] for k in ("device", "dtype") if k in layers}  # type: ignore[assignment]

        def projection() -> nn.Sequential:
            first = ConvNorm(channels, inner, bias=True, **layers)
            return nn.Sequential(first, ConvNorm(inner, inner, bias=True, **layers)) if deep else nn.Sequential(first)

        super().__init__(switches, projection, partial(CONV[dims], channels, value_channels, 1, **dd), kept="key")
        self.stride, self.grid = stride, grid
        self.scale = (inner // switches.heads) ** -0.5
        self.mix = CONV[dims](value_channels, out_channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = max_pool(x, self.stride)
        if self.query is None and self.key is not None and self.training:
            with torch.no_grad():  # the original runs it for queries and for keys: its statistics move twice a step
                self.key(x)
        whole = self.grid == 1
        y = super().forward(x) if whole else self._finish_map(x, self._in_blocks(*self._queries_keys_values(x)))
        return resized(y, size) if self.stride > 1 else y

    def weights(self, x: Tensor) -> Tensor:
        """``(B, h, N, N)`` over the map that it sees, exactly zero between blocks of the grid."""
        x = max_pool(x, self.stride)
        return self.attention(x) if self.grid == 1 else self._block_weights(*self._queries_keys_values(x)[:2])

    def _split(self, t: Tensor) -> Tensor:
        return to_tokens(t, self.heads) if self.grid == 1 else t  # a grid cuts maps

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        y = y if self.normalization == "none" else y.to(x.dtype)
        return after_mixing(self.mix, y, self.normalization)

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Weighted sums of the values: maps in, a map out."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # for every size: one attention, masked
            weights = self._block_weights(q, k)
            with without_autocast(v):
                return to_map(weights @ widened(to_tokens(v, self.heads)), v).to(v.dtype)
        rows, columns = self._parts(v.shape[2]), self._parts(v.shape[3])
        found = []
        for top, height, n in rows:
            line = []
            for left, width, m in columns:
                area = (slice(None), slice(None), slice(top, top + n * height), slice(left, left + m * width))
                tokens = (to_blocks(t[area], (height, width), self.heads) for t in (q, k, v))
                y = attention(*tokens, scale=self.scale, normalization=self.normalization)
                line.append(from_blocks(y, (n * height, m * width), (height, width), self.heads))
            found.append(torch.cat(line, 3))
        return torch.cat(found, 2)

    def _block_weights(self, q: Tensor, k: Tensor) -> Tensor:
        row, column = (self._block(n, q.device) for n in q.shape[2:])
        here = (row[:, None] * self.grid + column).flatten()
        same = here[:, None] == here
        with without_autocast(q):
            q, k = (widened(to_tokens(t, self.heads)) for t in (q, k))
            logits = self.scale * q @ k.transpose(2, 3)
            if self.normalization == "double":
                return double_normalization(logits.masked_fill(~same, -torch.inf))
            return normalised(logits, self.normalization, seen=same)

    def _block(self, length: int, device: torch.device) -> Tensor:
        """The block of every position along an axis."""
        borders = length // self.grid * torch.arange(1, self.grid, device=device)
        return (torch.arange(length, device=device)[:, None] >= borders).sum(1)

    def _parts(self, length: int) -> list[tuple[int, int, int]]:
        """(start, length, number) of equal blocks along an axis: all but the last in one, where there are any."""
        step = length // self.grid
        if step * self.grid == length:
            return [(0, step, self.grid)]
        inner = (self.grid - 1) * step
        return [*([(0, step, self.grid - 1)] if step else []), (inner, length - inner, 1)]


class NormAct(nn.Module):
    """A normalisation and an activation."""

    def __init__(self, channels: int, *, norm_layer: Norm, act_layer: Norm, dims: Dims, **dd: Any) -> None:
        super().__init__()
        self.norm, self.act = norm_of(norm_layer, dims)(channels, **dd), act_layer()

    def forward(self, x: Tensor) -> Tensor:
        return activated(self.act, normed(self.norm, x))


def _grids(mode: Mode, sizes: Sequence[int] | None, dims: Dims) -> tuple[int, ...]:
    """How many parts each grid has along an axis."""
    if mode not in ("base", "context"):
        only_on_images(dims, f"{mode=}", "base and context take any")
    return tuple(sizes or {"pyramid": (1, 2, 3, 6), "asp": (2,)}.get(mode, (1,)))


@block(
    "object_context",
    title="Object context (OCNet)",
    paper="OCNet: Object Context Network for Scene Parsing (2018; IJCV 2021)",
    arxiv="1809.00916",
    formula=(r"y = x + P\,\text{act}(\text{norm}(W_f\,[\,W\,\text{softmax}(q k^\top / \sqrt{D})\,v,\; x\,]))",),
    family="pairwise",
    complexity="N^2 C; pyramid N^2 C sum 1/n^2; asp N^2 C / 16 + N C^2",
    memory="N C",
    verified=(
        "openseg-group/OCNet.pytorch@679a45b8:oc_module/{base,pyramid,asp}_oc_block.py",
        "openseg-group/openseg.pytorch@aefc7551:lib/models/modules/{base,asp}_oc_block.py",
    ),
    attends="weights",
    aliases=("ocnet", "base_oc", "baseoc"),
    differences=(
        "Queries and keys share one convolution with norm and leaky ReLU in OCNet.pytorch (variant='ocnet', the "
        "default); in openseg each has two of its own, with ReLU ('openseg').",
        "The norm of OCNet.pytorch (InPlaceABN) multiplies by |weight| + 1e-5, ours by weight: "
        "lookfar.weights.from_inplace_abn converts theirs.",
        "The original replaces its input; here its result is added to the input through a 1x1 convolution that starts "
        "at zero."
        ' form="published" gives the module alone.',
    ),
    author_keys={
        **_KEYS,
        **{rf"context\.2\.{theirs}": f"inner.{ours}" for theirs, ours in _KEYS.items()},
        r"context\.0": "first.conv",
        r"context\.1(\.0)?": "first.norm",
        r"conv2\.0": "branches.0.conv",
        r"conv2\.1(\.0)?": "branches.0.norm",
        r"conv3\.0": "branches.1.conv",
        r"conv3\.1(\.0)?": "branches.1.norm",
        r"conv4\.0": "branches.2.conv",
        r"conv4\.1(\.0)?": "branches.2.norm",
        r"conv5\.0": "branches.3.conv",
        r"conv5\.1(\.0)?": "branches.3.norm",
    },
)
class ObjectContext(nn.Module):
    """Self-attention of the whole map, of the blocks of several grids, or beside dilated convolutions.

    y = x + P act(norm(W_f [W softmax(q k^T / sqrt(D)) v, x]))

    - ``base``: as above, the attentions of several ``sizes`` added.
    - ``context``: without x beside them.
    - ``pyramid``: one attention for each of ``sizes``, within the blocks of an n x n grid, beside a widened x.
    - ``asp``: ``context`` on the pooled map beside a 1x1 and dilated 3x3 convolutions.

    Args:
        mode: See above.
        sizes: In ``base`` and ``context`` the strides of pooling before an attention, ``(1,)`` by default; in
            ``pyramid`` blocks along an axis, ``(1, 2, 3, 6)``; in ``asp`` strides, ``(2,)``.
        inner_channels: D, channels of queries and keys; half of ``channels`` (``asp``: of a branch) by default.
        value_channels: Channels of the values; by default D, in ``pyramid`` C, in ``asp`` as published in the variant.
        out_channels: Channels of the published module; ``channels``, in ``asp`` always twice a branch's.
        branch_channels: Channels of a branch of ``asp``; half of ``channels`` by default.
        dilations: Dilations of ``asp``.
        variant: Whose code, see the differences.
        share_query_key: One projection for queries and keys; by default as published in the variant.
        projections: ``inside`` has queries, keys and values; ``around`` has one of D channels before W, with norm and
            activation as the keys' has, whose result is all three.
        norm_layer: After the convolutions, before their activation.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims`` in ``base`` and ``context``

    Raises:
        ValueError: An unknown choice, other axes than the mode has, heads that do not divide the widths,
            choices that exclude each other.

    Example:
        >>> block = ObjectContext(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "base",
        sizes: Sequence[int] | None = None,
        inner_channels: int | None = None,
        value_channels: int | None = None,
        out_channels: int | None = None,
        branch_channels: int | None = None,
        dilations: Sequence[int] = (12, 24, 36),
        variant: Variant = "ocnet",
        heads: int = 1,
        normalization: Normalization = "softmax",
        share_query_key: bool | None = None,
        projections: Projections = "inside",
        dropout: Share = 0.0,
        norm_layer: Norm = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        dims: Dims = 2,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        share = (variant, projections) == ("ocnet", "inside") if share_query_key is None else share_query_key
        switches = Switches(heads, normalization, share, projections)
        layers: dict[str, Any] = {"norm_layer": norm_layer, "zero_init": zero_init, "dims": dims, **dd}
        layers["act_layer"] = partial(nn.LeakyReLU, 0.01) if variant == "ocnet" else nn.ReLU
        widths = inner_channels, value_channels, branch_channels
        self.variant: Variant = variant
        self.mode, self.published = mode, form == "published"
        self.sizes = _grids(mode, sizes, dims)
        self.contexts = nn.ModuleList()
        self.first = self.inner = self.branches = self.widen = None
        if mode == "asp":
            out = self._add_branches(channels, widths, dilations, switches, **layers)
        else:
            out = self._add_contexts(channels, out_channels or channels, widths, switches, **layers)
        self.dropout = DROPOUT[dims](dropout)
        self.project = projection(form, out, channels, zero_init=zero_init, dims=dims, **dd)

    def _add_branches(
        self,
        channels: int,
        widths: tuple[int | None, int | None, int | None],
        dilations: Sequence[int],
        switches: Switches,
        *,
        zero_init: bool,
        act_layer: Norm,
        **layers: Any,
    ) -> int:
        """An attention on a narrowed map, beside convolutions of x; the width of what they are fused to."""
        inner, values, width = widths
        width = width or max(channels // 2, 1)
        inner = inner or max(width // 2, 1)
        values = value_width(values, width if self.variant == "ocnet" else max(width // 2, 1), inner, switches)
        self.first = ConvNorm(channels, width, 3, bias=True, act_layer=act_layer, **layers)
        self.inner = ObjectContext(
            width, mode="context", sizes=self.sizes, inner_channels=inner, value_channels=values, variant=self.variant,
            form="published", zero_init=self.published and zero_init, heads=switches.heads,
            normalization=switches.normalization, share_query_key=switches.share_query_key,
            projections=switches.projections, **layers,
        )  # fmt: skip
        layers["act_layer"] = act_layer
        self.branches = nn.ModuleList([ConvNorm(channels, width, **layers)])
        self.branches.extend(AtrousConv(channels, width, 3, dilation=d, **layers) for d in dilations)
        self.fuse = ConvNorm(width * (2 + len(dilations)), 2 * width, **layers)
        self.attends = "maps"
        return 2 * width

    def _add_contexts(
        self,
        channels: int,
        out: int,
        widths: tuple[int | None, int | None, int | None],
        switches: Switches,
        *,
        zero_init: bool,
        **layers: Any,
    ) -> int:
        """The attentions of all sizes, and what fuses them; the width of what comes out."""
        inner = widths[0] or max(channels // 2, 1)
        values = value_width(widths[1], channels if self.mode == "pyramid" else inner, inner, switches)
        each = (channels, inner, values, channels if self.mode == "base" else out)
        deep, n = self.variant == "openseg", len(self.sizes)
        for size in self.sizes:
            place = {"grid": size} if self.mode == "pyramid" else {"stride": size}
            self.contexts.append(ObjectAttention(*each, deep=deep, switches=switches, **place, **layers))
            if zero_init and self.published:  # as the authors do: the attention is silent at first
                zero_(self.contexts[-1].mix)  # type: ignore[arg-type]
        if self.mode == "context":
            self.fuse = NormAct(out, **layers) if deep else ConvNorm(out, out, bias=True, **layers)
        elif self.mode == "base":
            self.fuse = ConvNorm(2 * channels, out, bias=True, **layers)
        else:
            self.widen = ConvNorm(channels, channels * n, bias=True, **layers)
            self.fuse = ConvNorm((channels + out) * n, out, bias=True, **layers)
        if self.sizes != (1,):
            self.attends = "maps"
        return out

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A shared projection stands twice in the original's state."""
        shared = any(isinstance(m, ObjectAttention) and m.query is None for m in self.modules())
        return {k: v for k, v in state.items() if not (shared and ".query." in k)}

    def forward(self, x: Tensor) -> Tensor:
        return self._fused(x, [context(x) for context in self.contexts])

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None."""
        return self._one().attention(x, queries)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, E)``."""
        return self._one().values(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, E)``."""
        return self._fused(x, [self._one().finish(x, mixed)])

    def maps(self, x: Tensor) -> list[Tensor]:
        """Weights ``(B, h, N, N)`` of every attention, over the map that it sees."""
        if self.inner is not None and self.first is not None:
            return self.inner.maps(self.first(x))
        found = []
        for context in self.contexts:
            assert isinstance(context, ObjectAttention)
            found.append(context.weights(x))
        return found

    def _one(self) -> ObjectAttention:
        context = self.contexts[0]
        assert isinstance(context, ObjectAttention)
        return context

    def _fused(self, x: Tensor, contexts: list[Tensor]) -> Tensor:
        if self.mode == "asp":
            assert self.first is not None
            assert self.inner is not None
            assert self.branches is not None
            y = torch.cat([self.inner(self.first(x)), *(branch(x) for branch in self.branches)], 1)
        elif self.mode == "pyramid":
            assert self.widen is not None
            y = torch.cat([self.widen(x), *contexts], 1)
        else:
            y = torch.stack(contexts).sum(0) if len(contexts) > 1 else contexts[0]
            y = torch.cat([y, x], 1) if self.mode == "base" else y
        y = self.dropout(self.fuse(y))
        return projected(self, x, y)
