"""CCNet: every position looks along its own row and column; applied twice, it has heard from every other position.

Traps: the own position counts once; similarities are not divided by sqrt(D); the residual is inside every recurrence.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops.criss_cross import criss_cross, criss_cross_weights


@block(
    "criss_cross",
    title="Criss-cross attention (CCNet)",
    paper="CCNet: Criss-Cross Attention for Semantic Segmentation (ICCV 2019, TPAMI 2020)",
    arxiv="1811.11721",
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
class CrissCross(nn.Module):
    """Adds to every position a learned share of what its row and column hold, weighted by similarity; R times.

    x <- x + gamma sum_{j in cross(i)} softmax_j(q_i . k_j) v_j, with the same parameters in each of the R steps.

    Args:
        channels: Channels C of input and output.
        reduction: Queries and keys have ``channels // reduction`` channels.
        recurrence: Number R of applications; from 2 on every position reaches every other.
        heads: Groups of channels that attend by themselves; the authors have one.
        share_query_key: One projection for queries and keys.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: ``heads`` does not divide ``channels``, or ``recurrence`` is no positive number.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        recurrence: int = 2,
        heads: int = 1,
        share_query_key: bool = False,
        zero_init: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if recurrence < 1:
            raise ValueError(f"recurrence counts the applications and is at least 1, got {recurrence}")
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {heads=}, {channels=}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = heads * max(channels // reduction // heads, 1)
        self.recurrence = recurrence
        self.heads = heads
        self.query = nn.Conv2d(channels, inner, 1, **dd)
        self.key = None if share_query_key else nn.Conv2d(channels, inner, 1, **dd)
        self.value = nn.Conv2d(channels, channels, 1, **dd)
        self.gamma = nn.Parameter(torch.full((1,), 0.0 if zero_init else 1.0, **dd))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """A key bias adds the same number to every logit of a query: softmax does not see it."""
        return () if self.key is None else ("key.bias",)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = self._step(x)
        return x

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the last recurrence for flat query positions ``(Q,)``: zero off the cross."""
        x = self._last_input(x)
        return criss_cross_weights(*self._queries_and_keys(x), queries)

    def values(self, x: Tensor) -> Tensor:
        """What the last recurrence mixes, ``(B, h, N, C/h)``."""
        return to_tokens(self.value(self._last_input(x)), self.heads)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, h, N, C/h)`` of the last recurrence."""
        return self._add(self._last_input(x), mixed)

    def _lines(self, project: nn.Module, x: Tensor) -> Tensor:
        return to_tokens(project(x), self.heads).unflatten(2, x.shape[2:])  # (B, h, H, W, D)

    def _step(self, x: Tensor) -> Tensor:
        y = criss_cross(*self._queries_and_keys(x), self._lines(self.value, x))
        return self._add(x, y.flatten(2, 3))

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self._lines(self.query, x)
        return q, q if self.key is None else self._lines(self.key, x)

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        return x + (self.gamma.to(mixed.dtype) * to_map(mixed, x)).to(x.dtype)

    def _last_input(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence - 1):
            x = self._step(x)
        return x
