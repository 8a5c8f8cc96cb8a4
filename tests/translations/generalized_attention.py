"""Generalized attention: open-mmlab/mmcv."""

import torch
from torch import Tensor, nn

from lookfar import create_block
from translations import Built, Case, translates


class StridedRange(nn.Module):
    """mmcv's spatial range where it is not that of the formula: a query's place is its number in its own grid.

    What is left of a softmax is the softmax of what is left.
    """

    def __init__(self, block: nn.Module, spatial_range: int, first_alone: bool) -> None:
        super().__init__()
        self.block, self.range, self.first_alone = block, spatial_range, first_alone

    def forward(self, x: Tensor) -> Tensor:
        near = [self._near(n, x) for n in x.shape[2:]]
        seen = (near[0][:, None, :, None] & near[1][None, :, None]).flatten(2).flatten(0, 1)
        weights = self.block.attention(x) * seen
        return self.block.finish(x, weights / weights.sum(3, keepdim=True) @ self.block.values(x))

    def _near(self, length: int, x: Tensor) -> Tensor:
        """Which keys along an axis a query sees, ``(queries, keys)``."""
        s, t = self.block.q_stride, self.block.kv_stride
        own = torch.arange((length + s - 1) // s)[:, None] * (not self.first_alone)
        keys = torch.arange((length + t - 1) // t)
        return (keys >= (own - self.range) // t) & (keys <= (own + self.range + 1) // t)


@translates("GeneralizedAttention")
def module(case: Case) -> nn.Module | Built:
    a = case.args
    near = a.get("spatial_range", -1)
    terms = a.get("attention_type", "1111")
    own = near >= 0 and (a.get("q_stride", 1) > 1 or terms == "0010")
    width = a.get("position_embedding_dim", -1)
    block = create_block(
        "generalized_attention",
        a["in_channels"],
        terms=terms,
        heads=a.get("num_heads", 9),
        q_stride=a.get("q_stride", 1),
        kv_stride=a.get("kv_stride", 2),
        position_channels=width if width > 0 else None,
        position_magnitude=a.get("position_magnitude", 1),
        spatial_range=near if near >= 0 and not own else None,
    )
    return Built(StridedRange(block, near, terms == "0010"), block) if own else block
