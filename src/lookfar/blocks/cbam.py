"""CBAM: a gate for every channel, then a gate for every position of what passed.

Traps: the spatial descriptor is [max, mean], the paper's text names the mean first; the pooled vectors share one
multilayer perceptron and are added before the sigmoid, so its last bias counts once a pooling; the normalisation before
the second sigmoid stands in the code, not in the formula. The authors' ResNet sets that normalisation's weight to zero
by name, which the module itself does not.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Odd
from lookfar.blocks._base import block
from lookfar.blocks._layers import Norm, Placement, normed
from lookfar.ops._precision import averaged, widened

Pooling = Literal["avg", "max", "lp", "lse"]


def _largest(x: Tensor, dim: int) -> Tensor:
    """Maxima; the gradient goes to one of equals, as in max pooling. Without one their places are not looked for."""
    return x.max(dim).values if torch.is_grad_enabled() else x.amax(dim)


# of (B, C, N); float32 at least, since N halves summed overflow
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: averaged(x, -1),
    "max": lambda x: _largest(x, -1),
    "lp": lambda x: torch.linalg.vector_norm(widened(x), dim=-1),  # with gradient 0 at a dead channel, not NaN
    "lse": lambda x: widened(x).logsumexp(-1),
}

SLOW_BATCH_NORM = partial(nn.BatchNorm2d, momentum=0.01)  # the authors' momentum


@block(
    "cbam",
    title="Convolutional block attention module (CBAM)",
    paper="CBAM: Convolutional Block Attention Module (ECCV 2018)",
    arxiv="1807.06521",
    formula=(
        r"x' = \sigma\left(\sum_{\text{pool}} \text{MLP}(\text{pool}(x))\right) \odot x",
        r"y = \sigma(\text{BN}(\text{conv}([\,\text{max}_c\,x'_c,\; \text{mean}_c\,x'_c\,]))) \odot x'",
    ),
    family="channel",
    complexity="N (C + k^2) + C^2 / r",
    memory="N C",
    verified=("Jongchan/attention-module@459efad0:MODELS/cbam.py",),
    attends="none",
    residual=False,
    differences=(
        "The spatial descriptor is [max, mean] in the code, [mean, max] in the paper; a BatchNorm stands before the "
        "second sigmoid and the perceptron has biases in the code alone. All as in the code.",
    ),
    author_keys={
        r"ChannelGate\.mlp\.1": "reduce",
        r"ChannelGate\.mlp\.3": "expand",
        r"SpatialGate\.spatial\.conv": "spatial",
        r"SpatialGate\.spatial\.bn": "norm",
    },
)
class CBAM(nn.Module):
    """Scales every channel by a gate from its pooled values, then every position by a gate from its neighbourhood.

    x' = sigmoid(sum_pool MLP(pool(x))) x;  y = sigmoid(BN(conv([max_c x', mean_c x']))) x'

    Args:
        reduction: The perceptron's hidden layer has ``channels // reduction`` units, at least one.
        pooling: Poolings over the positions, one or several of ``avg``, ``max``, ``lp`` (Euclidean norm) and ``lse``
            (log of the sum of exponentials).
        spatial_gate: Gate the positions too.
        order: The ``channel`` gate first, as published; the ``spatial`` one; or both from x, multiplied (``parallel``).
        kernel_size: Odd size of the convolution of the spatial gate.
        norm_layer: Its normalisation.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown pooling or none; an unknown order; an even ``kernel_size``.

    Example:
        >>> block = CBAM(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pooling: Pooling | Sequence[Pooling] = ("avg", "max"),
        spatial_gate: bool = True,
        order: Literal["channel", "spatial", "parallel"] = "channel",
        kernel_size: Odd = 7,
        norm_layer: Norm = SLOW_BATCH_NORM,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.pooling: tuple[str, ...] = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Linear(channels, hidden, **dd)
        self.expand = nn.Linear(hidden, channels, **dd)
        self.spatial_gate, self.order = spatial_gate, order
        if spatial_gate:
            self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
            self.norm = norm_layer(1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if not self.spatial_gate:
            return x * self._channels(x)
        if self.order == "spatial":
            x = x * self._positions(x)
            return x * self._channels(x)
        gated = x * self._channels(x)
        return gated * self._positions(gated if self.order == "channel" else x)

    def _channels(self, x: Tensor) -> Tensor:
        """``(B, C, 1, 1)``."""
        flat = x.flatten(2)
        pooled = torch.stack([_POOLS[p](flat).to(x.dtype) for p in self.pooling])  # (pools, B, C)
        return self.expand(self.reduce(pooled).relu()).sum(0).sigmoid().to(x.dtype)[:, :, None, None]

    def _positions(self, x: Tensor) -> Tensor:
        """``(B, 1, H, W)``."""
        descriptor = torch.stack([_largest(x, 1), averaged(x, 1).to(x.dtype)], 1)  # (B, 2, H, W)
        return normed(self.norm, self.spatial(descriptor)).sigmoid().to(x.dtype)
