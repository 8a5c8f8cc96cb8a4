"""DANet: attention between positions and between channels.

Traps: similarities are not divided by sqrt(D); the paper's alpha and beta are both ``gamma`` in the authors' code.
"""

import torch
from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops.embedded_gaussian import embedded_gaussian, embedded_gaussian_weights


@block(
    "position_attention",
    title="Position attention (DANet)",
    paper="Dual Attention Network for Scene Segmentation (CVPR 2019)",
    arxiv="1809.02983",
    family="pairwise",
    complexity="N^2 C",
    memory="N C",
    verified=("junfu1115/DANet@b0a0fa00:encoding/nn/da_att.py",),
    attends="weights",
    aliases=("pam",),
    author_keys={
        "query_(conv|project)": "query",
        "key_(conv|project)": "key",
        "value_(conv|project)": "value",
        r"gamma\.scale": "gamma",
    },
)
class PositionAttention(nn.Module):
    """Adds to every position a learned share of what all positions hold, weighted by similarity.

    y_i = x_i + gamma sum_j softmax_j(q_i . k_j) v_j

    Args:
        channels: Channels C of input and output.
        reduction: Queries and keys have ``channels // reduction`` channels.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``
    """

    def __init__(self, channels: int, *, reduction: int = 8, zero_init: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = max(channels // reduction, 1)
        self.query = nn.Conv2d(channels, inner, 1, **dd)
        self.key = nn.Conv2d(channels, inner, 1, **dd)
        self.value = nn.Conv2d(channels, channels, 1, **dd)
        self.gamma = nn.Parameter(torch.full((1,), 0.0 if zero_init else 1.0, **dd))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """A key bias adds the same number to every logit of a query: softmax does not see it."""
        return ("key.bias",)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = to_tokens(self.query(x)), to_tokens(self.key(x)), to_tokens(self.value(x))  # (B, 1, N, D|D|C)
        return self.finish(x, embedded_gaussian(q, k, v))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, 1, Q, N)`` of the flat query positions ``(Q,)``, of all when None."""
        q, k = to_tokens(self.query(x)), to_tokens(self.key(x))
        return embedded_gaussian_weights(q if queries is None else q[..., queries, :], k)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, 1, N, C)``."""
        return to_tokens(self.value(x))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, 1, N, C)``."""
        return x + self.gamma * to_map(mixed, x)
