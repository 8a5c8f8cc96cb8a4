"""Self-attention that sees near positions, far ones at a fixed distance, or both.

Traps: ``atrous_attention`` is no dilated window, it spans the whole map; the query's own position is always seen.
"""

from functools import partial
from typing import Annotated, Any, Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, Range, Refused, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement, zero_
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, reduced
from lookfar.ops._layout import match_format
from lookfar.ops.neighborhood import Normalization, neighborhood, neighborhood_rows, neighborhood_weights
from lookfar.ops.sparse_attention import WHY_NOT_DOUBLE, Pattern, sparse_attention, sparse_attention_weights

OfSome = Annotated[Normalization, Refused("double", WHY_NOT_DOUBLE)]

_DIFFERENCES = (
    "The note and its Keras code treat sequences, without output projection or residual: the definition on maps, the "
    "projection that starts at zero and the sum with the input are ours.",
)
_NOTE = "From standard attention to sparse attention (J. Su, 2019)"
_VERIFIED = ("equations, float64 loop",)


class _WindowedAttention(PairwiseAttention):
    """x + W_o attention(W_q x, W_k x, W_v x): what the three patterns share. They add their op and its weights."""

    def __init__(
        self, channels: int, inner_channels: int | None, zero_init: bool, switches: Switches, **dd: Any
    ) -> None:
        inner = inner_channels or reduced(channels, 2, switches.heads)
        divides("heads", switches.heads, inner_channels=inner)
        layer = partial(nn.Conv2d, channels, inner, 1, bias=False, **dd)
        super().__init__(switches, layer, layer)
        self.scale = (inner // switches.heads) ** -0.5
        self.project = nn.Conv2d(inner, channels, 1, **dd)
        if zero_init:
            zero_(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return self._finish_map(x, match_format(self._attend(*self._queries_keys_values(x)).flatten(1, 2), x))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None: zero where none is seen."""
        q, k, _ = self._queries_keys_values(x)
        return self._weights(q, k, queries)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, D/h)``."""
        return self._queries_keys_values(x)[2].flatten(3).transpose(2, 3)

    def _split(self, t: Tensor) -> Tensor:
        return t.contiguous().unflatten(1, (self.heads, -1))  # (B, h, D/h, H, W)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _weights(self, q: Tensor, k: Tensor, queries: Tensor | None) -> Tensor:
        raise NotImplementedError


class _PatternAttention(_WindowedAttention):
    pattern: Pattern
    kernel_size: int
    dilation: int

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, **self._options())

    def _weights(self, q: Tensor, k: Tensor, queries: Tensor | None) -> Tensor:
        return sparse_attention_weights(q, k, queries=queries, **self._options())

    def _options(self) -> dict[str, Any]:
        sizes = {"kernel_size": self.kernel_size, "dilation": self.dilation}
        return {"pattern": self.pattern, "scale": self.scale, "normalization": self.normalization, **sizes}


@block(
    "atrous_attention",
    title="Atrous self-attention",
    paper=_NOTE,
    formula=(
        r"y_i = x_i + W_o \sum_{j:\, r \mid j - i} \text{softmax}_j\left(\frac{q_i^\top k_j}{\sqrt{d}}\right) v_j",
    ),
    family="sparse",
    complexity="N^2 / r^2 C",
    memory="N C",
    verified=_VERIFIED,
    attends="weights",
    aliases=("atrous_self_attention",),
    differences=_DIFFERENCES,
)
class AtrousAttention(_PatternAttention):
    """Every position attends to those of the whole map whose distance, in rows and in columns, r divides.

    y_i = x_i + W_o sum_{j: r | j - i} softmax_j(q_i . k_j / sqrt(d)) v_j

    Args:
        inner_channels: Width D of queries, keys and values; half of the channels when None.
        dilation: Distance r of the positions seen; 1 is full attention.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: ``heads`` does not divide the width, ``dilation`` below 1, an unknown choice.

    Example:
        >>> import torch
        >>> block = AtrousAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    pattern = "atrous"

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        heads: int = 1,
        dilation: Annotated[int, Range(1, 500)] = 4,
        normalization: OfSome = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        switches = Switches(heads, normalization, share_query_key, projections)
        super().__init__(channels, inner_channels, zero_init, switches, **dd)
        self.kernel_size, self.dilation = 1, dilation


@block(
    "sparse_attention",
    title="Sparse self-attention (local and atrous)",
    paper=f"{_NOTE}; Generating Long Sequences with Sparse Transformers (2019)",
    arxiv="1904.10509",
    formula=(
        r"y_i = x_i + W_o \sum_{j \text{ near or } r \mid j - i} \text{softmax}_j\left(\frac{q_i^\top"
        r" k_j}{\sqrt{d}}\right) v_j",
    ),
    family="sparse",
    complexity="N (k^2 + N / r^2) C",
    memory="N (C + h k^2)",
    verified=_VERIFIED,
    attends="weights",
    aliases=("sparse_self_attention",),
    differences=(
        *_DIFFERENCES,
        "The Keras code has no near key and counts the others twice; here it is the union, as its text says.",
    ),
)
class SparseAttention(_PatternAttention):
    """Every position attends to its k x k window and to the positions of the whole map at distances that r divides.

    y_i = x_i + W_o sum_{j near or r | j - i} softmax_j(q_i . k_j / sqrt(d)) v_j

    Two of them in a row connect every pair of positions if k = 2r - 1.

    Args:
        inner_channels: Width D of queries, keys and values; half of the channels when None.
        kernel_size: Odd extent k of the window; 2r - 1 when None.
        dilation: Distance r of the far positions; 1 is full attention.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: ``heads`` does not divide the width, an even kernel, ``dilation`` below 1, an unknown choice.

    Example:
        >>> import torch
        >>> block = SparseAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    pattern = "sparse"

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        heads: int = 1,
        kernel_size: Odd | None = None,
        dilation: Annotated[int, Range(1, 500)] = 4,
        normalization: OfSome = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        switches = Switches(heads, normalization, share_query_key, projections)
        super().__init__(channels, inner_channels, zero_init, switches, **dd)
        self.kernel_size = 2 * dilation - 1 if kernel_size is None else kernel_size
        self.dilation = dilation


@block(
    "local_attention",
    title="Local self-attention",
    paper=f"{_NOTE}; clamped windows: Neighborhood Attention Transformer (CVPR 2023)",
    arxiv="2204.07143",
    formula=(
        r"y_i = x_i + W_o \sum_{j \in \text{window}(i)} \text{softmax}_j\left(\frac{q_i^\top k_j}{\sqrt{d}}\right) v_j",
    ),
    family="local",
    complexity="N k^2 C",
    memory="N (C + h k^2)",
    verified=_VERIFIED,
    attends="weights",
    aliases=("local_self_attention", "neighborhood_attention"),
    differences=(
        *_DIFFERENCES,
        'Neighborhood attention refuses maps smaller than its window; border="clamped" attends to all of them.',
    ),
)
class LocalAttention(_WindowedAttention):
    """Every position attends to the k x k window around it.

    y_i = x_i + W_o sum_{j in window(i)} softmax_j(q_i . k_j / sqrt(d)) v_j

    Args:
        inner_channels: Width D of queries, keys and values; half of the channels when None.
        border: At the border the window is cut (``mask``) or pushed inward (``clamped``), or has ``zeros`` as keys.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: ``heads`` does not divide the width, an even kernel, an unknown choice.

    Example:
        >>> import torch
        >>> block = LocalAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        heads: int = 1,
        kernel_size: Odd = 7,
        border: Literal["mask", "zeros", "clamped"] = "mask",
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        switches = Switches(heads, normalization, share_query_key, projections)
        super().__init__(channels, inner_channels, zero_init, switches, **dd)
        self.window: dict[str, Any] = {"kernel_size": kernel_size, "border": border}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood(q, k, v, scale=self.scale, normalization=self.normalization, **self.window)

    def _weights(self, q: Tensor, k: Tensor, queries: Tensor | None) -> Tensor:
        cells = neighborhood_weights(q, k, scale=self.scale, normalization=self.normalization, **self.window)
        return neighborhood_rows(cells, (q.shape[3], q.shape[4]), queries=queries, **self.window)
