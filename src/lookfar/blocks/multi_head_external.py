"""EAMLP: external attention of tokens over heads that share two small memories.

Traps: the softmax runs over the tokens, so padding, crops and the class token change every output; ``coef`` of the code
multiplies the heads, so 4 heads with ``coef`` 4 are 16; nothing non-linear stands between the projections and the
memories, so they are merged where that is cheaper.
"""

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.blocks._reading import ReadLinear, weights_of
from lookfar.ops._layout import merge_heads, split_heads
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.external_attention import Normalization, external_attention_weights


@block(
    "multi_head_external",
    title="Multi-head external attention (EAMLP)",
    paper="Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks (TPAMI 2022)",
    arxiv="2105.02358",
    formula=(
        r"y = P\,[\,M_v\,a_1, \ldots, M_v\,a_h\,] + b",
        r"a_t = \text{double}(M_k\,u_t) \text{, over tokens, then slots}, \quad u = W x",
    ),
    family="external",
    kind="tokens",
    complexity="N C (C + S)",
    memory="N C + N h S",
    verified=("MenghaoGuo/EANet@59c03cb:EAMLP/models/transformer_block.py",),
    attends="maps",
    residual=False,
    aliases=("eamlp",),
    differences=(
        "1e-9 in the second normalisation stands in the code, not in the paper, and is kept.",
        "The authors' dropouts are left out: they do nothing in evaluation, and none of their models uses them.",
    ),
    author_keys={"trans_dims|q_linear": "embed", "proj": "project"},
)
class MultiHeadExternal(nn.Module):
    """Every head of every token mixes S learned value rows by the token's similarity to S learned keys.

    y = P [M_v a_1, .., M_v a_h] + b, a_t = double normalisation (over tokens, then slots) of M_k u_t, u = W x

    There is no middle step to switch off: the slots are parameters and do not meet.

    Args:
        channels: Channels C of the tokens.
        heads: Heads before the expansion, as the authors count; None is their 8, or the largest divisor
            of the width below it.
        expansion: ``coef`` of the code: the tokens are widened by it, and so many times more heads look.
        bases: Slots S of the memories, which all heads share.
        out_channels: Width of the output and, times ``expansion``, inside; C by default.
        key_bias: A bias on the similarities, as published; it cancels under ``double``.
        normalization: Normalisation of the similarities: ``double`` as published, ``softmax`` over slots, ``l1``,
            ``sigmoid``, ``none``.

    Shape: ``(B, N, C) -> (B, N, C)``

    Raises:
        ValueError: Heads that do not divide the width, an unknown ``normalization``.

    Example:
        >>> block = MultiHeadExternal(16)
        >>> block(torch.randn(2, 30, 16)).shape
        torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int | None = None,
        expansion: int = 4,
        bases: int = 64,
        out_channels: int | None = None,
        key_bias: bool = True,
        normalization: Normalization = "double",
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        heads = largest_divisor(8, out) if heads is None else heads
        divides("heads", heads, out_channels=out)
        self.channels, self.heads = channels, heads * expansion
        self.normalization: Normalization = normalization
        self.embed = ReadLinear(channels, out * expansion, **dd)
        self.key = ReadLinear(out // heads, bases, bias=key_bias, **dd)
        self.value = ReadLinear(bases, out // heads, **dd)
        self.project = ReadLinear(out * expansion, out, **dd)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """What adds a number to all similarities of a slot cancels in the softmax over the tokens."""
        if self.normalization != "double":
            return ()
        return ("embed.bias",) if self.key.bias is None else ("embed.bias", "key.bias")

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Tokens, one a position of a map of ``size``."""
        return (torch.randn(batch, torch.Size(size).numel(), self.channels),)

    def forward(self, x: Tensor) -> Tensor:
        S, inner = len(self.key.weight), len(self.embed.weight)
        ends = self.channels + len(self.project.weight)
        # multiply-adds of a token with the projections in the memories, and apart from them
        if self.heads * S * ends < inner * (ends + 2 * S):
            return self._merged(x)
        return self.mix(self.embed(x))

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memories are linear_0 and linear_1, or linear_1 and linear_2 where the keys have no bias."""
        first = 1 if self.key.bias is None else 0
        names = {f"linear_{first}": "key", f"linear_{first + 1}": "value"}
        return {
            f"{names[layer]}.{rest}" if layer in names else key: value
            for key, value in state.items()
            for layer, _, rest in [key.partition(".")]
        }

    def maps(self, x: Tensor) -> Tensor:
        """Weights over the slots, ``(B, h, S, N)``, h with the expansion."""
        return self._weights(self.embed(x)).transpose(2, 3)

    def mix(self, u: Tensor) -> Tensor:
        """The output from the embedded tokens ``(B, N, h D)``."""
        a = self._weights(u)
        with without_autocast(a):
            weight, bias = _wide(self.value)
            mixed = merge_heads(a @ weight.T + bias)
        return self.project(mixed.to(u.dtype))

    def _weights(self, u: Tensor) -> Tensor:
        tokens, (key, bias) = split_heads(u, self.heads), weights_of(self.key)
        return external_attention_weights(tokens, key, bias=bias, normalization=self.normalization)

    def _merged(self, x: Tensor) -> Tensor:
        """Embedding and key memory as one matrix a head, value memory and projection as another."""
        heads = (self.heads, -1)
        with without_autocast(x):
            (K, c), (V, d), (W, b), (P, e) = map(_wide, (self.key, self.value, self.embed, self.project))
            W, P = W.unflatten(0, heads), P.unflatten(1, heads)  # (h, D, C), (C, h, D)
            bias = b.unflatten(0, heads) @ K.T + c  # (h, S)
            a = external_attention_weights(x[:, None], K @ W, bias=bias, normalization=self.normalization)
            to_output = (P @ V).flatten(1)  # (C, h S)
            constant = P.sum(1) @ d + e
            y = a.transpose(2, 3).flatten(1, 2).transpose(1, 2) @ to_output.T + constant
        return y.to(x.dtype)


def _wide(layer: ReadLinear) -> tuple[Tensor, Tensor]:
    """Weight and bias, zero where there is none, in float32 at least."""
    weight, bias = weights_of(layer)
    weight = widened(weight)
    return weight, weight.new_zeros(len(weight)) if bias is None else widened(bias)
