"""Classical filters as attention: which of the identities hold, and on which condition."""

from typing import Any

import torch

from lookfar import ops
from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="A mean-shift step over the whole image is a non-local operation on positions and values; in a window, the "
    "bilateral filter.",
    source="Non-local Neural Networks (1711.07971), section 2, and the literature on mean shift as attention",
    refuted_by="outputs that differ by more than rounding",
)


def run() -> Outcome:
    """One step of mean shift, the bilateral filter, and softmax attention on [s / sigma, x / sigma], in float64."""
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas: dict[str, Any] = {"sigma_spatial": 2.0, "sigma_color": 0.3}
    shifted, _ = ops.mean_shift(x, iterations=1, **sigmas)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    places = torch.stack([rows, columns]).double().flatten(1).T / sigmas["sigma_spatial"]
    z = torch.cat([places, x[0].flatten(1).T / sigmas["sigma_color"]], 1)  # (N, 5)
    values = x[0].flatten(1).T
    logits = z @ z.T
    attended = (logits - z.square().sum(1) / 2).softmax(1) @ values
    plain = logits.softmax(1) @ values
    want = shifted[0].flatten(1).T
    whole = float((ops.bilateral(x, **sigmas) - shifted).abs().max())
    window = float(
        (ops.bilateral(x, kernel_size=3, **sigmas) - ops.bilateral_reference(x, kernel_size=3, **sigmas)).abs().max()
    )
    with_bias, without = (float((y - want).abs().max()) for y in (attended, plain))
    holds = max(whole, window, with_bias) < 1e-12
    return Outcome(
        "confirmed" if holds else "refuted",
        f"one step equals the bilateral filter of the whole image to {whole:.0e}, and attention on [s/sigma, x/sigma] "
        f"with a bias -|z_j|^2/2 on the keys to {with_bias:.0e}; the windowed filter is its definition to "
        f"{window:.0e}. The condition is that bias: a gaussian non-local operation without it differs by {without:.2f} "
        "of values in [0, 1].",
    )
