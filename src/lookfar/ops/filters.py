"""The classical predecessors as cases of the general operator: bilateral filter, non-local means, mean shift.

y_i = sum_j f_ij x_j / sum_j f_ij over the keys inside the image, the centre included, without padding. For tests,
pictures and gradients; for everyday images use scikit-image's and OpenCV's filters (docs/filters.md), which deviate
from these definitions. This is not what feature denoising calls "bilateral".

Traps: membership in the flat kernel of mean shift flips with rounding in float32, so it is decided in float64; patches
read the image reflected at its borders (or repeated, where it is too small to be reflected).
"""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar._options import Natural, Odd
from lookfar.ops._checked import check, choice
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.embedded_gaussian import embedded_gaussian
from lookfar.ops.nonlocal_operation import nonlocal_operation

Scalar = float | Tensor


def _check(x: Tensor, name: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} wants images (B, C, H, W), got {x.shape=}")


def _coordinates(x: Tensor) -> Tensor:
    """Rows and columns of all positions, ``(N, 2)``."""
    H, W = x.shape[-2:]
    axes = (torch.arange(n, dtype=x.dtype, device=x.device) for n in (H, W))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``(..., Q, D), (..., M, D) -> (..., Q, M)``, from differences, so that nothing cancels."""
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)


def _gaussian_average(features: Tensor, x: Tensor) -> Tensor:
    """Average of the whole image with weights exp(-|z_i - z_j|^2 / 2), z the ``features`` (B, N, D): attention."""
    z = (features - features.mean(1, keepdim=True))[:, None]  # centred, so that little cancels
    k = torch.cat([z, -z.square().sum(-1, keepdim=True) / 2], -1)
    return to_map(embedded_gaussian(F.pad(z, (0, 1), value=1.0), k, to_tokens(x)), x)


def _shifted(x: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Views of the pairs of positions that are ``(dy, dx)`` apart, dy >= 0: the earlier row's, the later one's."""
    H, W = x.shape[-2:]
    a = x[..., : H - dy, max(-dx, 0) : W - max(dx, 0)]
    b = x[..., dy:, max(dx, 0) : W - max(-dx, 0)]
    return a, b


def _windowed_average(x: Tensor, radius: int, weigh: Callable[[int, int], Tensor]) -> Tensor:
    """Average in a square window; ``weigh(dy, dx)`` gives the affinities of pairs that far apart.

    Affinities are symmetric: one array serves both directions, and half the window's offsets are enough.
    """
    H, W = x.shape[-2:]
    numerator, denominator = x, torch.ones_like(x[:, :1])
    for dy in range(min(radius, H - 1) + 1):
        for dx in range(-min(radius, W - 1), min(radius, W - 1) + 1):
            if (dy, dx) <= (0, 0):
                continue
            f = weigh(dy, dx)
            a, b = _shifted(x, dy, dx)
            left, top = max(-dx, 0), dy
            here = (left, W - a.shape[-1] - left, 0, dy)
            there = (W - a.shape[-1] - left, left, top, 0)
            numerator = numerator + F.pad(f * b, here) + F.pad(f * a, there)
            denominator = denominator + F.pad(f, here) + F.pad(f, there)
    return numerator / denominator


def bilateral_reference(
    x: Tensor, *, kernel_size: int | None = None, sigma_color: Scalar, sigma_spatial: Scalar
) -> Tensor:
    """The definition: f_ij = exp(-|s_i - s_j|^2 / (2 sigma_spatial^2) - |x_i - x_j|^2 / (2 sigma_color^2)).

    >>> x = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> bilateral_reference(x, kernel_size=3, sigma_color=0.01, sigma_spatial=1.0).tolist()  # the edge stays
    [[[[0.0, 0.0, 1.0]]]]
    """
    H, W = x.shape[2:]
    radius = max(H, W) if kernel_size is None else kernel_size // 2
    found = []
    for i, j in itertools.product(range(H), range(W)):
        rows, columns = _within(H, W, i, j, radius, x.device)
        seen = x[:, :, rows, columns]  # (B, C, M)
        near = ((rows - i) ** 2 + (columns - j) ** 2).to(x.dtype) / (2 * sigma_spatial**2)
        alike = (seen - x[:, :, i, j, None]).square().sum(1) / (2 * sigma_color**2)
        found.append(((-near - alike).softmax(-1)[:, None] * seen).sum(-1))
    return torch.stack(found, -1).unflatten(-1, (H, W))


def _within(H: int, W: int, i: int, j: int, radius: int, device: torch.device) -> Tensor:
    """Rows and columns of the positions near (i, j), for the definitions, ``(2, M)``."""
    places = itertools.product(range(H), range(W))
    return torch.tensor([at for at in places if max(abs(at[0] - i), abs(at[1] - j)) <= radius], device=device).T


def bilateral(x: Tensor, *, kernel_size: int | None = None, sigma_color: Scalar, sigma_spatial: Scalar) -> Tensor:
    """Edge-preserving blur: an average over neighbours near in space and in value (Tomasi, Manduchi 1998).

    >>> x = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> bilateral(x, kernel_size=3, sigma_color=0.01, sigma_spatial=1.0).tolist()  # the edge stays
    [[[[0.0, 0.0, 1.0]]]]

    Args:
        x: Images ``(B, C, H, W)``, values in [0, 1]; channels share one weight, of their joint Euclidean distance.
        kernel_size: Side of the square window, odd; the whole image when None, computed as softmax attention.
        sigma_color: Standard deviation in values, a number or a tensor with gradient.
        sigma_spatial: The same in pixels.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: Not images, an even window.
    """
    _check(x, "bilateral")
    with without_autocast(x):
        wide = widened(x)
        if kernel_size is None:
            colours = wide.flatten(2).transpose(1, 2) / sigma_color
            places = (_coordinates(wide) / sigma_spatial).expand(len(x), -1, -1)
            features = torch.cat([colours, places], -1)
            return _gaussian_average(features, wide).to(x.dtype)
        check("kernel_size", kernel_size, Odd)

        def weigh(dy: int, dx: int) -> Tensor:
            a, b = _shifted(wide, dy, dx)
            return (
                -(dy * dy + dx * dx) / (2 * sigma_spatial**2) - (a - b).square().sum(1, True) / (2 * sigma_color**2)
            ).exp()

        return _windowed_average(wide, kernel_size // 2, weigh).to(x.dtype)


def _patch_weights(x: Tensor, patch_size: int, h: Scalar) -> Tensor:
    """Weights of a patch's pixels ``(s, s)``: a Gaussian of standard deviation (s - 1) / 4, its sum 1 / (C h^2)."""
    u = torch.arange(patch_size, dtype=x.dtype, device=x.device) - patch_size // 2
    w = torch.exp(-u.square() / (2 * max((patch_size - 1) / 4, 1e-3) ** 2))
    w = w[:, None] * w
    return w / w.sum() / (x.shape[1] * h**2)


def _padded(x: Tensor, margin: int) -> Tensor:
    mode = "reflect" if min(x.shape[-2:]) > margin else "replicate"
    return F.pad(x, (margin,) * 4, mode=mode) if margin else x


def nonlocal_means_reference(
    x: Tensor, *, patch_size: int = 7, patch_distance: int | None = 11, h: Scalar = 0.1, sigma: Scalar = 0.0
) -> Tensor:
    """The definition: patches of two positions, their weighted squared distance, exp(-max(distance, 0)).

    >>> x = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> nonlocal_means_reference(x, patch_size=1, h=0.01).tolist()  # zeros and ones are too different to be mixed
    [[[[0.0, 0.0, 1.0]]]]
    """
    (C, H, W), margin = x.shape[1:], patch_size // 2
    radius = max(H, W) if patch_distance is None else patch_distance
    u = torch.arange(patch_size, dtype=x.dtype, device=x.device) - margin
    bell = (-8 * (u / max(patch_size - 1, 1)).square()).exp()
    weights = (bell[:, None] * bell).flatten()
    weights = (weights / weights.sum() / C).repeat(C)[:, None]
    padded = F.pad(x, (margin,) * 4, mode="reflect" if min(H, W) > margin else "replicate")
    patches = F.unfold(padded, patch_size).unflatten(2, (H, W))  # (B, C s^2, H, W)
    found = []
    for i, j in itertools.product(range(H), range(W)):
        rows, columns = _within(H, W, i, j, radius, x.device)
        distance = ((patches[:, :, rows, columns] - patches[:, :, i, j, None]).square() * weights).sum(1)
        share = (-(distance - 2 * sigma**2).clamp_min(0) / h**2).softmax(-1)
        found.append((share[:, None] * x[:, :, rows, columns]).sum(-1))
    return torch.stack(found, -1).unflatten(-1, (H, W))


def nonlocal_means(
    x: Tensor, *, patch_size: int = 7, patch_distance: int | None = 11, h: Scalar = 0.1, sigma: Scalar = 0.0
) -> Tensor:
    """Average over positions whose surroundings look alike (Buades, Coll, Morel 2005).

    >>> x = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> nonlocal_means(x, patch_size=1, h=0.01).tolist()  # zeros and ones are too different to be mixed
    [[[[0.0, 0.0, 1.0]]]]

    Args:
        x: Images ``(B, C, H, W)``, values in [0, 1].
        patch_size: Side s of the patches that are compared, odd; their pixels are weighted by a Gaussian.
        patch_distance: Rows and columns searched on each side; the whole image when None.
        h: Strength of the filter, in values.
        sigma: Standard deviation of the noise: twice its square, expected between equal patches, is subtracted.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: Not images, an even patch.
    """
    _check(x, "nonlocal_means")
    check("patch_size", patch_size, Odd)
    margin = patch_size // 2
    with without_autocast(x):
        wide = widened(x)
        weights = _patch_weights(wide, patch_size, h)
        padded = _padded(wide, margin)
        if patch_distance is None and not isinstance(sigma, Tensor) and sigma == 0:
            patches = F.unfold(padded, patch_size).transpose(1, 2)
            return _gaussian_average(patches * (2 * weights).sqrt().flatten().repeat(x.shape[1]), wide).to(x.dtype)

        def weigh(dy: int, dx: int) -> Tensor:
            a, b = _shifted(padded, dy, dx)
            distance = F.conv2d((a - b).square().sum(1, True), weights[None, None]) - 2 * sigma**2 / h**2
            return (-distance.clamp_min(0)).exp()

        radius = max(x.shape[-2:]) if patch_distance is None else patch_distance
        return _windowed_average(wide, radius, weigh).to(x.dtype)


def mean_shift(
    x: Tensor,
    *,
    sigma_spatial: Scalar,
    sigma_color: Scalar,
    iterations: int = 5,
    kernel: Literal["gaussian", "flat"] = "gaussian",
) -> tuple[Tensor, Tensor]:
    """Every pixel climbs to a mode of the image's own density of places and values (Comaniciu, Meer 2002).

    Queries start as the pixels and move; keys and values stay the original image. One Gaussian step is the bilateral
    filter of the whole image.

    >>> x = torch.tensor([[[[0.0, 1.0]]]])  # two pixels, each in the other's reach
    >>> values, places = mean_shift(x, sigma_spatial=1.0, sigma_color=1.0, iterations=1, kernel="flat")
    >>> values.tolist()
    [[[[0.5, 0.5]]]]

    Args:
        x: Images ``(B, C, H, W)``, values in [0, 1].
        sigma_spatial: Bandwidth in pixels.
        sigma_color: Bandwidth in values.
        iterations: Steps, 0 for none; there is no stopping rule.
        kernel: ``gaussian``, exp(-(u + v) / 2), or ``flat``, 1 where u <= 1 and v <= 1; u and v are the squared
            distances in space and value over the squared bandwidths. A flat kernel is constant to gradients.

    Returns:
        Values ``(B, C, H, W)`` and places ``(B, 2, H, W)``, row and column, where the queries ended.

    Raises:
        ValueError: Not images, a negative number of iterations, an unknown kernel.
    """
    _check(x, "mean_shift")
    check("iterations", iterations, Natural)
    choice("kernel", kernel, ("gaussian", "flat"))
    with without_autocast(x):
        exact = x.double() if kernel == "flat" else widened(x)
        values = exact.flatten(2).transpose(1, 2)
        places = _coordinates(exact).expand(len(x), -1, -1)
        keys = torch.cat([places, values], -1)  # (B, N, 2 + C)

        def affinity(queries: Tensor, keys: Tensor) -> Tensor:
            # differences, squares, sums, and the division last: in this order the edge of the flat kernel is exact
            u = _squares(queries[..., :2], keys[..., :2]) / sigma_spatial**2
            v = _squares(queries[..., 2:], keys[..., 2:]) / sigma_color**2
            if kernel == "gaussian":
                return -(u + v) / 2
            return ((u <= 1) & (v <= 1)).to(keys.dtype)

        queries = keys
        for _ in range(iterations):
            queries = nonlocal_operation(queries, affinity, keys=keys, log=kernel == "gaussian")
        moved, colours = queries[..., :2], queries[..., 2:]
        return tuple(t.transpose(1, 2).unflatten(2, x.shape[2:]).to(x.dtype) for t in (colours, moved))  # type: ignore[return-value]
