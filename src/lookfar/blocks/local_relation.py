"""LR-Net: a convolution whose weights are composed from the pixels that they join, and from where these stand.

Traps: the offsets of the geometry prior are integers, x before y; what is outside the map has the similarity -100
before the prior is added, not minus infinity: where -(q - k)^2 falls below that, it takes weight and gives nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.blocks._projections import after_mixing
from lookfar.ops._layout import match_format
from lookfar.ops._normalization import RowNormalization
from lookfar.ops._precision import widened
from lookfar.ops._window import Similarity
from lookfar.ops.neighborhood import neighborhood, neighborhood_rows, neighborhood_weights

OUTSIDE = -100.0


@block(
    "local_relation",
    title="Local relation layer (LR-Net)",
    paper="Local Relation Networks for Image Recognition (ICCV 2019)",
    arxiv="1904.11491",
    formula=(
        r"y_i = W_{\text{out}} \left[ \sum_{j \in \text{window}(i)} \text{softmax}_j(s \cdot"
        r" \text{sim}(q_{ig}, k_{jg}) + \text{prior}_g(j - i))\,x_{jg} \right]_g",
    ),
    family="local",
    kind="layer",
    complexity="N k^2 (G + C)",
    memory="N (C + G k^2)",
    verified=("microsoft/Swin-Transformer@be50b6c:ops/local_relation (the op; the layer: float64 equations)",),
    attends="weights",
    residual=False,
    aliases=("lrnet", "lr_net"),
    differences=(
        "The authors published the op alone: the layer around it follows the paper; the width of the geometry prior's "
        "hidden layer is not stated anywhere.",
    ),
)
class LocalRelation(nn.Module):
    """Replaces a k x k convolution: each group of channels is summed with weights of its own, softmax over the window.

    y = W_out [sum_{j in window(i)} softmax_j(s * sim(q_ig, k_jg) + prior_g(j - i)) x_jg]_g

    A group g has one number each as query and key.

    Args:
        channels: Channels C of the input.
        kernel_size: Odd extent k of the window; no parameter depends on it.
        stride: Step between output positions.
        dilation: Step between the cells of a window.
        groups: Groups of channels with weights of their own; None is eight channels a group, or the next number that
            divides.
        hidden_channels: Width of the geometry prior, a two-layer network on the offset.
        prior: Add that prior; off, all places of a window count alike.
        similarity: ``squared`` -(q - k)^2, ``absolute`` -|q - k|, ``product``, ``key``, ``absolute_ratio``,
            ``squared_ratio``, as :func:`lookfar.ops.neighborhood` has them.
        scale: Factor s on the similarities.
        normalization: Over the window: ``softmax`` as published, with the similarity -100 outside the map; ``l1``,
            ``sigmoid`` and ``none``, for which there is nothing outside.

    Shape: ``(B, C, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))``

    Raises:
        ValueError: ``groups`` does not divide ``channels``, an even kernel, an unknown similarity.

    Example:
        >>> block = LocalRelation(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: Odd = 7,
        stride: int = 1,
        dilation: int = 1,
        groups: int | None = None,
        hidden_channels: int = 16,
        prior: bool = True,
        similarity: Similarity = "squared",
        scale: float = 1.0,
        normalization: RowNormalization = "softmax",
        share_query_key: bool = False,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        groups = largest_divisor(max(channels // 8, 1), channels) if groups is None else groups
        divides("groups", groups, channels=channels)
        self.groups, self.scale = groups, scale
        self.similarity: Similarity = similarity
        self.normalization: RowNormalization = normalization
        border = "zeros" if normalization == "softmax" else "mask"
        sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        self.window: dict[str, Any] = {**sizes, "border": border}
        self.query = nn.Conv2d(channels, groups, 1, **dd)
        self.key = None if share_query_key else nn.Conv2d(channels, groups, 1, **dd)
        self.geometry = None
        if prior:
            self.geometry = nn.Sequential(
                nn.Conv2d(2, hidden_channels, 1, **dd), nn.ReLU(), nn.Conv2d(hidden_channels, groups, 1, **dd)
            )
        self.out = nn.Conv2d(channels, out_channels or channels, 1, bias=False, **dd)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """What adds the same to all logits of a softmax, what a similarity does not ask, what differences take off."""
        shared, softmax = self.key is None, self.normalization == "softmax"
        names = ["geometry.2.bias"] * (softmax and self.geometry is not None)
        if self.similarity == "key":
            names += ["query.bias" if shared else "key.bias"] * softmax
            names += [] if shared else ["query.weight", "query.bias"]
        elif self.similarity == "product":
            names += ["key.bias"] * (softmax and not shared)
        elif self.similarity in ("absolute", "squared"):  # differences do not see what both sides have
            names += ["query.bias"] * shared
        return tuple(names)

    def forward(self, x: Tensor) -> Tensor:
        y = neighborhood(*self._queries_and_keys(x), self._cells(x), **self._options())
        return self._finish_map(x, y.flatten(1, 2))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, G, Q, N)`` of the flat output positions ``(Q,)``, of all when None; 0 off the window."""
        cells = neighborhood_weights(*self._queries_and_keys(x), **self._options())
        return neighborhood_rows(cells, (x.shape[2], x.shape[3]), queries=queries, **self.window)

    def query_grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid of output positions on a map of ``size``."""
        stride = self.window["stride"]
        return tuple((n + stride - 1) // stride for n in size)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, G, N, C/G)``: the input itself."""
        return self._cells(x).flatten(3).transpose(2, 3)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and the weighted sums ``(B, G, Q, C/G)``."""
        grid = self.query_grid(x.shape[2:])
        return self._finish_map(x, mixed.transpose(2, 3).flatten(1, 2).unflatten(2, grid))

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        y = after_mixing(self.out, match_format(y, x), self.normalization)
        return y.to(x.dtype) if self.normalization == "none" else y

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stride = self.window["stride"]
        k = (self.query if self.key is None else self.key)(x)
        if self.key is None:
            q = k[:, :, ::stride, ::stride]
        else:
            q = self.query(x[:, :, ::stride, ::stride])
        return q.contiguous()[:, :, None], k.contiguous()[:, :, None]  # (B, G, 1, H, W)

    def _cells(self, x: Tensor) -> Tensor:
        x = widened(x) if self.normalization == "none" else x
        return x.contiguous().unflatten(1, (self.groups, -1))

    def _options(self) -> dict[str, Any]:
        choices = {"similarity": self.similarity, "scale": self.scale, "outside": OUTSIDE}
        return {**self.window, **choices, "normalization": self.normalization, "bias": self._prior()}

    def _prior(self) -> Tensor | None:
        """Of the cells' offsets, ``(G, k^2, 1, 1)``."""
        if self.geometry is None:
            return None
        k, weight = self.window["kernel_size"], self.query.weight
        offsets = torch.arange(k, device=weight.device, dtype=weight.dtype) - k // 2
        dy, dx = offsets[:, None].expand(k, k), offsets.expand(k, k)
        return self.geometry(torch.stack([dx, dy])[None]).flatten(2)[0, :, :, None, None]
