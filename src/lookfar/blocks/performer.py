"""Performer attention of tokens, as T2T-ViT has it in its first stages: softmax by positive random features.

Traps: the matrix of the features is drawn once, is not trained and belongs to the weights; there is no scale on the
similarities; the original's one layer gives key, query and value, in this order.
"""

import math

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.ops._layout import merge_heads, split_heads
from lookfar.ops.random_features import random_features, random_features_weights


@block(
    "performer",
    title="Performer attention of tokens (T2T-ViT)",
    paper="Rethinking Attention with Performers (ICLR 2021)",
    arxiv="2009.14794",
    formula=(
        r"y = P\,[\,A_1 v_1, \ldots, A_h v_h\,] + b",
        r"A_{ij} = \frac{\phi(q_i)^\top \phi(k_j)}{\sum_l \phi(q_i)^\top \phi(k_l) + 10^{-8}},"
        r" \quad \phi(x) = \frac{1}{\sqrt{m}} \exp(w x - \|x\|^2 / 2)",
    ),
    family="pairwise",
    kind="tokens",
    complexity="N C (m + C)",
    memory="N (C + h m)",
    verified=("yitu-opensource/T2T-ViT@3862e28:models/token_performer.py",),
    attends="weights",
    residual=False,
    aliases=("favor", "token_performer"),
    differences=(
        "The paper draws the features' lengths at random and redraws the features in training; T2T-ViT draws rows "
        "that are orthogonal, all of length sqrt(m), and keeps them, as is done here.",
        "The paper divides queries and keys by D^1/4, so that exp(q . k / sqrt(D)) is what is approximated; T2T-ViT "
        "does not, nor does this.",
        "The original's dropouts are left out: they do nothing in evaluation.",
    ),
    author_keys={"proj": "project", "w": "features"},
)
class Performer(nn.Module):
    """Every token mixes the values of all tokens by random features of its query and of their keys, in linear time.

    y = P [A_1 v_1, .., A_h v_h] + b, A = phi(q) phi(k)^T over its sums + 1e-8, phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)

    Args:
        channels: Channels C of the tokens.
        heads: Parallel attentions h, which share the features.
        out_channels: Width of queries, keys, values and output; C by default.
        features: Number m of features; half of a head's width when None.
        bias: Give the projections to queries, keys and values a bias.

    Shape: ``(B, N, C) -> (B, N, out_channels or C)``

    Raises:
        ValueError: Heads that do not divide the width.

    Example:
        >>> block = Performer(16)
        >>> block(torch.randn(2, 30, 16)).shape
        torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        out_channels: int | None = None,
        features: int | None = None,
        bias: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        out = out_channels or channels
        divides("heads", heads, out_channels=out)
        self.channels, self.heads = channels, heads
        self.query, self.key, self.value = (nn.Linear(channels, out, bias=bias, **dd) for _ in range(3))
        self.project = nn.Linear(out, out, **dd)
        m = max(out // heads // 2, 1) if features is None else features
        w = torch.empty(m, out // heads, **dd)
        nn.init.orthogonal_(w, math.sqrt(m))
        self.features: Tensor
        self.register_buffer("features", w)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Tokens, one a position of a map of ``size``."""
        return (torch.randn(batch, torch.Size(size).numel(), self.channels),)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.mix(x)[0])

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sums for every token, and the values that they are of, ``(B, h, N, D)`` both."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        return random_features(q, k, v, self.features), v

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` for the tokens ``queries`` (Q,), for all when None."""
        q, k = (split_heads(layer(x), self.heads) for layer in (self.query, self.key))
        return random_features_weights(q if queries is None else q[..., queries, :], k, self.features)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, N, D)``."""
        return split_heads(self.value(x), self.heads)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, D)``."""
        return self.project(merge_heads(mixed))

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their one layer gives key, query and value, in this order."""
        state = dict(state)
        for name in ("kqv.weight", "kqv.bias"):
            if name in state:
                parts = state.pop(name).chunk(3)
                state |= {f"{part}.{name[4:]}": t for part, t in zip(("key", "query", "value"), parts)}
        return state
