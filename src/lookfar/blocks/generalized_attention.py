"""Generalized attention: Transformer attention as a sum of four energies, each of which can be left out.

Traps: energies are not divided by sqrt(d); coordinates need float32; sub-sampling is plain striding, not pooling. The
code of mmcv is wrong for query content and position without the position-only term; the blocks here are right there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Natural
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement, added, gate, gated, zero_
from lookfar.blocks._projections import Projections, QueryKeyValue, Switches, reduced
from lookfar.blocks._reading import ReadLinear, weights_of
from lookfar.ops._autograd import compiled_for, traced
from lookfar.ops._blockwise import over_queries
from lookfar.ops._layout import match_format, to_map, to_tokens
from lookfar.ops._precision import factor, softmax, widened, without_autocast
from lookfar.ops.embedded_gaussian import embedded_gaussian, embedded_gaussian_weights

NARROW = 2  # energies of rows and columns beside a query, times its channels: memory stays linear in the positions


@block(
    "generalized_attention",
    title="Generalized attention (four terms)",
    paper="An Empirical Study of Spatial Attention Mechanisms in Deep Networks (ICCV 2019)",
    arxiv="1904.05873",
    formula=(
        r"y_i = x_i + \gamma\,W \sum_j \text{softmax}_j(q_i^\top k_j + q_i^\top p_{ij} + u^\top k_j + r^\top"
        r" p_{ij})\,v_j",
    ),
    family="pairwise",
    complexity="N M C, M = N / kv_stride^2; key content alone M C",
    memory="N C",
    verified=("open-mmlab/mmcv@a8073c74:mmcv/cnn/bricks/generalized_attention.py",),
    attends="weights",
    aliases=("empirical_attention", "gen_attention"),
    differences=(
        "mmcv's result for terms 0100, 1100, 0110 and 1110 is wrong or an error; here it is that of the formula.",
        "The default of mmcv is 9 heads, the published models have 8 (the default).",
        "With a spatial_range mmcv takes a strided query's number for its place and gives all queries of 0010 the "
        "range of the first; here every query has its own.",
    ),
    author_keys={
        "query_conv": "query",
        "key_conv": "key",
        "value_conv": "value",
        "appr_geom_fc_x": "columns",
        "appr_geom_fc_y": "rows",
        "appr_bias": "key_vector",
        "geom_bias": "position_vector",
        "proj_conv": "project",
    },
)
class GeneralizedAttention(QueryKeyValue):
    """Attention whose energy is the sum of up to four terms, of contents and of relative positions.

    y_i = x_i + gamma W sum_j softmax_j(q_i . k_j + q_i . p_ij + u . k_j + r . p_ij) v_j

    p_ij is a learned function of the rows' distance plus one of the columns'.

    Args:
        terms: Which of the four are on, in this order, as in ``"0011"``.
        heads: h, of ``channels // heads`` channels each; None is the published 8, or one a channel where there are
            fewer.
        q_stride: Queries at every such position; the result is resized.
        kv_stride: Keys and values at every such position.
        share_query_key: One projection for queries and keys, where the terms have both.
        projections: ``inside`` has queries, keys and values; ``around`` has one before W, whose result is all three.
            Positions keep theirs.
        position_channels: E, sines and cosines of a distance, a multiple of 4; C, rounded down, by default.
        position_magnitude: Factor on distances.
        spatial_range: Keys further than this along an axis are left out; None sees all.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: Terms that are no four bits, heads or widths that do not fit.

    Example:
        >>> block = GeneralizedAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        terms: str = "1111",
        heads: int | None = None,
        q_stride: int = 1,
        kv_stride: int = 2,
        share_query_key: bool = False,
        projections: Projections = "inside",
        position_channels: int | None = None,
        position_magnitude: float = 1.0,
        spatial_range: Natural | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        heads = min(8, channels) if heads is None else heads
        inner = reduced(channels, 1, heads)
        pair, query_position, key, position = (bit == "1" for bit in _checked(terms))
        asks, answers = pair or query_position, pair or key  # contents of queries, of keys
        if share_query_key and not (asks and answers):
            raise ValueError(f"share_query_key: {terms=} lacks the contents of queries or keys")
        conv = partial(nn.Conv2d, channels, inner, 1, bias=False, **dd)
        super().__init__(Switches(heads, "softmax", share_query_key, projections), conv, conv)
        self.query, self.key = self.query if asks else None, self.key if answers else None
        self.pair, self.query_position, self.asks, self.answers = pair, query_position, asks, answers
        self.q_stride, self.kv_stride, self.spatial_range = q_stride, kv_stride, spatial_range
        width = position_channels or max(channels // 4 * 4, 4)
        self._add_vectors(inner, width, position_magnitude, key, position, **dd)
        self.project = zero_(nn.Conv2d(inner, channels, 1, **dd))
        self.gamma = gate(self, zero_init, **dd)
        for layer in (self.embed, self.query, self.key, self.value, self.columns, self.rows, self.project):
            if layer is not None:
                nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
        if q_stride > 1:
            self.attends = "maps"

    def _add_vectors(self, inner: int, width: int, magnitude: float, key: bool, position: bool, **dd: Any) -> None:
        """What positions are compared by, and what is asked of all keys and of all positions alike."""
        if width % 4:
            raise ValueError(f"position_channels must be a multiple of 4, got {width}")

        def vector() -> nn.Parameter:
            bound = (2 * (inner // self.heads)) ** -0.5
            return nn.Parameter(nn.init.uniform_(torch.empty(inner, **dd), -bound, bound))

        self.position_channels, self.position_magnitude = width, magnitude
        placed = self.query_position or position
        self.columns = ReadLinear(width // 2, inner, bias=False, **dd) if placed else None
        self.rows = ReadLinear(width // 2, inner, bias=False, **dd) if placed else None
        self.key_vector = vector() if key else None
        self.position_vector = vector() if position else None
        if placed:
            self.position_dependent = "two of its terms are learned functions of signed distances"

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """mmcv keeps the mask of its spatial range among the parameters."""
        return {k: v for k, v in state.items() if k != "local_constraint_map"}

    def forward(self, x: Tensor) -> Tensor:
        alone = not self.asks and self.columns is None and self.spatial_range is None
        with without_autocast(x):
            y = self._of_keys_alone(x) if alone else self._mixed(x)
        if alone:  # one vector for all positions
            y = self.project(y.flatten(1)[:, :, None, None].to(x.dtype))
            return match_format(added(self, x, gated(self.gamma, y).to(x.dtype)), x)
        return self.finish(x, y)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, M)`` of the flat query positions ``(Q,)``, of all when None; M keys after striding."""
        with without_autocast(x):
            q, r, k, _ = self._tokens(x)
            at = torch.arange(q.shape[2], device=x.device)
            at = at if queries is None else at[queries]
            return self._weights(q[:, :, at], r[:, :, at], k, at, x.shape[2:])

    def key_grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid ``(H', W')`` that the keys form on a map ``(H, W)``."""
        return tuple(-(-n // self.kv_stride) for n in size)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, M, d)``."""
        with without_autocast(x):
            return widened(self._tokens(x)[3])

    def maps(self, x: Tensor) -> Tensor:
        """All weights, ``(B, h, Q, M)``, where queries are strided."""
        return self.attention(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, d)``."""
        like = x[:, :, :: self.q_stride, :: self.q_stride]
        y = self.project(to_map(mixed, like).to(x.dtype))
        if self.q_stride > 1:
            y = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)
        return match_format(added(self, x, gated(self.gamma, y).to(x.dtype)), x)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What asks keys, what asks positions, keys, values, ``(B, h, N or M, d)`` each.

        All but the values are in float32 at least.
        """
        asking = x[:, :, :: self.q_stride, :: self.q_stride]
        seen = x[:, :, :: self.kv_stride, :: self.kv_stride]
        v = self._projected(self.value or self.embed, seen)
        if not self.answers:
            k = torch.zeros_like(widened(v))
        else:
            k = widened(v if self.value is None else self._projected(self.key or self.query, seen))
        if self.asks:
            content = widened(self._projected(self.query or self.embed, asking))
        else:
            d = v.shape[3]
            content = k.new_zeros(x.shape[0], self.heads, asking.shape[2] * asking.shape[3], d)
        q = content if self.pair else torch.zeros_like(content)
        r = content if self.query_position else torch.zeros_like(content)
        q, r = (
            t if vector is None else t + widened(vector).view(self.heads, 1, -1)
            for t, vector in ((q, self.key_vector), (r, self.position_vector))
        )
        return q, r, k, v

    def _projected(self, conv: nn.Module | None, x: Tensor) -> Tensor:
        return to_tokens(F.conv2d(x, weights_of(conv)[0].to(x.dtype)), self.heads)

    def _mixed(self, x: Tensor) -> Tensor:
        """The weighted sums ``(B, h, N, d)``, a block of queries at a time where keys are out of range."""
        q, r, k, v = self._tokens(x)
        N, size = q.shape[2], x.shape[2:]
        if self.columns is None and self.spatial_range is None:
            return embedded_gaussian(q, k, v)
        if self._has_narrow_positions(size, q.shape[3]):
            return embedded_gaussian(*self._with_positions(q, r, k, size), v)
        at = torch.arange(N, device=x.device)[:, None]

        def some(q: Tensor, r: Tensor, at: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._weights(q, r, k, at[:, 0], size).to(v.dtype) @ v

        return over_queries(some, (q, r, at), k, factor(v), keys=k.shape[2])

    def _has_narrow_positions(self, size: Any, width: int) -> bool:
        """Whether a query's energies of rows and columns are few enough to stand beside it, which is faster."""
        bound = traced() and not compiled_for(*size)  # to maps of several rows and columns
        return self.spatial_range is None and not bound and sum(self.key_grid(size)) <= NARROW * width

    def _with_positions(self, q: Tensor, r: Tensor, k: Tensor, size: Any) -> tuple[Tensor, Tensor]:
        """Queries ``(B, h, N, d + H' + W' - 2)`` and keys of that width, whose products are the logits.

        Keys say in which of the H' rows and W' columns of their grid they are, by a one among zeros, and queries have
        their energies of all rows and columns, less those of the first, which no key then names: a softmax does not
        see what is the same for all keys.
        """
        assert self.rows is not None
        assert self.columns is not None
        asking, answering = [-(-n // self.q_stride) for n in size], self.key_grid(size)
        r = r.unflatten(2, asking)
        queries, keys = [q], [k]
        for axis, layer in enumerate((self.rows, self.columns)):
            n, m = asking[axis], answering[axis]
            index = self.q_stride * torch.arange(n, device=q.device)[:, None] + size[axis] - 1
            index = index - self.kv_stride * torch.arange(m, device=q.device)
            vectors = self._positions(size[axis], layer, q)[index]  # (n, m, h, d)
            energies = torch.einsum(f"bhyxd,{'yx'[axis]}jhd->bhyxj", r, vectors)
            queries.append((energies[..., 1:] - energies[..., :1]).flatten(2, 3))
            one = torch.eye(m, dtype=q.dtype, device=q.device)[:, 1:]
            one = one[:, None] if axis == 0 else one
            keys.append(one.expand(*answering, m - 1).flatten(0, 1).expand(*k.shape[:3], m - 1))
        return torch.cat(queries, 3), torch.cat(keys, 3)

    def _of_keys_alone(self, x: Tensor) -> Tensor:
        """The weighted sums ``(B, h, d)`` where all queries have one map: what is linear acts on few vectors.

        u . (W x) = (u W) . x is a product for each head and key, and sum_j a_j V x_j = V sum_j a_j x_j.
        """
        assert self.key_vector is not None
        seen = widened(x[:, :, :: self.kv_stride, :: self.kv_stride])
        of_values = self.value or self.embed
        of_keys = of_values if self.value is None else self.key or self.query
        keys, values = (
            widened(weights_of(layer)[0]).reshape(self.heads, -1, x.shape[1]) for layer in (of_keys, of_values)
        )  # (h, d, C)
        asked = widened(self.key_vector).view(self.heads, 1, -1) @ keys
        weights = F.conv2d(seen, asked.transpose(1, 2)[..., None]).flatten(2).softmax(-1)  # (B, h, M)
        mean = weights @ seen.flatten(2).transpose(1, 2)  # (B, h, C)
        # head by head for all images: broadcast over them, the weights would be copied for each
        return (values @ mean.permute(1, 2, 0)).permute(2, 0, 1)

    def _weights(self, q: Tensor, r: Tensor, k: Tensor, at: Tensor, size: Any) -> Tensor:
        """``(B, h, Q, M)`` of the queries at the flat positions ``at`` of their grid."""
        if self.columns is None and self.spatial_range is None:
            return embedded_gaussian_weights(q, k)
        (H, W), s, t = size, self.q_stride, self.kv_stride
        across = (W + s - 1) // s
        energies, seen = [], []
        down = at // across  # the remainder of a tensor by a free size has no ONNX form
        for place, length, layer in ((down, H, self.rows), (at - down * across, W, self.columns)):
            own, keys = place * s, torch.arange((length + t - 1) // t, device=q.device)
            if layer is not None:  # the vectors of distinct distances, then each pair's own
                found = torch.einsum("bhqd,lhd->bhql", r, self._positions(length, layer, q))
                index = own[:, None] - t * keys + length - 1
                energies.append(found.gather(3, index.expand(*found.shape[:2], -1, -1)))
            if self.spatial_range is not None:
                first = (own - self.spatial_range).div(t, rounding_mode="floor")
                last = (own + self.spatial_range + 1).div(t, rounding_mode="floor")
                seen.append((keys >= first[:, None]) & (keys <= last[:, None]))
        logits = q @ k.transpose(2, 3)
        grid = ((H + t - 1) // t, (W + t - 1) // t)
        if energies:
            logits = logits + (energies[0][..., None] + energies[1][..., None, :]).flatten(3)
        if seen:
            near = (seen[0][:, :, None] & seen[1][:, None]).reshape(-1, grid[0] * grid[1])
            logits = logits.masked_fill(~near, -torch.inf)
        return softmax(logits)

    def _positions(self, length: int, layer: nn.Linear, like: Tensor) -> Tensor:
        """Learned vectors of the distances 1 - length .. length - 1: ``(2 length - 1, h, d)``."""
        waves = self.position_channels // 4
        distance = torch.arange(1 - length, length, device=like.device).to(like.dtype)
        slow = 1000 ** (torch.arange(waves, device=like.device, dtype=like.dtype) / waves)
        angles = self.position_magnitude * distance[:, None] / slow
        found = F.linear(torch.cat([angles.sin(), angles.cos()], 1), widened(weights_of(layer)[0])) / 2**0.5
        return found.unflatten(1, (self.heads, -1))


def _checked(terms: str) -> str:
    if len(terms) != 4 or set(terms) - set("01") or "1" not in terms:
        raise ValueError(f'terms must be four bits, at least one of them 1, as in "0011", got {terms!r}')
    return terms
