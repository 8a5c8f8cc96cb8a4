"""Double normalisation: softmax over the positions, then each position's weights divided by their sum over the slots.

With e = exp(l - log sum_positions exp(l)) it is a = e / (1e-9 + sum_slots e): a softmax over the slots, into which the
other positions enter as one number per slot, its log-popularity. Traps: the order of the axes; 1e-9 is 0 in half
precision, and matters where a position is rejected by every slot.
"""

import math

import torch
from torch import Tensor

from lookfar.ops._precision import widened

EPS = 1e-9


def double_normalization_reference(logits: Tensor, *, positions: int = -2, slots: int = -1) -> Tensor:
    """The definition: softmax over the positions, then division by 1e-9 + the sum over the slots.

    >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    >>> double_normalization_reference(logits)  # columns (3, 1) / 4 and (1, 1) / 2, then rows
    tensor([[0.6000, 0.4000],
            [0.3333, 0.6667]])
    """
    a = widened(logits).softmax(positions)
    return (a / (EPS + a.sum(slots, keepdim=True))).to(logits.dtype)


def double_normalization(logits: Tensor, *, positions: int = -2, slots: int = -1) -> Tensor:
    """Both normalisations in logarithms, in float32 at least: nothing underflows on the way, however many positions.

    >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    >>> double_normalization(logits)  # columns (3, 1) / 4 and (1, 1) / 2, then rows
    tensor([[0.6000, 0.4000],
            [0.3333, 0.6667]])

    Args:
        logits: Similarities of any shape.
        positions: Axis of the softmax.
        slots: Axis along which the result then sums to one, or less where every slot rejects a position.

    Raises:
        ValueError: The two axes are the same.
    """
    if positions % logits.dim() == slots % logits.dim():
        raise ValueError(f"positions and slots must be two axes, got {positions=}, {slots=} of {logits.dim()}")
    l = widened(logits)
    l = l - l.logsumexp(positions, keepdim=True)
    total = l.logsumexp(slots, keepdim=True)
    # log(1e-9 + sum_slots e)
    total = torch.logaddexp(total, total.new_full((), math.log(EPS)))
    # a copy, since exp saves its result, which must not change with the returned one
    return (l - total).exp().to(logits.dtype, copy=True)
