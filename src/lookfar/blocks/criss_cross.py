"""CCNet: every position looks along its own row and column; applied twice, it has heard from every other position.

On videos (the paper's 3-D form, which the authors did not release) also along time; three steps reach everywhere then.

Traps: the own position counts once; similarities are not divided by sqrt(D); the residual is inside every recurrence.
"""

from functools import partial
from typing import Annotated, Literal

from torch import Tensor
from typing_extensions import Unpack

from lookfar._options import Refused, Steps, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Placement, gate, keeps_input
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, reduced
from lookfar.ops._layout import to_tokens
from lookfar.ops._normalization import RowNormalization
from lookfar.ops.criss_cross import WHY_NOT_DOUBLE, criss_cross, criss_cross_weights

ON_A_LINE = "on a line every position sees all others, which is position_attention(dims=1)"


@block(
    "criss_cross",
    title="Criss-cross attention (CCNet)",
    paper="CCNet: Criss-Cross Attention for Semantic Segmentation (ICCV 2019, TPAMI 2020)",
    arxiv="1811.11721",
    formula=(r"x_i \leftarrow x_i + \gamma \sum_{j \in \text{cross}(i)} \text{softmax}_j(q_i^\top k_j)\,v_j",),
    family="sparse",
    complexity="R N (H + W) C",
    memory="N C",
    verified=(
        "speedinghzl/CCNet@1fae6c67:cc_attention/functions.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/cc_head.py",
    ),
    attends="weights",
    aliases=("ccnet", "cca"),
    differences=(
        "The paper's recurrence R is a setting of the authors' head, which calls one module R times; "
        "here it is `recurrence`.",
    ),
    author_keys={
        "query_conv": "query",
        "key_conv": "key",
        "value_conv": "value",
        r"gamma\.scale": "gamma",
    },
)
class CrissCross(PairwiseAttention):
    """Adds to every position a learned share of what its row and column hold, weighted by similarity; R times.

    x <- x + gamma sum_{j in cross(i)} softmax_j(q_i . k_j) v_j

    The R steps share their parameters.

    Args:
        reduction: Queries and keys have ``channels // reduction`` channels, all heads together.
        recurrence: Number R of applications; from 2 on every position of a map reaches every other, from 3 on every
            position of a video.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.
        residual: Add the input; off, the last of the R steps is what it adds alone, and no step has a gate.
        dims: Spatial axes of the maps, 2 or 3: on a video a position looks along time too.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``, or ``(B, C, T, H, W)`` with ``dims=3``.

    Raises:
        ValueError: ``heads`` does not divide ``channels``, ``recurrence`` is no positive number, an unknown choice,
            choices that exclude each other.

    Example:
        >>> import torch
        >>> block = CrissCross(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        recurrence: Steps = 2,
        heads: int = 1,
        normalization: Annotated[RowNormalization, Refused("double", WHY_NOT_DOUBLE)] = "softmax",
        share_query_key: bool = False,
        projections: Projections = "inside",
        zero_init: bool = True,
        dims: Annotated[Literal[2, 3], Refused(1, ON_A_LINE)] = 2,
        **dd: Unpack[Placement],
    ) -> None:
        inner = reduced(channels, reduction, heads)
        divides("heads", heads, channels=channels)
        super().__init__(
            Switches(heads, normalization, share_query_key, projections),
            partial(CONV[dims], channels, inner, 1, **dd),
            partial(CONV[dims], channels, channels, 1, **dd),
        )
        self.recurrence = recurrence
        self.project = None if projections == "inside" else CONV[dims](inner, channels, 1, **dd)
        self.gamma = gate(self, zero_init, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self._step(self._last_input(x))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the last recurrence for flat query positions ``(Q,)``: zero off the cross."""
        q, k, _ = self._queries_keys_values(self._last_input(x))
        return criss_cross_weights(q, k, queries, normalization=self.normalization)

    def values(self, x: Tensor) -> Tensor:
        """What the last recurrence mixes, ``(B, h, N, E)``."""
        return self._queries_keys_values(self._last_input(x))[2].flatten(2, -2)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, h, N, E)`` of the last recurrence."""
        return super().finish(self._last_input(x), mixed)

    def _split(self, t: Tensor) -> Tensor:
        return to_tokens(t, self.heads).unflatten(2, t.shape[2:])  # (B, h, *S, D)

    def _step(self, x: Tensor) -> Tensor:
        y = criss_cross(*self._queries_keys_values(x), normalization=self.normalization)
        return super().finish(x, y.flatten(2, -2))

    def _last_input(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence - 1):
            y = self._step(x)
            x = y if keeps_input(self) else x + y
        return x
