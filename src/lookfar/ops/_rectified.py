"""A ReLU that reads its gradient's mask from what it gave, in programs compiled for a CPU.

Such a program keeps the mask of a ReLU as booleans, and Inductor's C++ takes longer to write them than eager takes for
the whole ReLU. What it gave is kept anyway where a convolution follows.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here


def rectified(x: Tensor, *, inplace: bool = False) -> Tensor:
    """``x.relu()``; ``inplace`` is for an x that nothing else reads.

    >>> rectified(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if x.is_cpu and x.requires_grad and torch.is_grad_enabled() and compiled_here():
        return _Rectified.apply(x)
    return x.relu_() if inplace else x.relu()


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,), (dy,) = ctx.saved_tensors, grads
        # zeros that depend on dy: of y alone the mask would be taken in the forward pass, and kept
        zeros = (dy > math.inf).to(y.dtype)
        return torch.where(y <= zeros, 0.0, dy)
