"""SGR: positions vote their features to the nodes of a knowledge graph, which reason and answer.

Traps: the logits of the published mapping are a node term plus a position term, and softmax cancels the one that is
constant along its axis: every position receives the same vector (``mapping="pixels"``: the same vector times a weight).
The published forms are computed in that collapsed, exact form.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import Dims, Placement
from lookfar.ops._layout import match_format
from lookfar.ops._precision import softmax, widened, without_autocast


@block(
    "symbolic_graph_reasoning",
    title="Symbolic graph reasoning (SGR)",
    paper="Symbolic Graph Reasoning Meets Convolutions (NeurIPS 2018)",
    formula=(
        r"V = \text{softmax}_k(X W_a), \quad H = \text{ReLU}(\hat{A}\,[\,\text{ReLU}(V^\top X W_{ps}),\; E\,]\,W_g)",
        r"y = x + \gamma\,\text{ReLU}(P H W_{sp})",
    ),
    family="graph",
    kind="head",
    complexity="N K C",
    memory="N K",
    verified=("equations, float64 loop (the authors published no code)",),
    attends="maps",
    aliases=("sgr",),
    differences=(
        'As published, y_n - x_n is one vector for all positions: P = 1/K everywhere under mapping="pixels_then_row"'
        ' (the default), softmax_k(h_k w) under "nodes"; under "pixels" it is that vector times softmax_n(x_n w).'
        " On random features less than 1e-12 of the update's variance lies between positions."
        ' mapping="product" has logits x_n W h_k, which depend on both, as the paper meant: more than 0.2 of it does.',
        "The votes are summed over the positions: on an image with sides twice as long the answer is more than twice "
        "as large. normalize=True takes means and keeps its size.",
        "gamma, zero at the start, multiplies the answer; the original has none (gamma = 1 after loading its weights).",
    ),
    author_keys={
        "W_a": "vote",
        "W_ps": "embed",
        "W_g": "reason",
        "W_s": "compatibility",
        "W_sp": "answer",
    },
)
class SymbolicGraphReasoning(nn.Module):
    """Positions vote features to K symbols; symbols join their embeddings, convolve over their graph, and answer.

    V = softmax_k(X W_a); H = ReLU(A^ [ReLU(V^T X W_ps), E] W_g); y = x + gamma ReLU(P H W_sp)

    Args:
        nodes: K, symbols; taken from ``embeddings`` where they are given.
        inner_channels: Channels of a symbol; C by default.
        embeddings: Fixed vectors ``(K, M)`` of the symbols; random ones of 300 channels by default.
        adjacency: Fixed symmetric graph ``(K, K)`` without the diagonal; no edges by default.
        mapping: How the symbols answer: the paper's text (``pixels_then_row``), softmax over ``pixels`` or over
            ``nodes``, or ``product``, whose weights depend on position and symbol together.
        normalize: Divide the votes by N; wanted wherever the input size is not fixed.
        reasoning: The graph convolution; off, the symbols answer with what they gathered.
        zero_init: Start as the identity (gamma 0).
        dims: Spatial axes of the map: 1, 2 or 3; None takes any.

    Shape: ``(B, C, *S) -> (B, C, *S)``

    Example:
        >>> block = SymbolicGraphReasoning(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    embeddings: Tensor
    graph_matrix: Tensor

    def __init__(
        self,
        channels: int,
        *,
        nodes: int = 32,
        inner_channels: int | None = None,
        embeddings: Tensor | None = None,
        adjacency: Tensor | None = None,
        mapping: Literal["pixels_then_row", "pixels", "nodes", "product"] = "pixels_then_row",
        normalize: bool = False,
        reasoning: bool = True,
        zero_init: bool = True,
        dims: Dims | None = None,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        if embeddings is None:
            embeddings = torch.randn(nodes, 300, generator=torch.Generator().manual_seed(0))
        nodes = embeddings.shape[0]
        adjacency = torch.zeros(nodes, nodes) if adjacency is None else adjacency
        if adjacency.shape != (nodes, nodes):
            raise ValueError(f"want adjacency ({nodes}, {nodes}) for {embeddings.shape=}, got {adjacency.shape=}")
        inner = inner_channels or channels
        self.mapping, self.normalize, self.reasoning = mapping, normalize, reasoning
        self.register_buffer("embeddings", embeddings.to(**dd))
        self.register_buffer("graph_matrix", _normalised(adjacency).to(**dd))

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape, **dd)))

        self.vote = weight(channels, nodes)
        self.embed = weight(channels, inner)
        self.reason = weight(inner + embeddings.shape[1], inner)
        self.compatibility = weight(channels, inner) if mapping == "product" else weight(2, max(channels, inner))
        self.answer = weight(inner, channels)
        self.gamma = nn.Parameter(torch.full((1,), 0.0 if zero_init else 1.0, **dd))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """The row normalisation of the published mapping leaves nothing of its weights."""
        return ("compatibility",) if self.mapping == "pixels_then_row" else ()

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The adjacency is stored with its normalisation; a published unit has no gamma."""
        state = dict(state)
        if "adjacency" in state:
            state["graph_matrix"] = _normalised(state.pop("adjacency"))
        if "embeddings" in state:
            state.setdefault("gamma", torch.ones(1))
        return state

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            tokens = widened(x.flatten(2))  # (B, C, N)
            wide = tokens.dtype
            gathered = (tokens @ self._votes(tokens).transpose(1, 2)).transpose(1, 2)
            gathered = gathered / max(tokens.shape[2], 1) if self.normalize else gathered
            symbols = self._reason(gathered)  # (B, K, D)
            y = self._answers(tokens, symbols).transpose(1, 2)
            # a published unit's mapping weights have gradient zero, and stay in the graph
            y = y + 0 * self.compatibility.sum().to(wide)
            y = (self.gamma.to(wide) * y).expand_as(tokens).unflatten(2, x.shape[2:])
        return match_format(x + y.to(x.dtype), x)

    def maps(self, x: Tensor) -> Tensor:
        """Votes ``(B, K, N)``; at each position they sum to one over the symbols."""
        with without_autocast(x):
            return self._votes(widened(x.flatten(2)))

    def _votes(self, tokens: Tensor) -> Tensor:
        return softmax(self.vote.to(tokens.dtype).T @ tokens, 1)

    def _reason(self, gathered: Tensor) -> Tensor:
        """Symbols ``(B, K, D)`` after the graph convolution, from the features (B, K, C) that were voted to them."""
        features = (gathered @ self.embed.to(gathered.dtype)).relu()
        graph, words = self.reason.to(gathered.dtype).split([self.embed.shape[1], self.embeddings.shape[1]])
        joined = features @ graph + self.embeddings.to(gathered.dtype) @ words
        return (self.graph_matrix.to(gathered.dtype) @ joined if self.reasoning else joined).relu()

    def _answers(self, tokens: Tensor, symbols: Tensor) -> Tensor:
        """ReLU(P H W_sp), ``(B, N, C)`` or ``(B, 1, C)`` where all positions receive the same."""
        answer = self.answer.to(tokens.dtype)
        if self.mapping == "product":
            logits = tokens.transpose(1, 2) @ self.compatibility.to(tokens.dtype) @ symbols.transpose(1, 2)
            return (softmax(logits) @ (symbols @ answer)).relu()
        to_symbol, to_position = self.compatibility.to(tokens.dtype)
        if self.mapping == "pixels_then_row":
            return (symbols.mean(1, keepdim=True) @ answer).relu()
        if self.mapping == "nodes":
            weights = (symbols @ to_symbol[: symbols.shape[2]]).softmax(1)
            return ((weights[:, None] @ symbols) @ answer).relu()
        weights = softmax(to_position[: tokens.shape[1]] @ tokens)  # (B, N)
        return weights[..., None] * (symbols.sum(1, keepdim=True) @ answer).relu()


def _normalised(adjacency: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2; with the identity every degree is at least one."""
    a = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype, device=adjacency.device)
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale
