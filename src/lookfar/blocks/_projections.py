"""Queries, keys and values of a block, by the options that the family shares.

``projections="inside"`` has one for each, the first two of which may be one (``share_query_key``). ``"around"`` has
none of them: one 1x1 convolution before, ``embed``, gives what serves as all three, and one after, ``project``, leads
back to the block's channels.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

from torch import Tensor, nn

from lookfar.blocks._layers import wide
from lookfar.ops._layout import to_tokens
from lookfar.ops._precision import widened
from lookfar.ops.attention import attention, attention_weights

Projections = Literal["inside", "around"]


def check_projections(projections: str, share_query_key: bool | None = False) -> None:
    if projections not in ("inside", "around"):
        raise ValueError(f"projections is inside or around, got {projections!r}")
    if share_query_key and projections == "around":
        raise ValueError("share_query_key: with projections='around' there is one projection for all three")


def check_heads(heads: int, **widths: int) -> None:
    if heads < 1 or any(width % heads for width in widths.values()):
        got = ", ".join(f"{name}={width}" for name, width in {"heads": heads, **widths}.items())
        raise ValueError(f"heads must divide the channels, got {got}")


def reduced(channels: int, reduction: int, heads: int = 1) -> int:
    """``channels // reduction``, rounded down to what the heads divide, at least 1 a head."""
    check_heads(heads)
    return heads * max(channels // reduction // heads, 1)


def value_width(value_channels: int | None, default: int, inner: int, projections: str) -> int:
    """Channels of the values: those asked for or the default, and those of the keys where one projection is all."""
    if projections == "inside":
        return value_channels or default
    if value_channels not in (None, inner):
        raise ValueError(f"projections='around': values are as wide as keys, {inner}; got {value_channels=}")
    return inner


def after_mixing(project: nn.Module | None, y: Tensor, normalization: str) -> Tensor:
    """The 1x1 convolution that follows the weighted sums, if there is one.

    Unnormalised sums are no averages: in half precision they may only become small enough after it.
    """
    if project is None:
        return y
    if normalization != "none":
        return project(y)
    weight, bias = cast(Tensor, project.weight), cast("Tensor | None", project.bias)
    if isinstance(project, nn.Linear):  # on tokens (B, N, C)
        return wide(y.transpose(1, 2), weight, bias).transpose(1, 2).to(weight.dtype)
    return wide(y, weight, bias).to(weight.dtype)


class QueryKeyValue(nn.Module):
    """Has the projections, and applies each of them once. Subclasses say with :meth:`_split` how heads part."""

    heads: int = 1
    normalization: Any = "softmax"  # one of those that the block's op has
    embed: nn.Module | None
    query: nn.Module | None
    key: nn.Module | None
    value: nn.Module | None

    def _add_projections(
        self,
        for_key: Callable[[], nn.Module],
        for_value: Callable[[], nn.Module],
        *,
        for_query: Callable[[], nn.Module] | None = None,
        share_query_key: bool = False,
        projections: Projections = "inside",
        kept: Literal["query", "key"] = "query",
    ) -> None:
        """Build them, queries as keys unless told otherwise; ``kept`` is the name of the one that both share."""
        check_projections(projections, share_query_key)
        inside = projections == "inside"
        self.embed = None if inside else for_key()
        makers = {"query": for_query or for_key, "key": for_key}
        for name in sorted(makers, key=lambda name: name != kept):  # the one that is kept is built first
            wanted = inside and (name == kept or not share_query_key)
            setattr(self, name, makers[name]() if wanted else None)
        self.value = for_value() if inside else None

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """What a key bias adds to all logits of a query softmax does not see; nor, by columns, double a query's."""
        name = {"softmax": "key", "double": "query"}.get(self.normalization, "")
        apart = self.query is not None and self.key is not None
        return (f"{name}.bias",) if apart and getattr(getattr(self, name, None), "bias", None) is not None else ()

    def _split(self, t: Tensor) -> Tensor:
        return to_tokens(t, self.heads)

    @property
    def _projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """What makes queries, keys and values."""
        of_queries, of_keys = self.query or self.key or self.embed, self.key or self.query or self.embed
        return cast(nn.Module, of_queries), cast(nn.Module, of_keys), cast(nn.Module, self.value or self.embed)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        of_queries, of_keys, _ = self._projections
        q = self._split(of_queries(x))
        return q, q if of_keys is of_queries else self._split(of_keys(x))

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self._queries_and_keys(x)
        return q, k, self._wide_enough(q) if self.value is None else self._values(x)

    def _values(self, x: Tensor) -> Tensor:
        return self._wide_enough(self._split(self._projections[2](x)))

    def _wide_enough(self, v: Tensor) -> Tensor:
        # what is no average may leave the range of half precision
        return widened(v) if self.normalization == "none" else v


class PairwiseAttention(QueryKeyValue):
    """Attention of every position to every position: all of a block but its projections and what it does with the sums.

    Subclasses define ``finish(x, mixed)``.
    """

    scale: float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self._mixed(x))

    def _mixed(self, x: Tensor) -> Tensor:
        """The weighted sums ``(B, h, N, E)`` of the values for every position."""
        return attention(*self._queries_keys_values(x), scale=self.scale, normalization=self.normalization)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None."""
        q, k = self._queries_and_keys(x)
        some = q if queries is None else q[..., queries, :]
        return attention_weights(some, k, scale=self.scale, normalization=self.normalization, all_queries=q)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, E)``."""
        return self._values(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the input and the weighted sums ``(B, h, N, E)``."""
        raise NotImplementedError
