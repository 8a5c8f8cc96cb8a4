"""Symbolic graph reasoning: what its published mapping gives back to the positions."""

from typing import Any

import torch
from torch import Tensor, nn

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="Symbols are mapped back to positions by weights that depend on position and symbol.",
    source="Symbolic Graph Reasoning Meets Convolutions (NeurIPS 2018), the mapping of section 3.3",
    refuted_by="an answer that is the same at all positions",
)


def run() -> Outcome:
    """What is added, as a matrix of positions and channels: its rank, and its spread over positions.

    The published mapping is computed as the paper has it; the block gives its result without the weights.
    """
    ranks, spreads, same = zip(*(_measure(mapping) for mapping in ("pixels_then_row", "product")))
    collapsed = ranks[0] == 1 and spreads[0] < 1e-5
    return Outcome(
        "refuted" if collapsed else "confirmed",
        f"the published mapping (softmax over pixels, then rows normalised) adds a matrix of rank {ranks[0]}, whose "
        f"spread over positions is {spreads[0]:.0e} of its size: one vector for all, the block's to {same[0]:.0e}. "
        f"With mapping='product' the rank is {ranks[1]} and the spread {spreads[1]:.2f}.",
    )


def _measure(mapping: str) -> tuple[int, float, float]:
    from lookfar.blocks import create_block

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        options = {"mapping": mapping, "normalize": True, "zero_init": False}
        block: Any = create_block("symbolic_graph_reasoning", 32, **options).double()
        nn.init.ones_(block.gamma)
        x = torch.randn(1, 32, 10, 10).double()
        own = added = (block(x) - x)[0].flatten(1).T  # (N, C)
        if mapping == "pixels_then_row":
            added = _published(block, x)
        spread = added.std(0, correction=0).norm() / added.norm(dim=1).mean()
        rank = int(torch.linalg.matrix_rank(added, rtol=1e-8))
        return rank, float(spread), float((own - added).abs().max() / added.abs().max())


def _published(block: Any, x: Tensor) -> Tensor:
    """ReLU(A H W) with A_nk softmax over n of w . [h_k, x_n], each row then divided by its sum; ``(N, C)``."""
    tokens = x[0].flatten(1).T  # (N, C)
    votes = (tokens @ block.vote).softmax(1)  # (N, K)
    features = (votes.T @ tokens / len(tokens) @ block.embed).relu()
    joined = torch.cat([features, block.embeddings], 1) @ block.reason
    symbols = (block.graph_matrix @ joined).relu()  # (K, D)
    to_symbol, to_position = block.compatibility
    weights = ((tokens @ to_position)[:, None] + symbols @ to_symbol).softmax(0)
    return (weights / weights.sum(1, keepdim=True) @ symbols @ block.answer).relu()
