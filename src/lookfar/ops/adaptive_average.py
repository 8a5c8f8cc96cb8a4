"""Average pooling into a fixed number of bins, by averaging matrices.

Traps: ``adaptive_avg_pool2d`` exports silently wrong to ONNX with free sizes and is not deterministic on CUDA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._precision import widened, without_autocast


def adaptive_average_reference(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """The definition: bin i holds the mean of rows floor(iH/b) .. ceil((i+1)H/b) - 1; columns likewise.

    >>> adaptive_average_reference(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1, 2)).tolist()  # the bins share the middle
    [[[[1.5, 2.5]]]]
    """
    return F.adaptive_avg_pool2d(x, bins)


def adaptive_average(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """Means over a grid of bins that overlap where they do not divide the map: A_h x A_w^T.

    >>> adaptive_average(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1, 2)).tolist()  # the bins share the middle
    [[[[1.5, 2.5]]]]

    Shape: ``(B, C, H, W) -> (B, C, b_h, b_w)``, in float32 where ``x`` is in half precision.
    """
    b_h, b_w = (bins, bins) if isinstance(bins, int) else bins
    with without_autocast(x):
        x = widened(x)
        if b_h == b_w == 1:
            return x.mean((2, 3), keepdim=True)
        return _averaging_matrix(x.shape[2], b_h, x) @ x @ _averaging_matrix(x.shape[3], b_w, x).T


def _averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """``(bins, size)`` with rows that sum to one, on the device and in the type of ``like``."""
    position = torch.arange(size, device=like.device)
    i = torch.arange(bins, device=like.device)[:, None]
    start, end = i * size // bins, ((i + 1) * size + bins - 1) // bins
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
