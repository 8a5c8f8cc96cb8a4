"""Attention of positions to S memory slots shared by all images: y_n = sum_s a_sn V_s, a normalised from K_s . x_n.

Normalisations: ``double`` (the paper's: softmax over positions, then division by the sum over slots), ``softmax`` over
slots alone, ``l1`` over slots, ``sigmoid`` of each divided by S, ``none`` (similarities divided by S).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lookfar.ops._definition import row_weights
from lookfar.ops._normalization import check_normalization
from lookfar.ops._precision import softmax, widened, without_autocast
from lookfar.ops.double_normalization import double_normalization, double_normalization_reference

Normalization = Literal["double", "softmax", "l1", "sigmoid", "none"]

# of similarities (..., S, N)
_NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "double": lambda l: double_normalization(l, positions=-1, slots=-2),
    "softmax": lambda l: softmax(l, -2),
    "l1": lambda l: l / l.abs().sum(-2, keepdim=True).clamp_min(1e-12),
    "sigmoid": lambda l: l.sigmoid() / l.shape[-2],
    "none": lambda l: l / l.shape[-2],
}
NORMALIZATIONS = tuple(_NORMALIZE)


def external_attention_reference(
    x: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None = None, normalization: Normalization = "double"
) -> Tensor:
    """The definition, positions first: similarities (B, h, N, S), their normalisation, the sum over slots.

    >>> x, key, value = torch.ones(1, 1, 1, 1), torch.tensor([[3.0], [1.0]]), torch.tensor([[8.0], [4.0]])
    >>> external_attention_reference(x, key, value, normalization="l1").tolist()  # (3 * 8 + 1 * 4) / (3 + 1)
    [[[[7.0]]]]
    """
    with without_autocast(x):
        l = widened(x) @ widened(key).T
        l = l if bias is None else l + widened(bias)
        a = double_normalization_reference(l) if normalization == "double" else row_weights(l, normalization)
        return (a @ widened(value)).to(x.dtype)


def external_attention(
    x: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None = None, normalization: Normalization = "double"
) -> Tensor:
    """A mixture of S value rows for every position: :func:`external_attention_reference` without copies of ``x``.

    >>> x, key, value = torch.ones(1, 1, 1, 1), torch.tensor([[3.0], [1.0]]), torch.tensor([[8.0], [4.0]])
    >>> external_attention(x, key, value, normalization="l1").tolist()  # (3 * 8 + 1 * 4) / (3 + 1)
    [[[[7.0]]]]

    Args:
        x: Tokens ``(B, h, N, D)`` in any strides: a map's ``x.flatten(2).transpose(1, 2)`` is not copied.
        key: Key memory ``(S, D)``, the same for all heads.
        value: Value memory ``(S, E)``.
        bias: Added to the similarities, ``(S,)``; under ``double`` it cancels.
        normalization: See the top of this module.

    Shape: ``(B, h, N, E)``

    Raises:
        ValueError: Shapes that do not fit, an unknown normalisation.
    """
    check_normalization(normalization, NORMALIZATIONS)
    if x.dim() != 4 or x.shape[-1] != key.shape[-1] or key.shape[0] != value.shape[0]:
        raise ValueError(f"want x (B, h, N, D), key (S, D), value (S, E); got {x.shape=}, {key.shape=}, {value.shape=}")
    with without_autocast(x):
        a = external_attention_weights(x, key, bias=bias, normalization=normalization).transpose(-2, -1)
        y = _for_each(widened(value).T, a) @ a  # (B, h, E, N)
    return y.transpose(-2, -1).to(x.dtype)


def _for_each(matrix: Tensor, of: Tensor) -> Tensor:
    """A matrix for every image and head; torch would copy all of them into one, transposed, to multiply that once."""
    return matrix.expand(*of.shape[:2], -1, -1) if matrix.dim() == 2 else matrix


def external_attention_weights(
    x: Tensor, key: Tensor, *, bias: Tensor | None = None, normalization: Normalization = "double"
) -> Tensor:
    """Weights ``(B, h, N, S)`` over the slots of each position, in float32 at least.

    >>> external_attention_weights(torch.ones(1, 1, 1, 1), torch.tensor([[3.0], [1.0]]), normalization="l1").tolist()
    [[[[0.75, 0.25]]]]

    Args:
        x: Tokens ``(B, h, N, D)`` in any strides, or ``(B, 1, N, D)`` for all heads.
        key: ``(S, D)``, or ``(h, S, D)`` where each head has its own memory.
        bias: ``(S,)`` or ``(h, S)``.
        normalization: See the top of this module.
    """
    with without_autocast(x):
        of_channels = widened(x).transpose(-2, -1)
        l = _for_each(widened(key), of_channels) @ of_channels  # (B, h, S, N): sums over positions run along memory
        cancels = normalization == "double" and not torch.is_grad_enabled()
        l = l if bias is None or cancels else l + widened(bias)[..., None]
        return _NORMALIZE[normalization](l).transpose(-2, -1)
