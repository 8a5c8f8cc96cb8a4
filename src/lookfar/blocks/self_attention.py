"""Multi-head self-attention of tokens, with the normalisations that the family compares.

Traps: under double normalisation a token's output depends on which other tokens ask, so windows and crops change it.
"""

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, after_mixing
from lookfar.ops._layout import merge_heads, split_heads
from lookfar.ops.attention import Normalization, attention


@block(
    "self_attention",
    title="Self-attention of tokens (T2T-ViT)",
    paper="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet (ICCV 2021)",
    arxiv="2101.11986",
    formula=(
        r"y = P\,[\,A_1 v_1, \ldots, A_h v_h\,] + b, \quad A_t = \text{softmax}(\text{scale} \cdot q_t k_t^\top)",
    ),
    family="pairwise",
    kind="tokens",
    complexity="N^2 C + N C^2",
    memory="N C",
    verified=(
        "yitu-opensource/T2T-ViT@0f63dc9:models/transformer_block.py",
        'equations of arXiv:2105.02358, float64 loop (normalization="double")',
    ),
    attends="weights",
    residual=False,
    aliases=("mhsa",),
    differences=(
        "Query, key and value are three layers here, one in the original; its weights are split when they are loaded.",
        "The original's dropouts are left out: they do nothing in evaluation.",
    ),
    author_keys={"proj": "project"},
)
class SelfAttention(PairwiseAttention):
    """Every token mixes the values of all tokens, by similarity of its query to their keys.

    y = P [A_1 v_1, .., A_h v_h] + b, A_t = softmax(scale q_t k_t^T)

    Args:
        channels: Channels C of the tokens.
        heads: Parallel attentions h; None is the published 8, or the largest divisor of the
            width below it.
        out_channels: Width of queries, keys, values and output; C by default.
        bias: Give the projections to queries, keys and values a bias.
        scale: Factor on the similarities; (C / h)^-1/2 by default.
        normalization: Normalisation of the similarities: ``softmax``; ``double``, softmax over the queries and then
            each query's weights divided by their sum, which discounts keys that everybody likes; ``l1``, ``sigmoid``,
            ``none``.
        share_query_key: Queries are the keys, and their layer is one.

    Shape: ``(B, N, C) -> (B, N, C)``

    Raises:
        ValueError: Heads that do not divide the width, an unknown choice, choices that exclude each other.

    Example:
        >>> block = SelfAttention(16)
        >>> block(torch.randn(2, 30, 16)).shape
        torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int | None = None,
        out_channels: int | None = None,
        bias: bool = False,
        scale: float | None = None,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        **dd: Unpack[Placement],
    ) -> None:
        out = out_channels or channels
        heads = largest_divisor(8, out) if heads is None else heads
        divides("heads", heads, out_channels=out)
        layer = partial(nn.Linear, channels, out, bias=bias, **dd)
        super().__init__(Switches(heads, normalization, share_query_key, projections), layer, layer)
        self.channels = channels
        self.scale = max(channels // heads, 1) ** -0.5 if scale is None else scale
        self.project = nn.Linear(out, out, **dd)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Tokens, one a position of a map of ``size``."""
        return (torch.randn(batch, torch.Size(size).numel(), self.channels),)

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sums for every token, and the values that they are of, ``(B, h, N, D)`` both."""
        q, k, v = self._queries_keys_values(x)
        return attention(q, k, v, scale=self.scale, normalization=self.normalization), v

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the weighted sums ``(B, h, N, D)``."""
        return after_mixing(self.project, merge_heads(mixed), self.normalization)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their one layer gives query, key and value, in this order."""
        state = dict(state)
        for name in ("qkv.weight", "qkv.bias"):
            if name in state:
                parts = state.pop(name).chunk(3)
                state |= {f"{part}.{name[4:]}": t for part, t in zip(("query", "key", "value"), parts)}
        return state

    def _split(self, t: Tensor) -> Tensor:
        return split_heads(t, self.heads)
