"""Soft clustering of positions by a few EM steps, and their reconstruction from the K bases found.

E: z = softmax_k(h_n . mu_k); M: mu_k = normalised sum_n z_nk h_n. After T rounds r_n = sum_k z_nk mu_k, with the last
mu and the z computed before it. Traps: softmax over the bases, normalisation over the positions; similarities have no
scale, so everything is float32 at least; the two implementations guard their divisions differently (``variant``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar._options import Steps
from lookfar.ops._checked import check, choice
from lookfar.ops._precision import softmax, widened, without_autocast

Variant = Literal["authors", "mmseg"]
Gradient = Literal["none", "last", "full"]

# how a non-negative denominator is kept from zero
_GUARD: dict[str, Callable[[Tensor], Tensor]] = {"authors": lambda d: 1e-6 + d, "mmseg": lambda d: d.clamp_min(1e-12)}


@dataclass(frozen=True)
class Clustering:
    """The keywords of :func:`expectation_maximization`, checked."""

    iterations: int = 3
    variant: Variant = "authors"
    gradient: Gradient = "none"
    fit: bool = True
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        check("iterations", self.iterations, Steps)
        choice("variant", self.variant, _GUARD)
        choice("gradient", self.gradient, get_args(Gradient))

    @property
    def steps(self) -> int:
        return self.iterations if self.fit else 1


def expectation_maximization_reference(x: Tensor, bases: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The definition, as the authors' code does it: h = W x + b on the map, then T steps of E and M.

    Keywords as in :func:`expectation_maximization`.

    >>> x = torch.tensor([[[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]])  # three positions, two clusters
    >>> r, bases = expectation_maximization_reference(x, 1000 * torch.eye(2)[None], iterations=1, variant="mmseg")
    >>> r.tolist()  # each position becomes the direction of its cluster
    [[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]]
    """

    o = Clustering(**options)

    def guard(d: Tensor) -> Tensor:
        return d + 1e-6 if o.variant == "authors" else d.clamp_min(1e-12)

    with without_autocast(x):
        h = widened(x)  # (B, h, N, D)
        if o.weight is not None:
            h = F.linear(h, widened(o.weight), None if o.bias is None else widened(o.bias))
        mu = widened(bases).expand(x.shape[0], *bases.shape)  # (B, h, D, K)
        z = mu.new_zeros(())
        for step in range(o.steps):
            if o.gradient != "full":
                mu = mu.detach()
            last = step == o.steps - 1
            live = h if o.gradient == "full" or (o.gradient == "last" and last) else h.detach()
            z = (live @ mu).softmax(-1)  # (B, h, N, K)
            m = live.transpose(-2, -1) @ (z / guard(z.sum(-2, keepdim=True)))
            mu = m / guard(torch.linalg.vector_norm(m, dim=-2, keepdim=True))
        mixed = mu if o.fit else widened(bases).expand_as(mu)
        return (z @ mixed.transpose(-2, -1)).to(x.dtype), mu


def _fit(x: Tensor, bases: Tensor, o: Clustering) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities ``(B, h, K, N)``, bases ``(B, h, D, K)``, and the divisor of each basis ``(B, h, 1, K)``."""
    guard = _GUARD[o.variant]
    given = widened(x).transpose(-2, -1), *(None if p is None else widened(p) for p in (o.weight, o.bias))
    # detached, not under no_grad: an exported program that holds such a context cannot be loaded again
    constant = given[0].detach(), *(None if p is None else p.detach() for p in given[1:])
    # a copy, since the caller's moving average changes them in place while the graph may still need them
    mu = widened(bases).clone().expand(x.shape[0], *bases.shape)
    z = scale = mu
    for step in range(o.steps):
        live = o.gradient == "full" or (o.gradient == "last" and step == o.steps - 1)
        t, W, b = given if live else constant  # t (B, h, C, N)
        if o.gradient != "full":
            mu = mu.detach()
        # h = W t + b is never computed: h . mu = t . (W^T mu) + b . mu, and sum z h = W (sum z t) + b sum z
        logits = (mu if W is None else W.T @ mu).transpose(-2, -1) @ t
        if b is not None:
            logits = logits + (b @ mu)[..., None]
        z = softmax(logits, -2)
        total = z.sum(-1).unsqueeze(-2)  # (B, h, 1, K)
        m = t @ z.transpose(-2, -1)
        if W is not None:
            m = W @ m
        if b is not None:
            m = m + b[:, None] * total
        scale = guard(total)
        m = m / scale
        norm = guard(torch.linalg.vector_norm(m, dim=-2, keepdim=True))
        mu, scale = m / norm, scale * norm
    return z, mu, scale


def expectation_maximization_weights(x: Tensor, bases: Tensor, queries: Tensor | None = None, **options: Any) -> Tensor:
    """The equivalent weights ``(B, h, Q, N)`` of the values h, of rank K; rows do not sum to one.

    ``queries`` are flat positions ``(Q,)``, all when None; keywords as in :func:`expectation_maximization`.

    >>> x = torch.tensor([[[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]])  # three positions, two clusters
    >>> expectation_maximization_weights(x, 1000 * torch.eye(2)[None], iterations=1, variant="mmseg").tolist()
    [[[[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.5]]]]
    """
    with without_autocast(x):
        z, _, scale = _fit(x, bases, Clustering(gradient="full", **options))
        chosen = z if queries is None else z[..., queries]
        return (chosen.transpose(-2, -1) / scale) @ z


def expectation_maximization(
    x: Tensor,
    bases: Tensor,
    *,
    iterations: int = 3,
    variant: Variant = "authors",
    gradient: Gradient = "none",
    fit: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank-K reconstruction of positions: :func:`expectation_maximization_reference` in O(N K).

    >>> x = torch.tensor([[[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]])  # three positions, two clusters
    >>> r, bases = expectation_maximization(x, 1000 * torch.eye(2)[None], iterations=1, variant="mmseg")
    >>> r.tolist()  # each position becomes the direction of its cluster
    [[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]]

    Args:
        x: Tokens ``(B, h, N, C)`` in any strides: a map's ``x.flatten(2).transpose(1, 2)`` is not copied.
        bases: Initial bases ``(h, D, K)``, the same for every image.
        iterations: Number T of EM steps.
        variant: How divisions are guarded: ``authors`` adds 1e-6, ``mmseg`` clamps at 1e-12.
        gradient: ``none``: the result is a constant, as published; ``last``: only the last step is differentiated;
            ``full``: all of them.
        fit: If False, the given bases rebuild every position, ``r_n = sum_k z_nk bases_k`` with one E step; the
            fitted bases that are returned are then those of one M step.
        weight: Matrix ``(D, C)`` of a linear map before EM, merged into the bases; for one head.
        bias: Its bias ``(D,)``.

    Returns:
        The reconstruction ``(B, h, N, D)`` and the fitted bases ``(B, h, D, K)``.

    Raises:
        ValueError: Shapes that do not fit, no iterations, an unknown variant or gradient.
    """
    width = x.shape[-1] if weight is None else weight.shape[0]
    if x.dim() != 4 or bases.shape[:2] != (x.shape[1], width):
        raise ValueError(f"want x (B, h, N, C) and bases (h, D, K) with D = {width}; got {x.shape=}, {bases.shape=}")
    with without_autocast(x):
        z, mu, _ = _fit(x, bases, Clustering(iterations, variant, gradient, fit, weight, bias))
        mixed = mu if fit else widened(bases).clone().expand_as(mu)
        return (mixed @ z).transpose(-2, -1).to(x.dtype), mu


def responsibilities(x: Tensor, bases: Tensor, **options: Any) -> Tensor:
    """z of the last E step, ``(B, h, K, N)``: at each position they sum to one over the bases.

    Keywords as in :func:`expectation_maximization`; with one iteration they are those of the given bases.

    >>> x = torch.tensor([[[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]])  # three positions, two clusters
    >>> responsibilities(x, 1000 * torch.eye(2)[None], iterations=1).tolist()
    [[[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]]
    """
    with without_autocast(x):
        return _fit(x, bases, Clustering(gradient="full", **options))[0]
