"""Queries, keys and values of a block, by the options that the family shares, and what follows the weighted sums.

``projections="inside"`` has one for each, the first two of which may be one (``share_query_key``). ``"around"`` has
none of them: one 1x1 convolution before, ``embed``, gives what serves as all three, and one after, ``project``, leads
back to the block's channels. Where a block has no projection of a kind, its input itself is meant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lookfar._options import divides
from lookfar.blocks._layers import added_gated, max_pool, normed, pooled_size
from lookfar.blocks._reading import weights_of, wide
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._pointwise import convolved_tokens
from lookfar.ops._precision import widened
from lookfar.ops._tiles import few_weights
from lookfar.ops.attention import attention, attention_weights

Projections = Literal["inside", "around"]
Maker = Callable[[], nn.Module]


@dataclass(frozen=True)
class Switches:
    """What studies vary within one block; the options of the same names, see :mod:`lookfar.blocks._texts`.

    Raises:
        ValueError: Queries and keys are to share a projection where there is one for all three.
    """

    heads: int = 1
    normalization: Any = "softmax"  # one of those that the block's op has
    share_query_key: bool = False
    projections: Projections = "inside"
    subsample: int = 1
    subsample_order: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if self.share_query_key and self.projections == "around":
            raise ValueError("share_query_key: with projections='around' there is one projection for all three")

    @property
    def inside(self) -> bool:
        return self.projections == "inside"


def reduced(channels: int, reduction: int, heads: int = 1) -> int:
    """``channels // reduction``, rounded down to what the heads divide, at least 1 a head."""
    if heads > channels:
        raise ValueError(f"heads must be at most {channels=}, got {heads}")
    return heads * max(channels // reduction // heads, 1)


def value_width(value_channels: int | None, default: int, inner: int, switches: Switches) -> int:
    """Channels of the values: those asked for or the default, and those of the keys where one projection is all."""
    if not switches.inside and value_channels not in (None, inner):
        raise ValueError(f"projections='around': values are as wide as keys, {inner}; got {value_channels=}")
    width = (value_channels or default) if switches.inside else inner
    divides("heads", switches.heads, inner_channels=inner, value_channels=width)
    return width


def after_mixing(project: nn.Module | None, y: Tensor, normalization: str) -> Tensor:
    """The 1x1 convolution that follows the weighted sums, if there is one.

    Unnormalised sums are no averages: in half precision they may only become small enough after it.
    """
    if project is None:
        return y
    if normalization != "none":
        return project(y)
    weight, bias = weights_of(project)
    if weight.dim() == 2:  # on tokens (B, N, C)
        return wide(y.transpose(1, 2), weight, bias).transpose(1, 2).to(weight.dtype)
    return wide(y, weight, bias).to(weight.dtype)


def applied(layer: nn.Module | None, x: Tensor) -> Tensor:
    """What ``layer`` gives for x; x itself where there is none."""
    return x if layer is None else layer(x)


class QueryKeyValue(nn.Module):
    """Has the projections, and applies each of them once.

    Args:
        switches: The shared options.
        for_key: Makes the projection of keys, and that of queries; None where a block has neither.
        for_value: Makes the projection of values; None where a block has none.
        for_query: Makes that of queries, where it is another.
        kept: The name of the one that both share.
    """

    embed: nn.Module | None
    query: nn.Module | None
    key: nn.Module | None
    value: nn.Module | None

    def __init__(
        self,
        switches: Switches,
        for_key: Maker | None,
        for_value: Maker | None,
        *,
        for_query: Maker | None = None,
        kept: Literal["query", "key"] = "query",
    ) -> None:
        super().__init__()
        self.heads, self.normalization = switches.heads, switches.normalization
        self.subsample, self.subsample_order = switches.subsample, switches.subsample_order
        for_query = for_query or for_key
        makers = {"embed": None, "query": for_query, "key": for_key, "value": for_value}
        if not switches.inside:
            makers = {"embed": for_key or for_value}
        elif switches.share_query_key:
            makers["key" if kept == "query" else "query"] = None
        for name in ("embed", "query", "key", "value"):
            make = makers.get(name)
            setattr(self, name, make() if make else None)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """A key's bias shifts all logits of a query equally, so softmax cancels it; double: a query's, by columns."""
        name = {"softmax": "key", "double": "query"}.get(self.normalization, "")
        apart = self.query is not None and self.key is not None
        return (f"{name}.bias",) if apart and getattr(getattr(self, name, None), "bias", None) is not None else ()

    def _split(self, t: Tensor) -> Tensor:
        """Part the heads of what a projection gives."""
        return to_tokens(t, self.heads)

    def _apart(self, layer: nn.Module | None, x: Tensor) -> Tensor:
        """What a projection gives, its heads parted."""
        if type(self)._split is QueryKeyValue._split:
            few = few_weights(x, x.shape[0], self.heads, *x.shape[2:], *x.shape[2:])
            return convolved_tokens(layer, x, self.heads, viewed=few)
        return self._split(applied(layer, x))

    @property
    def _layers(self) -> tuple[nn.Module | None, nn.Module | None, nn.Module | None]:
        """What makes queries, keys and values."""
        return self.query or self.key or self.embed, self.key or self.query or self.embed, self.value or self.embed

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, D, *S)``, keys and values ``(B, D, *S / subsample)``: one tensor where one serves several."""
        of_queries, of_keys, of_values = self._layers
        query = applied(of_queries, x)
        key = query if of_keys is of_queries and self.subsample == 1 else self._pooled(of_keys, x)
        return query, key, key if of_values is of_keys else self._pooled(of_values, x)

    def key_grid(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """The grid ``(*S')`` that the keys form on a map ``(*S)``."""
        return pooled_size(size, self.subsample)

    def _pooled(self, layer: nn.Module | None, x: Tensor) -> Tensor:
        """What ``layer`` gives for x, maxima of blocks taken before it or after it."""
        if self.subsample_order == "before":
            return applied(layer, max_pool(x, self.subsample))
        return max_pool(applied(layer, x), self.subsample)

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three with their heads parted, in the layout of the block's op."""
        if self.subsample == 1 and type(self)._maps is QueryKeyValue._maps:  # one at a time, its map is then let go
            layers = self._layers
            made = {layer: self._apart(layer, x) for layer in dict.fromkeys(layers)}
            q, k, v = (made[layer] for layer in layers)
            return q, k, widened(v) if self.normalization == "none" else v
        query, key, value = self._maps(x)
        q = self._split(query)
        k = q if key is query else self._split(key)
        v = k if value is key else self._split(value)
        return q, k, widened(v) if self.normalization == "none" else v  # no average: half precision may overflow


class PairwiseAttention(QueryKeyValue):
    """Attention of every position to every position, then a projection, a norm, a factor and the input, if there.

    y = x + gamma norm(project(sum_j w_ij v_j)). Subclasses set ``scale``, ``project``, ``norm``, ``gamma``.
    """

    def __init__(self, *makers: Any, **options: Any) -> None:
        super().__init__(*makers, **options)
        self.scale = 1.0
        self.project: nn.Module | None = None
        self.norm: nn.Module | None = None
        self.gamma: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(  # no name holds queries, keys and values while the block ends
            x, attention(*self._queries_keys_values(x), scale=self.scale, normalization=self.normalization)
        )

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, M)`` of the flat query positions ``(Q,)``, of all when None."""
        q, k, _ = self._queries_keys_values(x)
        some = q if queries is None else q[..., queries, :]
        return attention_weights(some, k, scale=self.scale, normalization=self.normalization, all_queries=q)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, M, E)``."""
        return self._queries_keys_values(x)[2]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, h, N, E)``."""
        return self._finish_map(x, to_map(mixed, x))

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the weighted sums, when they are a map ``(B, h E, *S)``."""
        y = after_mixing(self.project, y, self.normalization)
        y = normed(self.norm, y)
        return added_gated(self, x, self.gamma, y)
