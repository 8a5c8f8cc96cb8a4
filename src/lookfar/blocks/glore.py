"""GloRe: project the map onto a few nodes, let a graph convolution reason between them, project back.

Traps: the projections are signed, there is no softmax; the graph mixes nodes first, states after the ReLU; without
``normalize`` the sums grow with N, and the running statistics of the normalisation fit one input size.
"""

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import (
    BATCH_NORM,
    CONV,
    Dims,
    Placement,
    added,
    norm_of,
    normed,
    zero_,
)
from lookfar.blocks._reading import ReadLinear, in_heads, out_of_heads, weights_of
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast


@block(
    "glore",
    title="Global reasoning unit (GloRe)",
    paper="Graph-Based Global Reasoning Networks (CVPR 2019)",
    arxiv="1811.12814",
    formula=(
        r"V = (W_s\,x)\,P^\top, \quad U = V + V A^\top + a",
        r"y = x + \text{norm}(W_e\,W_g\,\text{ReLU}(U)\,P)",
    ),
    family="graph",
    complexity="N C K",
    memory="N K",
    verified=("facebookresearch/GloRe@9c6a734:network/global_reasoning_unit.py",),
    attends="maps",
    aliases=("glore_unit", "gloru"),
    differences=(
        "The paper writes Z = (I - A) V W; the authors' code, reproduced here, learns V + A V with a bias and a ReLU"
        " before W.",
        "normalize=False sums over the positions, as the code does: on an image with sides twice as long the update "
        "without the graph step is four times as large; normalize=True keeps its size.",
    ),
    author_keys={
        "conv_state": "value",
        "conv_proj": "assign",
        r"gcn\.conv1": "mix_nodes",
        r"gcn\.conv2": "mix_states",
        "conv_extend": "project",
        "blocker": "norm",
    },
)
class GloRe(nn.Module):
    """Reasons between K nodes that learned signed maps P gather from the whole map and give back to it.

    V = (W_s x) P^T; U = V + V A^T + a; y = x + norm(W_e W_g ReLU(U) P)

    With heads each has its share of the rows of W_s and P and a graph of its own, and W_e takes what all of them give
    back.

    States are summed before they are projected and extended before they are given back, which is exact and halves the
    work: no map of states is made.

    Args:
        nodes: K, of all heads together; a quarter of ``channels`` by default.
        inner_channels: State channels, of all heads together; ``2 * nodes`` by default, as in the authors' code.
        heads: Graphs side by side, each with its share of the nodes and of their states; the authors have one.
        normalize: Divide the sums over positions by N; wanted wherever the input size is not fixed.
        reasoning: The graph step. Without it the unit is a dot-product non-local operation with tied embeddings.
        norm_layer: Last normalisation; BatchNorm with eps 1e-4 by default.
        zero_init: Start as the identity (weight and bias of the last normalisation 0), as the authors' networks do.

    Shape: ``(B, C, *S) -> (B, C, *S)``

    Raises:
        ValueError: Heads that do not divide nodes and states.

    Example:
        >>> import torch
        >>> block = GloRe(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        nodes: int | None = None,
        inner_channels: int | None = None,
        heads: int = 1,
        normalize: bool = False,
        reasoning: bool = True,
        dims: Dims = 2,
        norm_layer: Callable[..., nn.Module] | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        conv = CONV[dims]
        nodes = nodes or max(channels // 4, 1)
        inner = inner_channels or 2 * nodes
        divides("heads", heads, nodes=nodes, inner_channels=inner)
        self.heads, self.normalize, self.reasoning = heads, normalize, reasoning
        self.value = conv(channels, inner, 1, **dd)
        self.assign = conv(channels, nodes, 1, **dd)
        if reasoning:
            self.mix_nodes = ReadLinear(nodes // heads, nodes, **dd)  # a head's rows after those of the one before
            self.mix_states = ReadLinear(inner // heads, inner, bias=False, **dd)
        self.project = conv(inner, channels, 1, bias=False, **dd)
        self.norm = (
            norm_of(norm_layer, dims)(channels, **dd) if norm_layer else BATCH_NORM[dims](channels, eps=1e-4, **dd)
        )
        for layer in (self.value, self.assign, *((self.mix_nodes, self.mix_states) if reasoning else ()), self.project):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if zero_init:
            zero_(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.assign(x).flatten(2)  # (B, K, N)
        with without_autocast(x):
            maps = widened(maps)
            states = self._gather(widened(x.flatten(2)), maps)
            if self.reasoning:
                states = self._reason(states)
            y = (out_of_heads(weights_of(self.project)[0], states) @ maps).unflatten(2, x.shape[2:])
        y = normed(self.norm, y.to(x.dtype))
        return match_format(added(self, x, y), x)

    def maps(self, x: Tensor) -> Tensor:
        """The signed maps ``(B, K, N)`` that gather the nodes and give them back."""
        return self.assign(x).flatten(2)

    def _gather(self, x: Tensor, maps: Tensor) -> Tensor:
        """States ``(B, h, D/h, K/h)`` of the nodes: W_s (x P^T) + b_s (sum_j P_j)^T."""
        # dividing the maps first keeps the sums small in half precision
        maps = maps / max(x.shape[2], 1) if self.normalize else maps
        return in_heads(self.value, x @ maps.transpose(1, 2), maps.sum(2), self.heads)

    def _reason(self, states: Tensor) -> Tensor:
        """The graph step: W_g ReLU(V + V A^T + a), in each head."""
        weights, bias = weights_of(self.mix_nodes)
        assert bias is not None
        mixed = states @ weights.to(states.dtype).unflatten(0, (self.heads, -1)).transpose(1, 2)
        mixed = mixed + bias.to(states.dtype).unflatten(0, (self.heads, 1, -1))
        last = weights_of(self.mix_states)[0].to(states.dtype).unflatten(0, (self.heads, -1))
        return last @ (states + mixed).relu()
