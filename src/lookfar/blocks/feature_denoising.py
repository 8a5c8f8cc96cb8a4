"""Feature denoising: a filter on the map, a convolution, and the map itself; made for training against attacks.

Traps: the value is the map itself, so the convolution is C x C; the paper states no border rule for the local filters
(here cells outside do not exist; the median repeats the border).
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Dims, Norm, Placement, norm_of, normal_, only_on_images, zero_
from lookfar.blocks._projections import PairwiseAttention, Switches, reduced
from lookfar.ops._layout import match_format, positions
from lookfar.ops._precision import widened
from lookfar.ops.neighborhood import neighborhood, neighborhood_rows, neighborhood_weights

Filter = Literal["gaussian", "dot", "bilateral_gaussian", "bilateral_dot", "mean", "median", "none"]


@block(
    "feature_denoising",
    title="Feature denoising",
    paper="Feature Denoising for Improving Adversarial Robustness (CVPR 2019)",
    arxiv="1812.03411",
    formula=(
        r"y = x + \text{norm}(W f(x))",
        r"f(x)_i = \sum_j \text{softmax}_j\left(\frac{q_i^\top k_j}{\sqrt{D}}\right) x_j \quad \text{(gaussian)}",
        r"f(x)_i = \frac{1}{N} \sum_j (q_i^\top k_j)\,x_j \quad \text{(dot)}",
    ),
    family="pairwise",
    complexity="gaussian N^2 C, dot N C^2, local N C (C + k^2)",
    memory="N C; median N C k^2",
    verified=(
        "facebookresearch/ImageNet-Adversarial-Training@1ad68f08:resnet_model.py (gaussian, dot)",
        "equations, float64 loop (bilateral, mean, median: the authors published no code)",
    ),
    attends="weights",
    aliases=("denoising",),
    author_keys={
        "embedding_theta/W": "query.weight",
        "embedding_phi/W": "key.weight",
        "embedding_theta": "query",
        "embedding_phi": "key",
        "conv/W": "project.weight",
        "conv": "project",
        "conv/bn/gamma": "norm.weight",
        "conv/bn/beta": "norm.bias",
        "conv/bn/mean/EMA": "norm.running_mean",
        "conv/bn/variance/EMA": "norm.running_var",
        "bn": "norm",
    },
)
class FeatureDenoising(PairwiseAttention):
    """Adds a filtered map, its channels mixed.

    y = x + norm(W f(x))
    gaussian: f_i = sum_j softmax_j(q_i . k_j / sqrt(D)) x_j
    dot: f_i = 1/N sum_j (q_i . k_j) x_j

    ``bilateral_gaussian`` and ``bilateral_dot`` do the same over the k x k window around i. ``mean`` and ``median`` are
    those of that window, a channel at a time, and ``none`` is x itself, the paper's control.

    Args:
        filter: See above.
        embed: Queries and keys are 1x1 convolutions; off, both are x. Without effect on ``mean``, ``median`` and
            ``none``.
        inner_channels: D of the embedding; half of ``channels`` by default.
        heads: Groups of channels with weights of their own; the authors have one. Not of ``mean``, ``median``
            and ``none``.
        share_query_key: One projection for queries and keys; the values have none, they are x.
        kernel_size: k, odd, of the local filters.
        norm_layer: After the convolution.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``; the local filters have two

    Raises:
        ValueError: An unknown filter, a local one on other axes, an even window, heads that do not divide the
            widths or have nothing to divide, a shared projection where there are none.

    Example:
        >>> block = FeatureDenoising(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        filter: Filter = "gaussian",
        embed: bool = True,
        inner_channels: int | None = None,
        heads: int = 1,
        share_query_key: bool = False,
        kernel_size: Odd = 3,
        norm_layer: Norm = nn.BatchNorm2d,
        zero_init: bool = True,
        dims: Dims = 2,
        **dd: Unpack[Placement],
    ) -> None:
        weighs = filter not in ("mean", "median", "none")
        embed = embed and weighs
        inner = (inner_channels or reduced(channels, 2, heads)) if embed else channels
        divides("heads", heads, channels=channels, inner_channels=inner)
        if heads > 1 and not weighs:
            raise ValueError(f"heads: {filter=} treats every channel alike or by itself and has none, got {heads}")
        if share_query_key and not embed:
            raise ValueError(f"share_query_key: {filter=}, {embed=} has no projections of queries and keys")
        if filter not in ("gaussian", "dot", "none"):
            only_on_images(dims, f"{filter=}", "gaussian, dot and none take any")
        switches = Switches(heads, "none" if filter.endswith("dot") else "softmax", share_query_key)
        layer = partial(CONV[dims], channels, inner, 1, bias=False, **dd)
        super().__init__(switches, (lambda: normal_(layer())) if embed else None, None)
        self.filter = filter
        self.scale = 1.0 if filter.endswith("dot") else (inner // heads) ** -0.5
        self.kernel_size = kernel_size
        self.project = CONV[dims](channels, channels, 1, bias=False, **dd)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out")
        self.norm = norm_of(norm_layer, dims)(channels, **dd)
        if zero_init:
            zero_(self.norm)
        if filter == "median":
            self.attends = "maps"

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """TensorFlow's kernels are (1, 1, in, out)."""
        return {k: v.permute(3, 2, 0, 1) if v.dim() == 4 and v.shape[:2] == (1, 1) else v for k, v in state.items()}

    def forward(self, x: Tensor) -> Tensor:
        if self.filter == "none":
            return self._finish_map(x, x)
        if self.filter == "mean":
            k = self.kernel_size
            return self._finish_map(x, F.avg_pool2d(x, k, stride=1, padding=k // 2, count_include_pad=False))
        if self.filter == "median":
            cells = self._cells(x)
            return self._finish_map(x, cells.topk(cells.shape[0] // 2 + 1, 0).values[-1])
        if not self.filter.startswith("bilateral"):
            return super().forward(x)
        q, k, v = (t.unflatten(1, (self.heads, -1)) for t in self._maps(x))
        return self._finish_map(x, neighborhood(q, k, v, **self._window()).flatten(1, 2))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the flat query positions ``(Q,)``, of all when None."""
        if self.filter in ("gaussian", "dot"):
            return super().attention(x, queries)
        if self.filter == "none":
            own = torch.eye(positions(x), dtype=x.dtype, device=x.device)
            return (own if queries is None else own[queries]).expand(len(x), 1, -1, -1)
        q, k, _ = self._maps(x)
        if self.filter == "mean":
            q = k = torch.zeros_like(x[:, :1])
        q, k = (t.unflatten(1, (self.heads, -1)) for t in (q, k))
        weights = neighborhood_weights(q, k, **self._window())
        return neighborhood_rows(weights, (x.shape[2], x.shape[3]), queries=queries, kernel_size=self.kernel_size)

    def maps(self, x: Tensor) -> Tensor:
        """The share of channels whose median stands in each cell of the window, ``(B, k^2, N)``."""
        cells = self._cells(x)
        chosen = cells.topk(cells.shape[0] // 2 + 1, 0).indices[-1]
        return F.one_hot(chosen, cells.shape[0]).to(x.dtype).mean(1).flatten(1, 2).transpose(1, 2)

    def _window(self) -> dict[str, Any]:
        return {"kernel_size": self.kernel_size, "scale": self.scale, "normalization": self.normalization}

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # products are not averages: in half precision they may only become small enough after the convolution
        query, key, value = super()._maps(x)
        return (widened(query), widened(key), widened(value)) if self.normalization == "none" else (query, key, value)

    def _cells(self, x: Tensor) -> Tensor:
        """The window's cells as shifted maps, ``(k^2, B, C, H, W)``, the border repeated."""
        (H, W), k = x.shape[2:], self.kernel_size
        padded = F.pad(x, (k // 2,) * 4, mode="replicate")
        return torch.stack([padded[:, :, i : i + H, j : j + W] for i in range(k) for j in range(k)])

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        y = y if self.normalization == "none" else y.to(x.dtype)
        return match_format(super()._finish_map(x, y), x)
