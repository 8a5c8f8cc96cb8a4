"""Relation networks: boxes exchange features, weighted by similarity and by their relative position.

Traps: angles reach 700 rad and the gate's logarithm amplifies what they lose: the geometry is computed in float32 at
least; widths count the last pixel; a distance is divided by the width of the box that asks.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement, normal_, zero_
from lookfar.blocks._reading import ReadLinear, weights_of
from lookfar.ops._blockwise import over_queries, whole
from lookfar.ops._layout import merge_heads, split_heads
from lookfar.ops._precision import softmax, widened, without_autocast


@block(
    "relation",
    title="Object relation module",
    paper="Relation Networks for Object Detection (CVPR 2018)",
    arxiv="1711.11575",
    formula=(
        r"y_m = x_m + \left[ \sum_j \text{softmax}_j\left(\frac{q_m^\top k_j}{\sqrt{d}} + \log \max(g_{mj},"
        r" 10^{-6})\right) W_V\,x_j \right]_{\text{heads}}",
        r"g_{mj} = \text{ReLU}(w_G^\top e(\text{box}_m, \text{box}_j))",
    ),
    family="pairwise",
    kind="region",
    complexity="n^2 (C + h E)",
    memory="n C",
    verified=(
        "msracver/Relation-Networks-for-Object-Detection@e83e911d:relation_rcnn/symbols/"
        "resnet_v1_101_rcnn_attention_1024_pairwise_position_multi_head_16.py",
    ),
    attends="maps",
    aliases=("relation_network", "relation_module"),
    differences=(
        "The paper's gate is max(0, .) and removes a pair; the code keeps it with a weight of 1e-6, as here.",
        "The authors start with small random weights; here the values' projection is zero at first (zero_init).",
    ),
    author_keys={
        r"query_\d+_(weight|bias)": r"query.\1",
        r"key_\d+_(weight|bias)": r"key.\1",
        r"pair_pos_fc1_\d+_(weight|bias)": r"gate.\1",
        r"linear_out_\d+_(weight|bias)": r"value.\1",
    },
)
class Relation(nn.Module):
    """Adds to every region a weighted sum over all regions of its image.

    y_m = x_m + [sum_j softmax_j(q_m . k_j / sqrt(d) + log max(g_mj, 1e-6)) W_V x_j] of every head,
    g_mj = ReLU(w_G . e(box_m, box_j))

    Values are projected before they are mixed, exactly: n C instead of n h C numbers.

    Args:
        channels: Channels C of a region.
        heads: Parallel attentions, each with its own gate; None is the published 16, or the largest divisor of
            the widths below it.
        inner_channels: Channels of queries and keys, all heads together; C by default.
        position_channels: E, sines and cosines of the geometry, a multiple of 8.
        gated: Boxes gate the weights; off, regions are related by their features alone.

    Shape: ``(B, n, C), (B, n, 4) -> (B, n, C)``, or all without B; boxes are x1, y1, x2, y2 in pixels. Regions of
        several images may be packed into one list, with the number of its image for each: ``images`` (n,).

    Example:
        >>> block = Relation(16)
        >>> block(torch.randn(2, 30, 16), torch.randn(2, 30, 4)).shape
        torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int | None = None,
        inner_channels: int | None = None,
        position_channels: int = 64,
        gated: bool = True,
        share_query_key: bool = False,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        inner = inner_channels or channels
        heads = largest_divisor(16, channels, inner) if heads is None else heads
        divides("heads", heads, channels=channels, inner_channels=inner)
        if position_channels % 8:
            raise ValueError(f"position_channels must be a multiple of 8, got {position_channels}")
        self.channels, self.heads, self.position_channels = channels, heads, position_channels
        self.query = normal_(ReadLinear(channels, inner, **dd))
        self.key = None if share_query_key else normal_(ReadLinear(channels, inner, **dd))
        self.gate = normal_(ReadLinear(position_channels, heads, **dd)) if gated else None
        self.value = normal_(ReadLinear(channels, channels, **dd))
        if zero_init:
            zero_(self.value)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """A key's bias shifts all logits of a region equally, so softmax cancels it."""
        return () if self.key is None else ("key.bias",)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Random features and boxes, as many as a map of this size has positions."""
        n = math.prod(size)
        corner = 60 * torch.rand(batch, n, 2)
        return torch.randn(batch, n, self.channels), torch.cat([corner, corner + 5 + 30 * torch.rand(batch, n, 2)], 2)

    def forward(self, x: Tensor, boxes: Tensor, keys: int | None = None, images: Tensor | None = None) -> Tensor:
        """``keys``: regions that are looked at, the first ones; the others only look. All by default.

        ``images`` ``(B, n)``, or without B: regions of different numbers do not see each other.
        """
        if x.dim() == 2:
            return self.forward(x[None], boxes[None], keys, None if images is None else images[None])[0]
        with without_autocast(x):
            q, k, v = self._projected(x, keys)
            own = _placed(boxes, images)[:, None].expand(-1, self.heads, -1, -1)
            wide = torch.cat([q, own.to(q.dtype)], -1)
            others = own[:, 0, : k.shape[2]].to(q.dtype)
            E = self.position_channels
            numbers = k.shape[2] * (1 + -(-4 * E // self.heads))  # of a query and head; all heads share an embedding
            y = over_queries(_attended, wide, k, v, others, *self._gate(), keys=numbers, sizes=[E])
        return x + merge_heads(y).to(x.dtype)

    def maps(self, x: Tensor, boxes: Tensor, keys: int | None = None, images: Tensor | None = None) -> Tensor:
        """Weights of the regions over those looked at, ``(B, h, n, M)``."""
        with without_autocast(x):
            q, k, _ = self._projected(x, keys)
            boxes = _placed(boxes, images).to(q.dtype)
            return _weights(q, k, boxes, boxes[:, : k.shape[2]], *self._gate(), self.position_channels)

    def _projected(self, x: Tensor, keys: int | None) -> tuple[Tensor, Tensor, Tensor]:
        seen = x if keys is None else x[:, :keys]
        q, v = self._linear(self.query, x), self._linear(self.value, seen)
        if self.key is not None:
            return q, self._linear(self.key, seen), v
        return q, q if keys is None else q[:, :, :keys], v

    def _gate(self) -> tuple[Tensor, ...]:
        return () if self.gate is None else tuple(widened(p) for p in weights_of(self.gate) if p is not None)

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        weight, bias = weights_of(layer)
        assert bias is not None
        return split_heads(nn.functional.linear(widened(x), widened(weight), widened(bias)), self.heads)


@whole(lambda wide, k, v, *_: (*wide.shape[:3], v.shape[3]))
def _attended(wide: Tensor, k: Tensor, v: Tensor, others: Tensor, *gate: Any) -> Tensor:
    q, own = wide.tensor_split([k.shape[3]], 3)
    return _weights(q, k, own[:, 0], others, *gate) @ v


def _weights(q: Tensor, k: Tensor, own: Tensor, others: Tensor, *gate: Any) -> Tensor:
    """``gate``: weight and bias where boxes gate, then E."""
    *linear, E = gate
    logits = q.shape[-1] ** -0.5 * q @ k.transpose(2, 3)
    if linear:
        gates = nn.functional.linear(embedding(own[..., :4], others[..., :4], E), *linear).relu()
        logits = logits + gates.clamp_min(1e-6).log().permute(0, 3, 1, 2)
    if own.shape[-1] == 4:
        return softmax(logits)
    together = (own[:, :, None, 4] == others[:, None, :, 4])[:, None]
    # a region whose image has no key takes nothing
    return logits.masked_fill(~together, torch.finfo(logits.dtype).min).softmax(3) * together


def _placed(boxes: Tensor, images: Tensor | None) -> Tensor:
    """Boxes, with the numbers of their images where these are given, ``(B, n, 4 or 5)``."""
    boxes = widened(boxes)
    return boxes if images is None else torch.cat([boxes, images.to(boxes)[..., None]], -1)


def geometry(boxes: Tensor, others: Tensor) -> Tensor:
    """Logarithms of distances and ratios, ``(B, n, 4), (B, M, 4) -> (B, n, M, 4)``, in sizes of the first boxes."""
    size, other_size = (b[..., 2:] - b[..., :2] + 1 for b in (boxes, others))
    centre, other_centre = ((b[..., 2:] + b[..., :2]) / 2 for b in (boxes, others))
    distance = (centre[:, :, None] - other_centre[:, None]).abs() / size[:, :, None]
    ratio = size[:, :, None] / other_size[:, None]
    return torch.cat([distance.clamp_min(1e-3), ratio], 3).log()


def embedding(boxes: Tensor, others: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of each of the four numbers: ``(B, n, M, E)``."""
    waves = channels // 8
    frequency = 100 / 1000 ** (torch.arange(waves, device=boxes.device, dtype=boxes.dtype) / waves)
    angles = geometry(boxes, others)[..., None] * frequency
    return torch.cat([angles.sin(), angles.cos()], 4).flatten(3)
