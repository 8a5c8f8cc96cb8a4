"""Dot-product attention in the cheaper order: y_i = 1/M sum_j (scale * q_i . k_j) v_j.

Without a softmax the product is associative, q (k^T v) / M, in time O((N + M) D E) and without N x M weights.
"""

from torch import Tensor

from lookfar.ops._autograd import traced
from lookfar.ops._layout import mixed
from lookfar.ops._normalization import key_count
from lookfar.ops._precision import factor, widened, without_autocast


def dot_product_weights(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """``(B, h, Q, D), (B, h, M, D) -> (B, h, Q, M)``; of either sign; rows do not sum to one.

    >>> import torch
    >>> dot_product_weights(torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [-4.0]]]])).tolist()
    [[[[1.0, -2.0]]]]
    """
    with without_autocast(q):
        q, k = widened(q), widened(k)
        return scale / key_count(k, -2) * q @ k.transpose(-2, -1)


def dot_product_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """The definition: y_i = 1/M sum_j (scale * q_i . k_j) v_j, with all N x M weights.

    >>> import torch
    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [-4.0]]]]), torch.tensor([[[[5.0], [1.0]]]])
    >>> dot_product_reference(q, k, v).tolist()  # (2 * 5 - 4 * 1) / 2
    [[[[3.0]]]]
    """
    with without_autocast(q):
        weights = scale * widened(q) @ widened(k).transpose(-2, -1) / max(k.shape[-2], 1)
        return (weights @ widened(v)).to(v.dtype)


def _linear(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q @ (scale / key_count(k, -2) * (k.transpose(-2, -1) @ widened(v)))


def _quadratic(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    values = factor(v)
    return mixed((q @ k.transpose(-2, -1)).mul_(scale / key_count(k, -2)).to(values.dtype), values)


PATHS = {"linear": _linear, "quadratic": _quadratic}  # tests go through each


def dot_product(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """:func:`dot_product_reference` by associativity, in the other order where that costs less (few positions).

    Half-precision inputs are summed in float32, and but for bfloat16 on a CPU that has it multiplied in it.

    >>> import torch
    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [-4.0]]]]), torch.tensor([[[[5.0], [1.0]]]])
    >>> dot_product(q, k, v).tolist()  # (2 * 5 - 4 * 1) / 2
    [[[[3.0]]]]

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``

    Raises:
        ValueError: Widths of q and k, or numbers of keys and values, differ.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"want q (B, h, N, D), k (B, h, M, D), v (B, h, M, E); got {q.shape=}, {k.shape=}, {v.shape=}")
    N, M, D, E = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    # compiled and exported programs keep one order for all sizes
    quadratic = not traced() and N * M * (D + E) < (N + M) * D * E
    with without_autocast(q):
        y = PATHS["quadratic" if quadratic else "linear"](widened(q), widened(k), v, scale)
    return y.to(v.dtype)
