"""A2-Nets: gather a bag of descriptors by attention, distribute them by attention; no N x N matrix exists.

Traps: the gathering maps are softmaxed over the positions, the mixtures over the maps. Copies that leave the axis to
``softmax`` take the batch; weights trained with them load here, with a warning, and give other numbers.
"""

import warnings
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import (
    CONV,
    Dims,
    Placement,
    added,
    norm_of,
    normed,
    zero_,
)
from lookfar.blocks._reading import in_heads, out_of_heads, weights_of
from lookfar.ops._layout import match_format, to_tokens
from lookfar.ops._precision import softmax, widened, without_autocast
from lookfar.ops.double_normalization import double_normalization

Normalization = Literal["softmax", "double", "l1", "sigmoid", "none"]

# names in widely copied ports, which take their softmaxes over the batch, or both over the maps
_PORTS = {"convA": "value", "convB": "key", "convV": "query", "conv_reconstruct": "project"}

# of the gathering similarities (B, K, N), over the positions
_NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda l: softmax(l, 2),
    "double": lambda l: double_normalization(l, positions=1, slots=2),
    "l1": lambda l: l / l.abs().sum(2, keepdim=True).clamp_min(1e-12),
    "sigmoid": lambda l: l.sigmoid() / max(l.shape[2], 1),
    "none": lambda l: l / max(l.shape[2], 1),
}


@block(
    "double_attention",
    title="Double attention (A2-Nets)",
    paper="A^2-Nets: Double Attention Networks (NeurIPS 2018)",
    arxiv="1810.11579",
    formula=(
        r"y = x + W_o\,(A\,\text{softmax}_N(B)^\top)\,\text{softmax}_K(V)",
        r"A = W_A\,x, \quad B = W_B\,x, \quad V = W_V\,x",
    ),
    family="low_rank",
    complexity="N C K + K C D",
    memory="N K",
    verified=("equations, float64 loop (the authors published no code)",),
    attends="weights",
    aliases=("a2", "a2net", "a2_net"),
    differences=(
        "The paper follows the block with a batch normalisation for pretrained networks: norm_layer, off by default.",
    ),
    author_keys={"A": "value", "B": "key", "V": "query", "out": "project"},
)
class DoubleAttention(nn.Module):
    """Every position takes its own convex mixture of K descriptors that attention gathered over the whole map.

    y = x + W_o (A softmax_N(B)^T) softmax_K(V), with A, B, V 1x1 convolutions of x

    With heads each has its share of the rows of A, B and V, and W_o takes what all of them distribute.

    The bag is convolved instead of the map, exactly: features and mixtures of D channels are never made for N
    positions. There is no middle step to switch off: with one between the descriptors it would be GloRe.

    Args:
        inner_channels: D, channels of a descriptor, of all heads together; a quarter of ``channels`` by default.
        nodes: K, descriptors in the bag, of all heads together; a quarter of ``channels`` by default.
        heads: Bags side by side, each with its share of the descriptors and of their channels; the authors have one.
        share_query_key: One projection for both attentions.
        normalization: Normalisation of the gathering maps, over the positions: ``softmax`` as published, ``double``
            (softmax over the maps first, then each map divided by its sum), ``l1``, ``sigmoid`` and ``none`` (divided
            by N).
        norm_layer: Normalisation after the output convolution, or None as in the equations.

    Shape: ``(B, C, *S) -> (B, C, *S)``

    Raises:
        ValueError: An unknown ``normalization``, heads that do not divide descriptors and their channels.

    Example:
        >>> import torch
        >>> block = DoubleAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        nodes: int | None = None,
        heads: int = 1,
        share_query_key: bool = False,
        normalization: Normalization = "softmax",
        dims: Dims = 2,
        norm_layer: Callable[..., nn.Module] | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        conv = CONV[dims]
        inner = inner_channels or max(channels // 4, 1)
        nodes = nodes or max(channels // 4, 1)
        divides("heads", heads, inner_channels=inner, nodes=nodes)
        self.heads = heads
        self.value = conv(channels, inner, 1, **dd)
        self.key = None if share_query_key else conv(channels, nodes, 1, **dd)
        self.query = conv(channels, nodes, 1, **dd)
        self.project = conv(inner, channels, 1, **dd)
        self.norm = norm_of(norm_layer, dims)(channels, **dd) if norm_layer else nn.Identity()
        self.normalization: Normalization = normalization
        if zero_init:
            zero_(self.norm if norm_layer else self.project)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the ports are taken, with a warning."""
        layers = {key: key.partition(".")[0] for key in state}
        if _PORTS.keys() & layers.values():
            warnings.warn(
                "these weights have the names of a port of double attention (convA, convB, convV) that normalises over "
                "other axes: trained there, they give other numbers here",
                stacklevel=4,
            )
        return {key.replace(layer, _PORTS.get(layer, layer), 1): state[key] for key, layer in layers.items()}

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Softmax over the positions does not see the gathering bias."""
        return ("key.bias",) if self.key is not None and self.normalization == "softmax" else ()

    def forward(self, x: Tensor) -> Tensor:
        gathering, mixture = self._maps(x)
        with without_autocast(x):
            bag = widened(x.flatten(2)) @ gathering.transpose(1, 2)  # (B, C, K): gathered before it is convolved
            bag = in_heads(self.value, bag, gathering.sum(2), self.heads)  # (B, h, D/h, K/h)
            weight, bias = weights_of(self.project)
            return self._finish_map(x, out_of_heads(weight, bag) @ mixture, bias)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of rank K/h, a mixture of the gathering maps; under softmax rows sum to one."""
        gathering, mixture = (t.unflatten(1, (self.heads, -1)) for t in self._maps(x))
        chosen = mixture if queries is None else mixture[..., queries]
        return chosen.transpose(2, 3) @ gathering

    def values(self, x: Tensor) -> Tensor:
        """Features ``(B, h, N, D/h)``."""
        return to_tokens(self.value(x), self.heads)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, D/h)``."""
        with without_autocast(x):
            weight, bias = weights_of(self.project)
            mixed = mixed.transpose(2, 3).flatten(1, 2)
            return self._finish_map(x, weight.flatten(1).to(mixed.dtype) @ mixed, bias)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gathering maps (B, K, N), normalised over N, and mixtures (B, K, N), softmax over a head's share of K."""
        query = widened(self.query(x).flatten(2))
        key = query if self.key is None else widened(self.key(x).flatten(2))
        # a head's maps are apart only where they are normalised against each other
        key, query = (t.unflatten(1, (self.heads, -1)).flatten(0, 1) for t in (key, query))  # (B h, K/h, N)
        gathering, mixture = _NORMALIZE[self.normalization](key), softmax(query, 1)
        joined = [t.unflatten(0, (-1, self.heads)).flatten(1, 2) for t in (gathering, mixture)]
        return joined[0], joined[1]

    def _finish_map(self, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            y = y + bias.to(y.dtype)[:, None]
        y = normed(self.norm, y.unflatten(2, x.shape[2:]).to(x.dtype))
        return match_format(added(self, x, y), x)
