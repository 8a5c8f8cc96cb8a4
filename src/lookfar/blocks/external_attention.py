"""EANet: every position looks into two small memories that all images share, instead of at the other positions.

Traps: the first softmax runs over the positions, so crops, tiles and padding change the result; nothing non-linear
stands between a convolution and a memory, so they are merged; ``S`` of the paper is ``k`` in the code, here ``bases``.
"""

from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Dims, Norm, Placement, added, norm_of, normed
from lookfar.blocks._reading import ReadLinear, weights_of
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._rectified import rectified
from lookfar.ops.external_attention import Normalization, external_attention


@block(
    "external_attention",
    title="External attention (EANet)",
    paper="Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks (TPAMI 2022)",
    arxiv="2105.02358",
    formula=(
        r"y = x + \text{BN}(P\,M_v\,a), \quad a = \text{double}(M_k\,(W x + b)) \text{, over positions, then slots}",
    ),
    family="external",
    complexity="N C S + C^2 S",
    memory="N C + N S",
    verified=("MenghaoGuo/EANet@59c03cb:model_torch.py",),
    attends="none",
    aliases=("eanet",),
    differences=(
        "The authors tie the two memories' storage when they build the unit, which moving to a GPU undoes; here they "
        "are two parameters that start equal.",
        "The published unit ends in a ReLU: `final_act=True`; loading published weights switches it on.",
        "1e-9 in the second normalisation stands in the code, not in the paper, and is kept.",
    ),
    author_keys={
        "conv1": "embed",
        "linear_0": "key",
        "linear_1": "value",
        r"conv2\.0": "project",
        r"conv2\.1": "norm",
    },
)
class ExternalAttention(nn.Module):
    """Adds to every position a mixture of S learned value rows, chosen by its similarity to S learned keys.

    y = x + BN(P M_v a), a = double normalisation (over positions, then slots) of M_k (W x + b)

    With heads each looks with its share of W x + b into the same memories, whose rows are then as short, and P takes
    what all of them found.

    There is no middle step to switch off: the slots are parameters and do not meet.

    Args:
        bases: Number S of memory slots.
        heads: Attentions side by side, each on its share of the channels; all share the memories, as in EAMLP.
        normalization: Normalisation of the similarities: ``double`` as published, ``softmax`` over slots (the paper's
            ablation), ``l1`` over slots, ``sigmoid``, ``none``.
        norm_layer: Normalisation after the last convolution.
        final_act: End in a ReLU, as published.
        zero_init: Start as the identity (the normalisation's weight 0); else as the authors do.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: An unknown ``normalization``, heads that do not divide the channels.

    Example:
        >>> block = ExternalAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        bases: int = 64,
        heads: int = 1,
        normalization: Normalization = "double",
        norm_layer: Norm = nn.BatchNorm2d,
        final_act: bool = False,
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        divides("heads", heads, channels=channels)
        self.heads = heads
        self.normalization: Normalization = normalization
        self.final_act = final_act
        self.embed = CONV[dims](channels, channels, 1, **dd)
        self.key = ReadLinear(channels // heads, bases, bias=False, **dd)
        self.value = ReadLinear(bases, channels // heads, bias=False, **dd)
        self.project = CONV[dims](channels, channels, 1, bias=False, **dd)
        self.norm = norm_of(norm_layer, dims)(channels, **dd)
        for layer, fan in ((self.embed, channels), (self.key, bases), (self.project, channels)):
            nn.init.normal_(layer.weight, std=(2 / fan) ** 0.5)
        with torch.no_grad():
            self.value.weight.copy_(self.key.weight.T)
        if zero_init:
            nn.init.zeros_(cast(nn.Parameter, self.norm.weight))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """The embedding's bias adds a number to a slot's every similarity: the softmax over positions cancels it."""
        return ("embed.bias",) if self.normalization == "double" else ()

    def forward(self, x: Tensor) -> Tensor:
        y = added(self, x, normed(self.norm, self._merged(x) if self.heads == 1 else self._of_heads(x)))
        return rectified(y) if self.final_act else y

    def _merged(self, x: Tensor) -> Tensor:
        """One head: memories and convolutions are one matrix before, one behind."""
        (W, b), (key, _), (value, _), (P, _) = map(weights_of, (self.embed, self.key, self.value, self.project))
        # the bias goes in where it cancels, too: a parameter outside the graph stops DDP
        bias = key @ cast(Tensor, b)  # (S,)
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, N, C), a view
        mixed = external_attention(
            tokens, key @ W.flatten(1), (P.flatten(1) @ value).T, bias=bias, normalization=self.normalization
        )
        return to_map(mixed, x)

    def _of_heads(self, x: Tensor) -> Tensor:
        """Merged, each head would read all channels: several look into the memories with what they share of W x."""
        tokens = to_tokens(self.embed(x), self.heads)
        (key, _), (value, _) = weights_of(self.key), weights_of(self.value)
        mixed = external_attention(tokens, key, value.T, normalization=self.normalization)
        return self.project(to_map(mixed, x))

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights belong to the unit with its final ReLU, which is switched on."""
        self.final_act = True
        return state
