"""Low-rank factors X = D C^T by a few iterations: non-negative matrix factorisation, concepts, vector quantisation.

The product is left to the caller, who usually applies a convolution to the R columns of D first.

Traps: eps 1e-6 vanishes in half precision, so everything runs in float32 at least; a factorisation by multiplicative
updates needs a non-negative X.
"""

from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar._options import Range
from lookfar.ops._checked import check, choice
from lookfar.ops._precision import softmax, widened, without_autocast

Method = Literal["nmf", "cd", "vq"]
EPS = 1e-6
_STEPS = Annotated[int, Range(0, 1000)]  # made here: compilers cannot make an annotation


def matrix_decomposition(
    x: Tensor,
    bases: Tensor,
    *,
    method: Method,
    iterations: int,
    inverse_temperature: float = 100.0,
    ridge: float = 0.1,
    full_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Factors of ``x``, found by iterations that start from ``bases``.

    >>> x = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 0.0, 2.0]]])  # two channels, three positions
    >>> bases = torch.eye(2)[None]
    >>> _, coefficients = matrix_decomposition(x, bases, method="vq", iterations=1, inverse_temperature=1000.0)
    >>> coefficients.tolist()  # which basis each position is assigned to
    [[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]

    Args:
        x: ``(B, D, N)``; non-negative for ``nmf``.
        bases: ``(B, D, R)``, with columns of unit length.
        method: Non-negative matrix factorisation, concept decomposition or soft vector quantisation.
        iterations: Alternating updates before the last one of the coefficients.
        inverse_temperature: Of the assignments; ``nmf`` takes 1.
        ridge: Of the last, linear coefficients of ``cd``.
        full_gradient: Differentiate all iterations; otherwise bases and earlier coefficients are constants (the
            one-step gradient of the paper) and only the last update of the coefficients is differentiated.

    Returns:
        Bases ``(B, D, R)`` and coefficients ``(B, N, R)``.
    """
    choice("method", method, get_args(Method))
    check("iterations", iterations, _STEPS)
    with without_autocast(x):
        x, bases = widened(x), widened(bases)
        sharpness = 1.0 if method == "nmf" else inverse_temperature
        # detached, not under no_grad: an exported program that holds such a context cannot be loaded again
        still, bases = (x, bases) if full_gradient else (x.detach(), bases.detach())
        coefficients = softmax(sharpness * still.transpose(1, 2) @ bases)
        for _ in range(iterations):
            if method == "nmf":
                coefficients = _multiply(still, bases, coefficients)
                bases = _multiply(still.transpose(1, 2), coefficients, bases)
            else:
                bases = _cluster(still, bases, sharpness, unit=method == "cd")
        if method == "nmf":
            return bases, _multiply(x, bases, coefficients)
        if method == "cd":
            gram = bases.transpose(1, 2) @ bases
            gram = gram + ridge * torch.eye(bases.shape[2], dtype=x.dtype, device=x.device)
            # (X^T D) G^-1 = (G^-1 D^T X)^T for the symmetric G
            return bases, torch.linalg.solve(gram, bases.transpose(1, 2) @ x).transpose(1, 2)
        length = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)  # constant in the gradient, as published
        cosines = (x / (EPS + length)).transpose(1, 2) @ F.normalize(bases, dim=1, eps=EPS)
        return bases, softmax(sharpness * cosines)


def _multiply(x: Tensor, factor: Tensor, other: Tensor) -> Tensor:
    """The multiplicative update of ``other`` in x^T ~ other factor^T; R x R first, never N x D."""
    return other * (x.transpose(1, 2) @ factor) / (other @ (factor.transpose(1, 2) @ factor) + EPS)


def _cluster(x: Tensor, bases: Tensor, sharpness: float, *, unit: bool) -> Tensor:
    """Soft assignments by cosine, and the means of what was assigned (of unit length for concepts)."""
    directions = bases if unit else F.normalize(bases, dim=1, eps=EPS)
    shares = softmax(sharpness * F.normalize(x, dim=1).transpose(1, 2) @ directions)
    means = x @ (shares / (EPS + shares.sum(1, keepdim=True)))
    return F.normalize(means, dim=1, eps=EPS) if unit else means
