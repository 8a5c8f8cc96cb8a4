"""ANN: every position attends to a pyramid of pooled keys, 110 of them whatever the size of the map.

Traps: keys are projected and then pooled; pooling first is another function. The fusing form has no ReLU at its end.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Share
from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Form, Norm, Placement, projected, projection, zero_
from lookfar.blocks._projections import Projections, QueryKeyValue, Switches, applied, value_width
from lookfar.blocks._reading import pointwise, weights_of, wide
from lookfar.ops._averages import averages
from lookfar.ops._layout import to_tokens
from lookfar.ops._precision import without_autocast
from lookfar.ops.attention import Normalization, attention_weights


@block(
    "asymmetric_nonlocal",
    title="Asymmetric non-local (ANN)",
    paper="Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019)",
    arxiv="1908.07678",
    formula=(
        r"y = x + P\,\text{act}(\text{norm}(W_f\,[\,W\,\text{softmax}(q k^\top / \sqrt{D})\,v,\; x\,]))",
        r"k = \text{pool}(\text{ReLU}(\text{norm}(W_k\,\text{low}))), \quad v = W_v\,\text{pool}(\text{low})",
    ),
    family="pyramid",
    complexity="N S C, S pooled keys",
    memory="N (S + C)",
    verified=(
        "MendelXu/ANN@f4eabeb2:models/seg/utils/{apnb,afnb}.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/ann_head.py (AFNB, APNB)",
    ),
    attends="weights",
    aliases=("ann", "annnet", "apnb", "afnb"),
    differences=(
        "The original concatenates its context to its input and fuses them; here the result is added to the input"
        ' through a 1x1 convolution that starts at zero. form="published" gives the module alone.',
        "The authors' convolutions have biases although a norm follows them (the default), mmsegmentation's have none "
        "(bias=False).",
    ),
    author_keys={
        r"stages\.0\.f_(key|query)\.0": r"\1.conv",
        r"stages\.0\.f_(key|query)\.1\.0": r"\1.norm",
        r"stages\.0\.f_value": "value",
        r"stages\.0\.W": "mix",
        r"conv_bn_dropout\.0": "fuse.conv",
        r"conv_bn_dropout\.1(\.0)?": "fuse.norm",
        r"stages\.0\.(key|query)_project\.conv": r"\1.conv",
        r"stages\.0\.(key|query)_project\.(bn|gn|in)": r"\1.norm",
        r"stages\.0\.value_project": "value",
        r"stages\.0\.out_project": "mix",
        r"bottleneck\.conv": "fuse.conv",
        r"bottleneck\.(bn|gn|in)": "fuse.norm",
    },
)
class AsymmetricNonlocal(QueryKeyValue):
    """Softmax attention of all N positions to S = sum bins^2 pooled keys, of the same map or of a lower level.

    y = x + P act(norm(W_f [W softmax(q k^T / sqrt(D)) v, x])), k = pool(ReLU(norm(W_k low))), v = W_v pool(low)

    low is x, or a lower level. Values are pooled before they are projected, and both convolutions that follow act on
    the S keys: exact, and what is left for the N positions is one product.

    Args:
        low_channels: Channels of the second input of ``forward``, from which keys and values come; C by default.
        inner_channels: D of queries and keys; half of ``channels`` by default.
        value_channels: Channels of the values; D by default.
        out_channels: Channels of the published module; ``channels`` by default.
        heads: Parallel attentions.
        mode: ``pyramid`` (APNB: within a map, ends in a ReLU) or ``fusion`` (AFNB: of two maps, no ReLU).
        share_query_key: One projection for queries and keys; by default as published: in ``pyramid`` alone.
        projections: ``inside`` has queries, keys and values; ``around`` has one of D channels before W, with norm and
            ReLU as the keys' has, whose result is queries and, pooled, keys and values.
        bins: Regions along each axis of the pyramid's levels.
        bias: Biases of the convolutions that a norm follows.
        norm_layer: After the convolutions of queries, keys and the fusion; None for none.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``, with a second input ``(B, low_channels, H', W')`` if it is given

    Raises:
        ValueError: An unknown choice, heads that do not divide the widths, choices that exclude each other.

    Example:
        >>> block = AsymmetricNonlocal(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        low_channels: int | None = None,
        inner_channels: int | None = None,
        value_channels: int | None = None,
        out_channels: int | None = None,
        heads: int = 1,
        mode: Literal["pyramid", "fusion"] = "pyramid",
        normalization: Normalization = "softmax",
        share_query_key: bool | None = None,
        projections: Projections = "inside",
        bins: Sequence[int] = (1, 3, 6, 8),
        bias: bool = True,
        dropout: Share = 0.0,
        norm_layer: Norm | None = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        layers: dict[str, Any] = {"bias": bias, "norm_layer": norm_layer, **dd}
        inner, low, out = inner_channels or max(channels // 2, 1), low_channels or channels, out_channels or channels
        share = mode == "pyramid" and projections == "inside" if share_query_key is None else share_query_key
        switches = Switches(heads, normalization, share, projections)
        values = value_width(value_channels, inner, inner, switches)
        _check_shared(channels, low, switches)
        for_key = partial(ConvNorm, low, inner, act_layer=nn.ReLU, **layers)
        for_query = partial(ConvNorm, channels, inner, act_layer=nn.ReLU, **layers)
        for_value = partial(nn.Conv2d, low, values, 1, **dd)
        super().__init__(switches, for_key, for_value, for_query=for_query, kept="key")
        self.bins, fuses = tuple(bins), mode == "fusion"
        self.mix = nn.Conv2d(values, out if fuses else channels, 1, **dd)
        act = None if fuses else nn.ReLU
        self.fuse = ConvNorm(self.mix.out_channels + channels, out, act_layer=act, **layers)
        self.dropout = nn.Dropout2d(dropout)
        self.project = projection(form, out, channels, zero_init=zero_init, **dd)
        if form == "published" and zero_init:
            zero_(self.mix)  # as the authors do: the attention is silent at first, the module is not the identity

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A shared projection stands twice in the original's state."""
        return {k: v for k, v in state.items() if self.query is not None or not k.startswith("query.")}

    def forward(self, x: Tensor, low: Tensor | None = None) -> Tensor:
        low = x if low is None else low
        q, keys = self._queries_and_pooled_keys(x, low)
        weights = attention_weights(q, keys, scale=q.shape[-1] ** -0.5, normalization=self.normalization)
        values = keys if self.value is None else self._pooled_values(low)
        left, right, bias = self._halves(x)
        return self._finish_map(x, self._mixed_columns(weights, values, left), right, bias)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, S)`` of the queries over the pooled keys."""
        q, keys = self._queries_and_pooled_keys(x, x)
        some = q if queries is None else q[..., queries, :]
        scale = q.shape[-1] ** -0.5
        return attention_weights(some, keys, scale=scale, normalization=self.normalization, all_queries=q)

    def key_grid(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """None: keys of several pyramid levels form no grid; those of a single level do."""
        return (self.bins[0], self.bins[0]) if len(self.bins) == 1 else None

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, S, E)``."""
        return self._queries_and_pooled_keys(x, x)[1] if self.value is None else self._pooled_values(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, E)``."""
        context = mixed.transpose(2, 3).flatten(1, 2)  # (B, h E, N)
        left, right, bias = self._halves(x)
        return self._finish_map(x, left.flatten(1).to(context.dtype) @ pointwise(self.mix, context), right, bias)

    def _queries_and_pooled_keys(self, x: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        of_queries, of_keys, _ = self._layers
        query = applied(of_queries, x)
        key = query if self.value is None and low is x else applied(of_keys, low)
        return to_tokens(query, self.heads), self._pool(key).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def _pooled_values(self, low: Tensor) -> Tensor:
        """``(B, h, S, E)``: averages commute with the projection, so S positions are projected."""
        with without_autocast(low):
            assert self.value is not None
            return pointwise(self.value, self._pool(low)).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def _pool(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, S)``."""
        return torch.cat([mean.flatten(2) for mean in averages(x, [(b, b) for b in self.bins])], 2)

    def _mixed_columns(self, weights: Tensor, values: Tensor, left: Tensor) -> Tensor:
        """The fusing convolution's part for the context, ``(B, O, N)``."""
        with without_autocast(values):
            # each head's values pass its part of the convolutions: S vectors instead of N
            mix, bias = weights_of(self.mix)
            mix, left = (w.flatten(1).to(values.dtype) for w in (mix, left))
            columns = torch.einsum("bhse,ohe->bhso", values, mix.unflatten(1, (self.heads, -1))) @ left.T
            context = weights.transpose(1, 2).flatten(2) @ columns.flatten(1, 2).to(weights.dtype)  # (B, N, O)
            if bias is not None:
                context = context + left @ bias.to(values.dtype)
        return context.transpose(1, 2)

    def _finish_map(self, x: Tensor, context: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        """From the fusing convolution's part for the context, ``(B, O, N)``, to the output."""
        own = wide(x, right, bias)
        y = self.dropout(self.fuse.after((own + context.unflatten(2, x.shape[2:])).to(x.dtype)))
        return projected(self, x, y)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The fusing convolution's weights for the context and for x, and its bias."""
        weight, bias = weights_of(self.fuse.conv)
        width = weight.shape[1] - x.shape[1]
        return weight[:, :width], weight[:, width:], bias


def _check_shared(channels: int, low: int, switches: Switches) -> None:
    if (switches.share_query_key or not switches.inside) and low != channels:
        cure = "projections='inside', share_query_key=False"
        raise ValueError(f"low_channels: one projection cannot serve {channels} and {low} channels: {cure}")
