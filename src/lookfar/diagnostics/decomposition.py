"""DNL's two terms of a softmax of dot products: what depends on query and key, and what on the key alone.

With m the mean query, scale q_i.k_j = scale ((q_i - m).k_j + m.k_j): the pairwise and the unary term. Less what is the
same for all keys, the two are orthogonal over the pairs, so that their mean squares add up to that of the logits,

    pairwise_energy = scale^2 tr(C_q C_k)    unary_energy = scale^2 m' C_k m

C being covariances over positions. Both need no map at all. Where queries are weighted, m and C_q have to be weighted
alike: with any other m the terms are not orthogonal. Keys count the same.

Paper: Disentangled Non-Local Neural Networks (ECCV 2020), 2006.06668; the split of the energy is ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookfar.blocks._projections import PairwiseAttention
from lookfar.diagnostics.adapters import TokenAttention
from lookfar.diagnostics.maps import inner_block, query_size, why_no_maps
from lookfar.ops._precision import widened
from lookfar.ops.attention import attention_weights

NO_DOT_PRODUCT = "its weights are not a softmax of dot products of queries and keys"


@dataclass(frozen=True)
class Decomposition:
    """Queries and keys of a block for a batch, and what follows from them.

    Attributes:
        q: ``(B, h, N, D)``.
        k: ``(B, h, M, D)``, both in float32 at least.
        scale: Factor on the dot products.
    """

    q: Tensor
    k: Tensor
    scale: float

    def mean_query(self, weights: Tensor | None = None) -> Tensor:
        """``(B, h, 1, D)``, or ``(W, B, h, 1, D)`` with weights ``(W, B, N)`` of the queries that sum to 1."""
        if weights is None:
            return self.q.mean(-2, keepdim=True)
        return weights[:, :, None, None].to(self.q) @ self.q

    def numbers(self, weights: Tensor, mean_map: Tensor, entropy: Tensor) -> dict[str, Tensor]:
        """Energies of the two terms, and how far the maps are from the unary one, by name, ``(W, B, h)``.

        Args:
            weights: Of the queries, ``(W, B, N)``; each row sums to 1.
            mean_map: By these weights, ``(W, B, h, M)``.
            entropy: The mean of that of the maps, by these weights, ``(W, B, h)``.
        """
        q, k, w = self.q.double(), self.k.double(), weights.double()
        centre = Decomposition(q, k, self.scale).mean_query(w)
        off = q - centre  # (W, B, h, N, D)
        of_queries = off.transpose(-1, -2) @ (w[:, :, None, :, None] * off)
        keys = k - k.mean(-2, keepdim=True)
        of_keys = keys.transpose(-1, -2) @ keys / k.shape[-2]
        pairwise = self.scale**2 * (of_queries * of_keys).sum((-1, -2))
        unary = self.scale**2 * (centre @ of_keys @ centre.transpose(-1, -2))[..., 0, 0]
        logits = (self.scale * centre @ k.transpose(-1, -2)).log_softmax(-1).squeeze(-2)  # (W, B, h, M)
        return {
            "pairwise_energy": pairwise,
            "unary_energy": unary,
            "unary_share": unary / (unary + pairwise),
            "logit_deviation": (unary + pairwise).sqrt(),
            # the mean over queries of KL(a_i, u): a sum over the mean map, since u is one map
            "kl_joint_unary": -entropy - (mean_map.double() * logits).sum(-1),
        }

    def pairwise_map(self, queries: Tensor | None = None) -> Tensor:
        """The maps ``(B, h, Q, M)`` of some queries without the unary term."""
        q = self.q - self.mean_query()
        return attention_weights(q if queries is None else q[..., queries, :], self.k, scale=self.scale)

    def unary_map(self) -> Tensor:
        """The one map ``(B, h, 1, M)`` without the pairwise term."""
        return attention_weights(self.mean_query(), self.k, scale=self.scale)


def decompose(module: nn.Module, x: Tensor) -> Decomposition | None:
    """Queries and keys of a block whose weights are a softmax of their dot products; None for other blocks.

    Args:
        module: A block, bare or in an inserted gate.
        x: The block's input ``(B, C, *S)``.

    >>> from lookfar import create_block
    >>> x = torch.randn(2, 16, 5, 4)
    >>> parts = decompose(create_block("nonlocal", 16), x)
    >>> parts.pairwise_map().shape, parts.unary_map().shape
    (torch.Size([2, 1, 20, 20]), torch.Size([2, 1, 1, 20]))
    >>> decompose(create_block("nonlocal", 16, mode="dot_product"), x) is None
    True
    """
    block = inner_block(module)
    if isinstance(block, TokenAttention):
        with torch.no_grad():
            tokens = x.transpose(1, 2)
            q, k, _ = block.parts(tokens)
            return None if block.bias(tokens) is not None else Decomposition(widened(q), widened(k), block.scale)
    inside = getattr(block, "position", block)  # of dual attention, whose maps are those of its position attention
    if why_no_maps(block) or not isinstance(inside, PairwiseAttention) or inside.normalization != "softmax":
        return None
    with torch.no_grad():
        q, k, _ = inside._queries_keys_values(x)
        q, k = widened(q), widened(k)
        # windows, crosses and weights with positions have queries and keys too, whose softmax they are not
        queries = math.prod(query_size(block, x.shape[2:]))
        some = torch.tensor([0, queries - 1], device=x.device)
        weights = block.attention(x, some)  # pyright: ignore[reportCallIssue]
        if q.dim() != 4 or k.dim() != 4 or q.shape[:3] != (*weights.shape[:2], queries):
            return None
        want = attention_weights(q[..., some, :], k, scale=inside.scale)
        if want.shape != weights.shape or not torch.allclose(want, weights, atol=1e-4):
            return None
    return Decomposition(q, k, inside.scale)
