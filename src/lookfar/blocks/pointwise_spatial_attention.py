"""PSANet: every position predicts, from its own feature alone, where it gathers from and whom it gives to.

Traps: the mask is as large as training wants it; on maps that it does not cover, offsets outside have logit 0, which
changes the effective field in silence. The shrunk map has (H - 1) // s + 1 rows, its corners stay.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Positive
from lookfar.blocks._base import block, block_info
from lookfar.blocks._layers import ConvNorm, Form, Norm, Placement, projected, projection
from lookfar.blocks._reading import weights_of
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._precision import widened
from lookfar.ops.attention import attention, attention_weights
from lookfar.ops.pointwise_spatial import Direction, Normalization, pointwise_spatial, pointwise_spatial_weights

Mode = Literal["collect", "distribute", "both"]
Variant = Literal["authors", "mmseg"]


class Branch(nn.Module):
    """One direction: values, and a map over offsets (``compact``: over positions) that each of them predicts."""

    def __init__(
        self,
        channels: int,
        inner: int,
        mask_size: tuple[int, int],
        direction: Direction,
        compact: bool,
        normalization: Normalization,
        norm: Norm,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.mask_size, self.compact = mask_size, compact
        self.direction: Direction = direction
        self.normalization: Normalization = normalization
        self.value = ConvNorm(channels, inner, norm_layer=norm, act_layer=nn.ReLU, **dd)
        self.hidden = ConvNorm(inner, inner, norm_layer=norm, act_layer=nn.ReLU, **dd)
        self.mask = nn.Conv2d(inner, mask_size[0] * mask_size[1], 1, bias=False, **dd)

    def forward(self, v: Tensor) -> Tensor:
        """The weighted sums of the values ``(B, D, H, W)``."""
        a, m = self.hidden(v), weights_of(self.mask)[0].flatten(1)
        if not self.compact:
            return pointwise_spatial(
                a, m.unflatten(0, self.mask_size), v, direction=self.direction, normalization=self.normalization
            )
        # a product of two matrices: attention, in which one of them is a parameter
        q, k, v_, scale = *self._queries_and_keys(a), to_tokens(v), 1.0
        if self.normalization == "none":  # the op divides by the number of keys
            scale = float(k.shape[2])
            q, k, v_ = widened(q), widened(k), widened(v_)
        return to_map(attention(q, k, v_, scale=scale, normalization=self.normalization), v).to(v.dtype)

    def weights(self, v: Tensor, queries: Tensor | None) -> Tensor:
        """``(B, Q, N)``."""
        a, m = self.hidden(v), weights_of(self.mask)[0].flatten(1)
        if not self.compact:
            return pointwise_spatial_weights(
                a, m.unflatten(0, self.mask_size), direction=self.direction, normalization=self.normalization,
                queries=queries,
            )  # fmt: skip
        q, k = self._queries_and_keys(a)
        q = q if queries is None else q[..., queries, :]
        scale = float(k.shape[2]) if self.normalization == "none" else 1.0
        return attention_weights(q, k, scale=scale, normalization=self.normalization)[:, 0]

    def _queries_and_keys(self, a: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(a.shape[2:]) != self.mask_size:
            raise ValueError(
                f"a compact mask fits maps of one size: mask_size={self.mask_size}, this (shrunk) map is "
                f"{tuple(a.shape[2:])}; compact=False takes any"
            )
        t = to_tokens(a)
        m = weights_of(self.mask)[0].flatten(1).to(t.dtype).expand(t.shape[0], 1, -1, -1)
        return (t, m) if self.direction == "collect" else (m, t)


_MMSEG = {r"attention\.1": "first.mask", r"attention_p\.1": "second.mask"}


@block(
    "pointwise_spatial_attention",
    title="Point-wise spatial attention (PSANet)",
    paper="PSANet: Point-wise Spatial Attention Network for Scene Parsing (ECCV 2018)",
    formula=(
        r"y = x + P\,[\,x,\; \text{up}(\text{act}(\text{norm}(W\,[\,z,\; z'\,])))\,]",
        r"z_j = \sum_i \text{softmax}_i(m_{i - j}^\top a_j)\,r_i \quad \text{(collect)}",
        r"z'_j = \sum_i \text{softmax}_i({m'}_{j - i}^\top a'_i)\,r'_i \quad \text{(distribute)}",
    ),
    family="pairwise",
    complexity="N^2 D",
    memory="N D",
    verified=(
        "hszhao/semseg@4f274c3f:model/psanet.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/psa_head.py",
    ),
    attends="maps",
    aliases=("psa", "psanet"),
    differences=(
        "The original concatenates its context to its input; here both pass a 1x1 convolution that starts at zero and "
        'are added to the input. form="published" gives the concatenation.',
        "The original takes maps of 1 + s n rows alone; here the context is resized to any map.",
        "mmsegmentation (variant='mmseg') pads the context by a border of one before it is resized, shrinks to H // s "
        "rows unless s divides neither axis, and exchanges the two compact single directions.",
    ),
    author_keys={
        r"reduce\.0": "first.value.conv",
        r"reduce\.1": "first.value.norm",
        r"reduce\.conv": "first.value.conv",
        r"reduce\.(bn|gn|in)": "first.value.norm",
        r"attention\.0": "first.hidden.conv",
        r"attention\.1": "first.hidden.norm",
        r"attention\.3": "first.mask",
        r"attention\.0\.conv": "first.hidden.conv",
        r"attention\.0\.(bn|gn|in)": "first.hidden.norm",
        r"reduce_p\.0": "second.value.conv",
        r"reduce_p\.1": "second.value.norm",
        r"reduce_p\.conv": "second.value.conv",
        r"reduce_p\.(bn|gn|in)": "second.value.norm",
        r"attention_p\.0": "second.hidden.conv",
        r"attention_p\.1": "second.hidden.norm",
        r"attention_p\.3": "second.mask",
        r"attention_p\.0\.conv": "second.hidden.conv",
        r"attention_p\.0\.(bn|gn|in)": "second.hidden.norm",
        r"proj\.(0|conv)": "mix.conv",
        r"proj\.(1|bn|gn|in)": "mix.norm",
    },
)
class PointwiseSpatialAttention(nn.Module):
    """Weights over relative positions, predicted by each position from itself, no query meets a key.

    y = x + P [x, up(act(norm(W [z, z'])))], z_j = sum_i softmax_i(m_(i - j) . a_j) r_i (collect), and
    z'_j = sum_i softmax_i(m'_(j - i) . a'_i) r'_i (distribute)

    Both are computed on a shrunk map. The map over all offsets, (2 H - 1)(2 W - 1) numbers a position, is never built.

    Args:
        inner_channels: D, of r and a; a quarter of ``channels`` by default.
        mode: ``collect``, ``distribute`` or ``both``.
        mask_size: Rows and columns of offsets; outside of them the logit is 0. ``compact``: size of the shrunk map.
        compact: A logit for every absolute position instead; takes maps of one size.
        shrink_factor: s, the map is resized to (H - 1) // s + 1 rows before.
        normalization: ``softmax``, or ``none``: the logits are the weights.
        normalization_factor: Divides the weighted sums; None is the number of offsets of the mask.
        variant: Whose rules of sizes and borders, the ``authors``' or ``mmseg``'s; the latter ask whether s divides the
            map, so that a shrunk map is exported for sizes that answer alike.
        norm_layer: After every convolution but the masks'.
        form: ``"block"`` keeps the shape; ``"published"`` gives x and the context, ``(B, 2 C, H, W)``.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown choice; in ``forward`` a map that a compact mask does not fit.

    Example:
        >>> block = PointwiseSpatialAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        mode: Mode = "both",
        mask_size: tuple[int, int] = (59, 59),
        compact: bool = False,
        shrink_factor: int = 2,
        normalization: Normalization = "softmax",
        normalization_factor: Positive | None = 1.0,
        variant: Variant = "authors",
        norm_layer: Norm = nn.BatchNorm2d,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 4, 1)
        size = (mask_size[0], mask_size[1])
        directions: tuple[Direction, ...] = ("collect", "distribute") if mode == "both" else (mode,)
        if variant == "mmseg" and compact and mode != "both":
            directions = ("distribute",) if mode == "collect" else ("collect",)
        branches = [Branch(channels, inner, size, d, compact, normalization, norm_layer, **dd) for d in directions]
        self.shrink_factor, self.variant = shrink_factor, variant
        self.factor = 1 / (size[0] * size[1] if normalization_factor is None else normalization_factor)
        self.first = branches[0]
        self.second = branches[1] if mode == "both" else None
        self.mix = ConvNorm(inner * len(branches), channels, norm_layer=norm_layer, act_layer=nn.ReLU, **dd)
        self.project = projection(form, 2 * channels, channels, zero_init=zero_init, **dd)
        if shrink_factor == 1:
            self.attends = "weights"

    @property
    def author_keys(self) -> Mapping[str, str]:
        """mmsegmentation's mask has the name that a norm has in the authors' code."""
        keys = block_info(self).author_keys
        return keys if self.variant == "authors" else {**keys, **_MMSEG}

    def forward(self, x: Tensor) -> Tensor:
        mixed = [branch(v) for branch, v in zip(self._branches(), self._values(x))]
        return self._finish_map(x, torch.cat(mixed, 1))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, directions, Q, N)`` over the (shrunk) map, of its flat positions ``(Q,)``, of all when None."""
        found = [branch.weights(v, queries) for branch, v in zip(self._branches(), self._values(x))]
        return self.factor * torch.stack(found, 1)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, directions, N, D)``."""
        return torch.cat([to_tokens(v) for v in self._values(x)], 1)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, directions, N, D)``."""
        mixed = mixed.transpose(2, 3).flatten(1, 2).unflatten(2, self._size(x))
        return self._finish_map(x, mixed.to(x.dtype) / self.factor)

    def maps(self, x: Tensor) -> Tensor:
        """All weights over the (shrunk) map, ``(B, directions, N, N)``."""
        return self.attention(x)

    @property
    def map_kinds(self) -> tuple[str, ...]:
        """The directions, in the order of the maps."""
        return tuple(branch.direction for branch in self._branches())

    def _branches(self) -> list[Branch]:
        return [self.first] if self.second is None else [self.first, self.second]

    def _corners(self, x: Tensor) -> bool:
        """Whether resizing leaves the corners in their place."""
        H, W, s = x.shape[2], x.shape[3], self.shrink_factor
        if self.variant == "authors" or (H % s and W % s):  # noqa: SIM103
            return True  # a literal: resizing takes no symbol of a traced size
        return False

    def _size(self, x: Tensor) -> tuple[int, int]:
        H, W, s = x.shape[2], x.shape[3], self.shrink_factor
        if self._corners(x):
            return (H - 1) // s + 1, (W - 1) // s + 1
        return max(H // s, 1), max(W // s, 1)

    def _values(self, x: Tensor) -> list[Tensor]:
        found = [branch.value(x) for branch in self._branches()]
        if self.shrink_factor == 1:
            return found
        corners = self._corners(x)
        return [F.interpolate(v, self._size(x), mode="bilinear", align_corners=corners) for v in found]

    def _finish_map(self, x: Tensor, mixed: Tensor) -> Tensor:
        mixed, bordered = self.factor * mixed, self.variant == "mmseg"
        y = self.mix(F.pad(mixed, (1, 1, 1, 1)) if bordered else mixed)
        if self.shrink_factor != 1 or bordered:
            y = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=self._corners(x))
        y = torch.cat([x, y.to(x.dtype)], 1)
        return projected(self, x, y)
