"""Filters and samplers: the cheap forms against their definitions, gradients of numbers and images alike."""

from functools import partial

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads

from lookfar.ops import (
    affine_sample,
    affine_sample_reference,
    bilateral,
    bilateral_reference,
    glimpse_sensor,
    glimpse_sensor_reference,
    mean_shift,
    nonlocal_means,
    nonlocal_means_reference,
    nonlocal_operation,
)


def image(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("size", [(9, 6), (1, 7)], ids=str)
@pytest.mark.parametrize("kernel_size", [None, 3, 15])
def test_bilateral(size: tuple[int, int], kernel_size: int | None) -> None:
    def run(f, x, color, space):
        return f(x, kernel_size=kernel_size, sigma_color=color, sigma_spatial=space)

    sigmas = torch.tensor(0.3, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    assert_same_with_grads(
        partial(run, bilateral), partial(run, bilateral_reference), image(*size), *sigmas, names="x color space"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 3, "patch_distance": 2},
        {"patch_size": 5, "patch_distance": None},
        {"patch_size": 1, "sigma": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(8, 6), (2, 3)], ids=str)
def test_nonlocal_means(size: tuple[int, int], options: dict) -> None:
    def run(f, x, h):
        return f(x, h=h, **options)

    h = torch.tensor(0.4, dtype=torch.float64)
    assert_same_with_grads(
        partial(run, nonlocal_means), partial(run, nonlocal_means_reference), image(*size), h, names="x h"
    )


def test_mean_shift_finds_modes() -> None:
    """Two flat halves are fixed points; noise on them goes away."""
    x = torch.zeros(1, 1, 6, 8)
    x[..., 4:] = 1
    noisy = x + 0.02 * torch.randn_like(x)
    for kernel in ("gaussian", "flat"):
        options = {"sigma_spatial": 3.0, "sigma_color": 0.2, "kernel": kernel}
        assert_same(kernel, mean_shift(x, **options)[0], x, 1e-4)
        assert (mean_shift(noisy, **options)[0] - x).abs().mean() < 0.5 * (noisy - x).abs().mean()


@pytest.mark.parametrize("size", [(5, 4), (7, 9), (1, 3)], ids=str)
def test_affine_sample(size: tuple[int, int]) -> None:
    theta = torch.eye(2, 3, dtype=torch.float64) + 0.4 * torch.randn(2, 2, 3, dtype=torch.float64)
    fast, slow = (partial(f, size=size) for f in (affine_sample, affine_sample_reference))
    assert_same_with_grads(fast, slow, image(7, 9), theta, names="x theta")


@pytest.mark.parametrize("size", [(11, 6), (3, 3), (1, 8)], ids=str)
def test_glimpse_sensor(size: tuple[int, int]) -> None:
    where = torch.tensor([[-0.93, 0.71], [1.0, 0.13]], dtype=torch.float64)
    for options in ({"kernel_size": 4, "scales": 2, "scale_factor": 3}, {"kernel_size": 3}):
        fast, slow = (partial(f, location=where, **options) for f in (glimpse_sensor, glimpse_sensor_reference))
        assert_same_with_grads(fast, slow, image(*size), names="x")


def test_general_operator_without_keys() -> None:
    x = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    dots = lambda q, k: q @ k.transpose(-2, -1)  # noqa: E731
    for log in (True, False):
        for normalizer in ("sum", "positions", "none"):
            y = nonlocal_operation(x, dots, None, normalizer, mask=mask, log=log)
            assert (y[:, 1] == 0).all()
            assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_errors_say_what_came() -> None:
    x = torch.rand(1, 2, 4, 4)
    with pytest.raises(ValueError, match="kernel_size must be an odd positive integer, got 4"):
        bilateral(x, kernel_size=4, sigma_color=1.0, sigma_spatial=1.0)
    with pytest.raises(ValueError, match="nonlocal_means wants images"):
        nonlocal_means(x[0])
    with pytest.raises(ValueError, match="kernel must be gaussian or flat, got 'box'"):
        mean_shift(x, sigma_spatial=1.0, sigma_color=1.0, kernel="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalizer must be sum, positions, none"):
        nonlocal_operation(torch.rand(1, 3, 2), torch.rand(3, 3), None, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"f must give \(.., Q, M\) = \(.., 3, 3\)"):
        nonlocal_operation(torch.rand(1, 3, 2), torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"scale_factor must be a positive integer, got 1\.5"):
        glimpse_sensor(x, torch.zeros(1, 2), kernel_size=2, scale_factor=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"want x .* and theta"):
        affine_sample(x, torch.zeros(2, 3))
