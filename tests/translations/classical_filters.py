"""Classical filters, held to loops of their definitions; OpenCV's and scikit-image's own forms are emulated here.

The emulations are no part of the library: they show how far the libraries are from the definition.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookfar.ops import bilateral, mean_shift, nonlocal_means
from translations import Built, Case, translates

BORDERS = {"REFLECT_101": "reflect", "REPLICATE": "edge", "REFLECT": "symmetric", "CONSTANT": "constant"}


def _image(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A filter of (B, C, H, W) as one of HW or HWC."""

    def run(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return f(x[None, None])[0, 0]
        return f(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0)

    return run


def _given(case: Case, *names: str) -> dict[str, Any]:
    return {name: case.args[name] for name in names if name in case.args}


@translates("bilateral", "definition")
def bilateral_definition(case: Case) -> Built:
    options = _given(case, "kernel_size", "sigma_color", "sigma_spatial")
    return Built(_image(lambda x: bilateral(x, **options)))


@translates("nonlocal_means", "definition")
def nonlocal_means_definition(case: Case) -> Built:
    options = _given(case, "patch_size", "patch_distance", "h", "sigma")
    return Built(_image(lambda x: nonlocal_means(x, **options)))


@translates("mean_shift", "definition")
def mean_shift_definition(case: Case) -> Built:
    options = _given(case, "sigma_spatial", "sigma_color", "iterations", "kernel")

    def run(x: Tensor) -> Tensor:
        colour, place = mean_shift(x, **options)
        want = torch.from_numpy(case.arrays["position"]).to(place)
        torch.testing.assert_close(place[0].permute(1, 2, 0), want, rtol=1e-5, atol=1e-4)
        return colour

    return Built(_image(run))


@translates("nonlocal_means", "scikit-image")
def nonlocal_means_skimage(case: Case) -> Built:
    # its exponential is approximate and it cuts far patches off: 1e-2 absolute
    options = _given(case, "patch_size", "patch_distance", "h", "sigma")
    fast = case.args.get("fast_mode", False)
    skip = "scikit-image's fast mode compares other patches, and searches in the reflected border" if fast else ""
    return Built(_image(lambda x: nonlocal_means(x, **options)), tolerance=1000, skip=skip)


@translates("bilateral", "scikit-image")
def bilateral_skimage(case: Case) -> Built:
    return Built(lambda x: x, skip="scikit-image reads its table of spatial weights with a wrong stride: no bilateral")


@translates("bilateral", "opencv")
def bilateral_opencv(case: Case) -> Built:
    """A disc, L1 colour distance, pixels of the padded border take part."""
    a = case.args
    color, space = (s if s > 0 else 1.0 for s in (a["sigmaColor"], a["sigmaSpace"]))
    radius = max(a["d"] // 2 if a["d"] > 0 else round(1.5 * space), 1)
    border = BORDERS[
        a.get("borderType", "BORDER_REFLECT_101").removeprefix("BORDER_").replace("DEFAULT", "REFLECT_101")
    ]

    def run(x: Tensor) -> Tensor:
        image = x.numpy().astype(np.float64).reshape(*x.shape[:2], -1)
        H, W = image.shape[:2]
        padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode=border)  # type: ignore[call-overload]
        total, weights = np.zeros_like(image), np.zeros((H, W, 1))
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if dy * dy + dx * dx <= radius * radius:
                    near = padded[radius + dy : radius + dy + H, radius + dx : radius + dx + W]
                    distance = np.abs(near - image).sum(-1, keepdims=True)
                    f = np.exp(-(dy * dy + dx * dx) / (2 * space**2) - distance**2 / (2 * color**2))
                    total, weights = total + f * near, weights + f
        return torch.from_numpy(total / weights).reshape(x.shape).to(x)

    return Built(run)


@translates("mean_shift", "opencv")
def mean_shift_opencv(case: Case) -> Built:
    """Integers: a square window about a rounded centre, a few steps, an early stop."""
    a = case.args
    reach, limit = a["sp"], round(a["sr"] ** 2)

    def climb(image: np.ndarray, y: int, x: int) -> np.ndarray:
        colour = image[y, x]
        for _ in range(a.get("max_iterations", 5)):
            top, left = max(y - reach, 0), max(x - reach, 0)
            window = image[top : y + reach + 1, left : x + reach + 1]
            rows, columns = np.nonzero(((window - colour) ** 2).sum(-1) <= limit)
            if not len(rows):
                break
            moved = round(rows.mean() + top), round(columns.mean() + left)
            mean = np.rint(window[rows, columns].mean(0)).astype(int)
            still = abs(moved[0] - y) + abs(moved[1] - x)
            done = still == 0 or still + ((mean - colour) ** 2).sum() <= a.get("eps", 1)
            (y, x), colour = moved, mean
            if done:
                break
        return colour

    def run(x: Tensor) -> Tensor:
        image = x.numpy().astype(int)
        found = [[climb(image, i, j) for j in range(image.shape[1])] for i in range(image.shape[0])]
        return torch.from_numpy(np.array(found)).double()

    return Built(run)
