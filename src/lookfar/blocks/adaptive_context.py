"""APCNet: regions of a pyramid, mixed at every position by weights that the position predicts itself.

Traps: the weights are sigmoids and are not normalised; the global vector is the mean of the reduced map, not of x.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Form, Norm, Placement, projected, projection
from lookfar.blocks._reading import weights_of
from lookfar.ops._precision import averaged, widened, without_autocast
from lookfar.ops._rectified import rectified
from lookfar.ops.adaptive_average import adaptive_average


class AdaptiveContextModule(nn.Module):
    """One scale of the pyramid: ``(B, C, H, W) -> (B, D, H, W)``."""

    def __init__(
        self, channels: int, inner: int, bins: int, fusion: bool, norm: Norm | None, act: Norm | None, **dd: Any
    ) -> None:
        super().__init__()

        def layer(before: int) -> ConvNorm:
            return ConvNorm(before, inner, norm_layer=norm, act_layer=act, **dd)

        self.bins = bins
        self.pooled = layer(channels)
        self.reduce = layer(channels)
        self.summary = layer(inner)
        self.affinity = nn.Conv2d(inner, bins * bins, 1, **dd)
        self.project = layer(inner)
        self.fuse = layer(inner) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        weights = self._weights(reduced)  # (B, s^2, N)
        regions = self.pooled(adaptive_average(x, self.bins).to(x.dtype)).flatten(2)  # (B, D, s^2)
        with without_autocast(x):
            # the residual convolution acts on s^2 regions instead of on N positions
            weight, bias = weights_of(self.project.conv)
            mixed = widened(weight).flatten(1) @ widened(regions) @ widened(weights)
            if bias is not None:
                mixed = mixed + widened(bias)[:, None]  # sigmoids do not sum to one
        y = rectified(self.project.after(mixed.unflatten(2, x.shape[2:]).to(reduced.dtype)) + reduced)
        return y if self.fuse is None else self.fuse(y)

    def weights(self, x: Tensor) -> Tensor:
        """Affinities ``(B, s^2, N)`` of the regions to the positions of ``x``."""
        return self._weights(self.reduce(x))

    def _weights(self, reduced: Tensor) -> Tensor:
        summary = self.summary(averaged(reduced, 2, 3, keepdim=True).to(reduced.dtype))
        # conv(X + g) = conv(X) + W g: the summary enters as s^2 numbers
        weight, _ = weights_of(self.affinity)
        logits = self.affinity(reduced) + nn.functional.conv2d(summary, weight.to(summary.dtype))
        return logits.sigmoid().flatten(2)


_LAYERS = {
    r"pooled_redu_conv\.conv": "pooled.conv",
    r"pooled_redu_conv\.(?:bn|gn|in)": "pooled.norm",
    r"input_redu_conv\.conv": "reduce.conv",
    r"input_redu_conv\.(?:bn|gn|in)": "reduce.norm",
    r"global_info\.conv": "summary.conv",
    r"global_info\.(?:bn|gn|in)": "summary.norm",
    "gla": "affinity",
    r"residual_conv\.conv": "project.conv",
    r"residual_conv\.(?:bn|gn|in)": "project.norm",
    r"fusion_conv\.conv": "fuse.conv",
    r"fusion_conv\.(?:bn|gn|in)": "fuse.norm",
}
# a single module, or those that the head numbers: acm_modules.0.gla, or 0.gla under prefix="decode_head.acm_modules."
_KEYS = {theirs: f"scales.0.{ours}" for theirs, ours in _LAYERS.items()} | {
    rf"(?:acm_modules\.)?(\d+)\.{theirs}": rf"scales.\1.{ours}" for theirs, ours in _LAYERS.items()
}


@block(
    "adaptive_context",
    title="Adaptive pyramid context (APCNet)",
    paper="Adaptive Pyramid Context Network for Semantic Segmentation (CVPR 2019)",
    formula=(
        r"A_s = \sigma(W_s\,(X_s + g_s)), \quad X_s = \text{a narrowed } x, \quad g_s = \text{from the mean of } X_s",
        r"Z_s = \text{ReLU}(\text{norm}(W'_s R_s A_s) + X_s),"
        r" \quad R_s = \text{the means of the } s \times s \text{ regions, narrowed}",
        r"y = x + P\,[Z_1, \ldots, Z_S]",
    ),
    family="pyramid",
    complexity="N C D",
    memory="N D",
    verified=("Junjun2016/APCNet@f45cda5a:apc_head.py", "open-mmlab/mmsegmentation@1.2.2:decode_heads/apc_head.py"),
    attends="maps",
    aliases=("apcnet", "apc", "acm"),
    differences=(
        "The network concatenates the modules' outputs to x before a 3x3 convolution; here they are added to x through"
        ' a 1x1 convolution that starts at zero. form="published" gives the modules alone.',
    ),
    author_keys=_KEYS,
)
class AdaptiveContext(nn.Module):
    """Every position mixes the regions of each scale with its own sigmoid weights; all scales are added to it.

    A = sigmoid(W (X + g)); Z_s = ReLU(norm(A P_s W') + X); y = x + P(concat_s Z_s)

    There is no middle step to switch off: regions do not meet between gathering and giving.

    Args:
        bins: Regions along each axis, one number for each scale.
        inner_channels: D, channels of a scale; a quarter of ``channels`` by default.
        fusion: A last 1x1 convolution with norm and ReLU in each scale.
        norm_layer: After every convolution of a scale; None for none.
        act_layer: After every norm of a scale, None for none; what a scale adds to its input ends in a ReLU besides.
        form: ``"block"`` keeps the shape; ``"published"`` gives the scales' outputs ``(B, scales * D, H, W)``.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Example:
        >>> block = AdaptiveContext(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: int | Sequence[int] = (1, 2, 3, 6),
        inner_channels: int | None = None,
        fusion: bool = True,
        norm_layer: Norm | None = nn.BatchNorm2d,
        act_layer: Norm | None = nn.ReLU,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        bins = (bins,) if isinstance(bins, int) else tuple(bins)
        inner = inner_channels or max(channels // 4, 1)
        self.scales = nn.ModuleList(
            AdaptiveContextModule(channels, inner, b, fusion, norm_layer, act_layer, **dd) for b in bins
        )
        self.project = projection(form, inner * len(bins), channels, zero_init=zero_init, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([scale(x) for scale in self.scales], 1)
        return projected(self, x, y)

    def maps(self, x: Tensor) -> Tensor:
        """Affinities ``(B, K, N)`` of the regions of all scales, the scales one after the other."""
        return torch.cat([scale.weights(x) for scale in self.scales], 1)  # type: ignore[operator]
