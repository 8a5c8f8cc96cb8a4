"""Average pooling into a fixed number of bins, by averaging matrices.

Traps: ``adaptive_avg_pool2d`` exports silently wrong to ONNX with free sizes and is not deterministic on CUDA.
"""

import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._averages import averages


def adaptive_average_reference(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """The definition: bin i holds the mean of rows floor(iH/b) .. ceil((i+1)H/b) - 1; columns likewise.

    >>> import torch
    >>> adaptive_average_reference(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1, 2)).tolist()  # the bins share the middle
    [[[[1.5, 2.5]]]]
    """
    return F.adaptive_avg_pool2d(x, bins)


def adaptive_average(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """Means over a grid of bins that overlap where they do not divide the map: A_h x A_w^T.

    >>> import torch
    >>> adaptive_average(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1, 2)).tolist()  # the bins share the middle
    [[[[1.5, 2.5]]]]

    Shape: ``(B, C, H, W) -> (B, C, b_h, b_w)``, in float32 where ``x`` is in half precision.
    """
    return averages(x, [(bins, bins) if isinstance(bins, int) else bins])[0]
