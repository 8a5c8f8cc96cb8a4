"""A2-Nets: gather a bag of descriptors by attention, distribute them by attention; no N x N matrix exists.

Traps: the gathering maps are softmaxed over the positions, the mixtures over the maps. Copies that leave the axis to
``softmax`` take the batch; weights trained with them load here and give other numbers.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, pointwise, zero_
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast


@block(
    "double_attention",
    title="Double attention (A2-Nets)",
    paper="A^2-Nets: Double Attention Networks (NeurIPS 2018)",
    arxiv="1810.11579",
    family="low_rank",
    complexity="N C K + K C D",
    memory="N K",
    verified=("equations, float64 loop (the authors published no code)",),
    attends="weights",
    aliases=("a2", "a2net", "a2_net"),
    differences=(
        "The paper follows the block with a batch normalisation for pretrained networks: norm_layer, off by default.",
    ),
    author_keys={
        "A|convA": "value",
        "B|convB": "key",
        "V|convV": "query",
        "out|conv_reconstruct": "project",
    },
)
class DoubleAttention(nn.Module):
    """Every position takes its own convex mixture of K descriptors that attention gathered over the whole map.

    y = x + W_o (A softmax_N(B)^T) softmax_K(V), with A, B, V 1x1 convolutions of x.

    The bag is convolved instead of the map (both softmaxes sum to one, so this is exact): features and mixtures of D
    channels are never made for N positions.

    Args:
        channels: Channels C of input and output.
        inner_channels: D, channels of a descriptor; a quarter of ``channels`` by default.
        nodes: K, descriptors in the bag; a quarter of ``channels`` by default.
        dims: Spatial axes of the map: 1, 2 or 3.
        norm_layer: Normalisation after the output convolution, or None as in the equations.
        residual: Add the input.
        zero_init: Start as the identity: the last layer with parameters starts at zero.

    Shape: ``(B, C, *S) -> (B, C, *S)``
    """

    inert_parameters = ("key.bias",)  # softmax over the positions does not see it

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        nodes: int | None = None,
        dims: int = 2,
        norm_layer: Callable[..., nn.Module] | None = None,
        residual: bool = True,
        zero_init: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = CONV[dims]
        inner = inner_channels or max(channels // 4, 1)
        nodes = nodes or max(channels // 4, 1)
        self.value = conv(channels, inner, 1, **dd)
        self.key = conv(channels, nodes, 1, **dd)
        self.query = conv(channels, nodes, 1, **dd)
        self.project = conv(inner, channels, 1, **dd)
        self.norm = norm_layer(channels, **dd) if norm_layer else nn.Identity()
        self.residual = residual
        if zero_init and residual:
            zero_(self.norm if norm_layer else self.project)

    def forward(self, x: Tensor) -> Tensor:
        gathering, mixture = self._maps(x)
        with without_autocast(x):
            bag = widened(x.flatten(2)) @ gathering.transpose(1, 2)  # (B, C, K): gathered before it is convolved
            bag = pointwise(self.project, pointwise(self.value, bag), bias=False)
            return self._end(x, bag @ mixture)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, 1, Q, N)`` of rank K: a mixture of the gathering maps; every row sums to one."""
        gathering, mixture = self._maps(x)
        chosen = mixture if queries is None else mixture[..., queries]
        return (chosen.transpose(1, 2) @ gathering)[:, None]

    def values(self, x: Tensor) -> Tensor:
        """Features ``(B, 1, N, D)``."""
        return self.value(x).flatten(2).transpose(1, 2)[:, None]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, 1, N, D)``."""
        with without_autocast(x):
            return self._end(x, pointwise(self.project, mixed[:, 0].transpose(1, 2), bias=False))

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gathering maps (B, K, N), softmax over N, and mixtures (B, K, N), softmax over K."""
        key, query = self.key(x), self.query(x)
        return widened(key.flatten(2)).softmax(2), widened(query.flatten(2)).softmax(1)

    def _end(self, x: Tensor, y: Tensor) -> Tensor:
        if self.project.bias is not None:
            y = y + self.project.bias.to(y.dtype)[:, None]
        y = self.norm(y.unflatten(2, x.shape[2:]).to(x.dtype))
        return match_format(x + y if self.residual else y, x)
