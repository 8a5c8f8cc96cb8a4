"""The map of two steps of criss-cross attention: where a query has heard from, and not only whom it asks.

The second step's row of a query is not zero on its row and column alone; each of these positions has looked along its
own row and column in the first step. The product of the two sparse maps has, for one query, as many summands as the
map has positions: the positions of its column own all rows of the map, and those of its row own all columns.
"""

import torch
from torch import Tensor, nn

from lookfar.blocks.criss_cross import CrissCross


def two_step_map(block: nn.Module, x: Tensor, query: tuple[int, int]) -> Tensor | None:
    """The weights ``(heads, H, W)`` of the last two steps together, for one query.

    Args:
        block: The block; None is returned for other blocks, a single step, videos and weights other than a softmax.
        x: Its input ``(1, C, H, W)``.
        query: The position (y, x).

    >>> from lookfar import create_block
    >>> block, x = create_block("criss_cross", 16, zero_init=False), torch.randn(1, 16, 5, 4)
    >>> two_step_map(block, x, (2, 1)).shape
    torch.Size([1, 5, 4])
    """
    if not isinstance(block, CrissCross) or block.recurrence < 2 or block.normalization != "softmax" or x.dim() != 4:
        return None
    (H, W), (y, z) = x.shape[2:], query
    second = block.attention(x, torch.tensor([y * W + z], device=x.device))
    second = second[0, :, 0].double().unflatten(-1, (H, W))  # (h, H, W), zero off the cross
    for _ in range(block.recurrence - 2):
        x = block._step(x)
    q, k, _ = block._queries_keys_values(x)
    q, k = q[0].double(), k[0].double()  # (h, H, W, D)
    column, row = second[:, :, z], second[:, y].clone()
    row[:, z] = 0  # the query itself is in both
    total = torch.zeros_like(second)
    for asked, weights, across in ((q[:, :, z], column, False), (q[:, y], row, True)):
        # positions of the query's column have all rows for themselves, those of its row all columns
        keys = k.transpose(1, 2) if across else k  # (h, n, m, D): line by line
        at = y if across else z
        own = torch.einsum("hnd,hnmd->hnm", asked, keys)
        other = torch.einsum("hnd,hpd->hnp", asked, keys[:, :, at])
        other.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # the own position counts once
        first = torch.cat([own, other], -1).softmax(-1) * weights[..., None]
        added = first[..., : own.shape[-1]].clone()
        added[:, :, at] += first[..., own.shape[-1] :].sum(1)
        total += added.transpose(1, 2) if across else added
    return total
