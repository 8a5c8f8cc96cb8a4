"""DANet: attention between positions and between channels.

Traps: similarities are not divided by sqrt(D); the paper's alpha and beta are both ``gamma`` in the authors' code; a
channel looks at those that are least like it, and on real maps, whose energies are sums over many positions, in effect
copies one of them.
"""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Dims, Placement, added_gated, gate, gated, keeps_input
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, reduced
from lookfar.ops._layout import match_format, positions
from lookfar.ops.attention import Normalization
from lookfar.ops.channel_attention import channel_attention


@block(
    "position_attention",
    title="Position attention (DANet)",
    paper="Dual Attention Network for Scene Segmentation (CVPR 2019)",
    arxiv="1809.02983",
    formula=(r"y_i = x_i + \gamma \sum_j \text{softmax}_j(q_i^\top k_j)\,v_j",),
    family="pairwise",
    complexity="N^2 C",
    memory="N C",
    verified=(
        "junfu1115/DANet@b0a0fa00:encoding/nn/da_att.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/da_head.py (PAM)",
    ),
    attends="weights",
    aliases=("pam",),
    author_keys={
        "query_(conv|project)": "query",
        "key_(conv|project)": "key",
        "value_(conv|project)": "value",
        r"gamma\.scale": "gamma",
    },
)
class PositionAttention(PairwiseAttention):
    """Adds to every position a learned share of what all positions hold, weighted by similarity.

    y_i = x_i + gamma sum_j softmax_j(q_i . k_j) v_j

    Args:
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: ``heads`` does not divide ``channels``, an unknown choice, choices that exclude each other.

    Example:
        >>> import torch
        >>> block = PositionAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        reduction: int = 8,
        heads: int = 1,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        conv = CONV[dims]
        inner = inner_channels or reduced(channels, reduction, heads)
        divides("heads", heads, channels=channels, inner_channels=inner)
        super().__init__(
            Switches(heads, normalization, share_query_key, projections),
            partial(conv, channels, inner, 1, **dd),
            partial(conv, channels, channels, 1, **dd),
        )
        self.project = None if projections == "inside" else conv(inner, channels, 1, **dd)
        self.gamma = gate(self, zero_init, **dd)


@block(
    "channel_attention",
    title="Channel attention (DANet)",
    paper="Dual Attention Network for Scene Segmentation (CVPR 2019)",
    arxiv="1809.02983",
    formula=(r"y_c = x_c + \gamma \sum_d \text{softmax}_d(-x_c^\top x_d)\,x_d",),
    family="channel",
    complexity="N C^2",
    memory="N C + C^2",
    verified=(
        "junfu1115/DANet@b0a0fa00:encoding/nn/da_att.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/da_head.py (CAM)",
    ),
    attends="none",
    aliases=("cam",),
    differences=(
        "The paper's softmax is of the energies, the authors' code takes it of (largest - energy), which flips the "
        "sign: the least similar channel gets most weight. The default is the code's; similarity='most' is the "
        "paper's.",
        "Energies E_cd = sum_n x_cn x_dn grow with N, and in effect each channel copies one other: on 4096 rectified "
        "random positions the largest weight of a row is above 0.8 on average. scale=True takes means, and among 64 "
        "channels it is below 0.05.",
    ),
    author_keys={r"gamma\.scale": "gamma"},
)
class ChannelAttention(nn.Module):
    """Adds to every channel a learned share of the other channels, the less alike the more; no other parameter.

    y_c = x_c + gamma sum_d softmax_d(-x_c . x_d) x_d

    The products are summed over the positions, or averaged (``scale``).

    Args:
        channels: Channels C of input and output; any number is taken.
        similarity: Weights go to the ``least`` similar channels, as the authors' code has it, or to the ``most``
            similar, as the paper does.
        scale: Divide the products by the number of positions, which keeps the weights soft on maps of any size.
        dims: Spatial axes of the map: 1, 2 or 3; None takes any.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, *S) -> (B, C, *S)``

    Raises:
        ValueError: An unknown similarity.

    Example:
        >>> import torch
        >>> block = ChannelAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        similarity: Literal["least", "most"] = "least",
        scale: bool = False,
        dims: Dims | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.sign, self.scale = (-1.0 if similarity == "least" else 1.0), scale
        self.gamma = gate(self, zero_init, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return added_gated(self, x, self.gamma, self._mixed(x))

    def update(self, x: Tensor) -> Tensor:
        """What is added to the input."""
        return gated(self.gamma, self._mixed(x))

    def _mixed(self, x: Tensor) -> Tensor:
        scale = self.sign / (max(positions(x), 1) if self.scale else 1)
        return match_format(channel_attention(x.flatten(2), scale=scale).unflatten(2, x.shape[2:]), x)


@block(
    "dual_attention",
    title="Dual attention (DANet)",
    paper="Dual Attention Network for Scene Segmentation (CVPR 2019)",
    arxiv="1809.02983",
    formula=(
        r"y = x + \gamma_p\,O_p(x) + \gamma_c\,O_c(x)",
        r"O_p(x)_i = \sum_j \text{softmax}_j(q_i^\top k_j)\,v_j \quad \text{over positions } j",
        r"O_c(x)_c = \sum_d \text{softmax}_d(-x_c^\top x_d)\,x_d \quad \text{over channels } d",
    ),
    family="pairwise",
    complexity="N^2 C + N C^2",
    memory="N C + C^2",
    verified=("junfu1115/DANet@b0a0fa00:encoding/nn/da_att.py, its two modules",),
    attends="weights",
    aliases=("danet",),
    differences=(
        "The authors' head runs the two attentions on features of their own and adds the results, residuals and all; "
        "as one block both see the same input, which is added once.",
    ),
    author_keys={
        r"(sa|pam)\.query_(conv|project)": "position.query",
        r"(sa|pam)\.key_(conv|project)": "position.key",
        r"(sa|pam)\.value_(conv|project)": "position.value",
        r"(sa|pam)\.gamma(\.scale)?": "position.gamma",
        r"(sc|cam)\.gamma(\.scale)?": "channel.gamma",
    },
)
class DualAttention(nn.Module):
    """Attention between positions beside attention between channels.

    y = x + gamma_p O_p(x) + gamma_c O_c(x)

    Args:
        inner_channels: Channels of the positions' queries and keys, all heads together; ``channels // reduction`` when
            None.
        heads: Groups of channels in which positions attend by themselves; the authors have one.
        normalization: Normalisation of the similarities between positions, as in ``position_attention``.
        share_query_key: One projection for the positions' queries and keys.
        projections: Those of the position attention, as in ``position_attention``; the channels' has none.
        zero_init: Start as the identity (both gammas 0), as the authors do; else they start at 1.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: ``heads`` does not divide ``channels``, an unknown choice, choices that exclude each other.

    Example:
        >>> import torch
        >>> block = DualAttention(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        reduction: int = 8,
        heads: int = 1,
        normalization: Normalization = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        both: dict[str, Any] = {"dims": dims, "zero_init": zero_init, "residual": keeps_input(self), **dd}
        self.position = PositionAttention(
            channels,
            inner_channels=inner_channels,
            reduction=reduction,
            heads=heads,
            normalization=normalization,
            share_query_key=share_query_key,
            projections=projections,
            **both,
        )
        self.channel = ChannelAttention(channels, **both)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Those of the position attention."""
        return tuple(f"position.{name}" for name in self.position.inert_parameters)

    def forward(self, x: Tensor) -> Tensor:
        return self.position(x) + self.channel.update(x)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the position attention; the channels' are over no positions."""
        return self.position.attention(x, queries)

    def values(self, x: Tensor) -> Tensor:
        """What the position attention mixes, ``(B, h, N, E)``."""
        return self.position.values(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the position attention's weighted sums ``(B, h, N, E)``."""
        return self.position.finish(x, mixed) + self.channel.update(x)
