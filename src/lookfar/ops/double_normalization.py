"""Double normalisation: softmax over the positions, then each position's weights divided by their sum over the slots.

With e = exp(l - log sum_positions exp(l)) it is a = e / (1e-9 + sum_slots e): a softmax over the slots, into which the
other positions enter as one number per slot, its log-popularity. Traps: the order of the axes; 1e-9 is 0 in half
precision, and matters where a position is rejected by every slot.
"""

from torch import Tensor

from lookfar.ops._autograd import for_graphs, has_tangent
from lookfar.ops._precision import softmax, widened

EPS = 1e-9


def double_normalization_reference(logits: Tensor, *, positions: int = -2, slots: int = -1) -> Tensor:
    """The definition: softmax over the positions, then division by 1e-9 + the sum over the slots.

    >>> import torch
    >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    >>> double_normalization_reference(logits)  # columns (3, 1) / 4 and (1, 1) / 2, then rows
    tensor([[0.6000, 0.4000],
            [0.3333, 0.6667]])
    """
    a = widened(logits).softmax(positions)
    return (a / (EPS + a.sum(slots, keepdim=True))).to(logits.dtype)


def double_normalization(logits: Tensor, *, positions: int = -2, slots: int = -1) -> Tensor:
    """Both normalisations, in float32 at least: what underflows there is far below 1e-9.

    >>> import torch
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
    a = softmax(widened(logits), positions)
    total = a.sum(slots, keepdim=True) + EPS
    in_place = not (a.requires_grad or for_graphs() or has_tangent(a))
    return (a.div_(total) if in_place else a / total).to(logits.dtype)
