"""The general operator: y_i = 1/C_i(x) sum_j f(x_i, x_j) g(x_j).

Attention, convolution, graphs and filters are special cases. This is the definition, for tests, pictures and teaching:
it holds f for all Q x M pairs, while each op of this library is the exact, cheap form of one case.
``tests/test_special_cases.py`` proves them equal.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Normalizer = Literal["sum", "positions", "none"]
Pairwise = Callable[[Tensor, Tensor], Tensor]
Unary = Callable[[Tensor], Tensor]


def nonlocal_operation(
    x: Tensor,
    f: Pairwise | Tensor,
    g: Unary | Tensor | None = None,
    normalizer: Normalizer | Tensor | Callable[[Tensor], Tensor] = "sum",
    *,
    keys: Tensor | None = None,
    mask: Tensor | None = None,
    log: bool = False,
) -> Tensor:
    """For every query, the values of all keys, weighted by an affinity and divided by a normaliser.

    >>> x = torch.tensor([[[1.0], [3.0]]])  # two positions of one channel
    >>> nonlocal_operation(x, lambda q, k: torch.ones(1, 2, 2)).flatten().tolist()  # f = 1: the mean
    [2.0, 2.0]

    Args:
        x: Features of the queries ``(..., Q, C)``, and of the keys where ``keys`` is None.
        f: Affinity of queries and keys, ``(..., Q, C), (..., M, C) -> (..., Q, M)``, or a tensor, where it does not
            depend on x (a graph, a filter's window).
        g: Values of the keys, a function ``(..., M, C) -> (..., M, E)`` or a tensor ``(..., M, E)``; by default the
            keys themselves.
        normalizer: C_i: ``sum`` of f over the allowed keys, their number (``positions``), 1 (``none``), a tensor
            that broadcasts to ``(..., Q, 1)``, or a function of the affinities.
        keys: Features of the keys ``(..., M, C)`` where they are not the queries.
        mask: Which pairs are allowed, bool, broadcast to ``(..., Q, M)``; all by default. A query without keys gives 0.
        log: f gives logarithms of affinities, so that large ones do not overflow: with ``sum`` this is a softmax.

    Shape: ``(..., Q, C) -> (..., Q, E)``

    Raises:
        ValueError: An unknown normaliser, affinities or values that do not fit the keys.
    """
    keys = x if keys is None else keys
    affinity = f if isinstance(f, Tensor) else f(x, keys)
    values = keys if g is None else g if isinstance(g, Tensor) else g(keys)
    if affinity.dim() < 2 or affinity.shape[-2:] != (x.shape[-2], keys.shape[-2]):
        raise ValueError(f"f must give (.., Q, M) = (.., {x.shape[-2]}, {keys.shape[-2]}), got {affinity.shape=}")
    if values.dim() < 2 or values.shape[-2] != keys.shape[-2]:
        raise ValueError(f"g must give (.., M, E) with M = {keys.shape[-2]}, got {values.shape=}")
    if log and isinstance(normalizer, str) and normalizer == "sum":
        if mask is None:
            return affinity.softmax(-1) @ values
        without = ~mask.any(-1, keepdim=True)  # a softmax over nothing would be NaN, in the gradient too
        affinity = affinity.masked_fill(~(mask | without), float("-inf"))
        return affinity.softmax(-1).masked_fill(~mask, 0) @ values
    affinity = affinity.exp() if log else affinity
    if mask is not None:
        affinity = affinity.masked_fill(~mask, 0)
    mixed = affinity @ values
    if isinstance(normalizer, Tensor):
        return mixed / normalizer
    if callable(normalizer):
        return mixed / normalizer(affinity)
    if normalizer == "sum":
        total = affinity.sum(-1, keepdim=True)
    elif normalizer == "positions":
        count = keys.shape[-2] if mask is None else mask.sum(-1, keepdim=True)
        total = torch.as_tensor(count, dtype=mixed.dtype, device=mixed.device)
    elif normalizer == "none":
        return mixed
    else:
        raise ValueError(f"normalizer must be sum, positions, none, a tensor or a function, got {normalizer!r}")
    # without keys the numerator is 0 too: the result is 0, not NaN
    return mixed / total.masked_fill(total == 0, 1)
