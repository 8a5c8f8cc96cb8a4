"""STN: a small network sees the whole map and decides how to warp it: attention to a place, soft and by warping.

Traps: corners lie on -1 and 1 (``align_corners=True``); sampling at the identity is equal only up to rounding, so the
step from the input to its warped form is what gamma switches on.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.adaptive_average import adaptive_average
from lookfar.ops.sampling import affine_sample

_GRID = 4  # what the localisation network sees of a map


@block(
    "spatial_transformer",
    title="Spatial transformer (STN)",
    paper="Spatial Transformer Networks (NeurIPS 2015)",
    arxiv="1506.02025",
    family="where",
    complexity="N C",
    memory="N C",
    verified=("equations, float64 loop (the authors published no code)",),
    attends="weights",
    aliases=("stn",),
    differences=(
        "The paper leaves the localisation network free. Here: averages of a 4 x 4 grid, a 1x1 convolution, two linear "
        "layers; the last starts with zero weights and the identity as its bias, as the paper asks.",
        "gamma, zero at the start, leads from the input to its warped form, since resampling at the identity is equal "
        'only up to rounding; form="published" has none.',
    ),
)
class SpatialTransformer(nn.Module):
    """Reads the map again at the places of an affine grid that a small network found in it.

    y = x + gamma (sample(x, theta) - x), theta = identity + f(x)

    Args:
        channels: Channels C of input and output.
        mode: ``affine`` (six numbers) or ``attention``: one scale and a translation (three).
        inner_channels: Channels of the localisation network.
        form: ``residual``, or ``published``: the warped map alone.
        zero_init: Start as the identity (gamma 0); else gamma starts at 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown mode or form.
    """

    position_dependent = "reading elsewhere than at one's own place is what it does"

    def __init__(
        self,
        channels: int,
        *,
        mode: Literal["affine", "attention"] = "affine",
        inner_channels: int = 16,
        form: Literal["residual", "published"] = "residual",
        zero_init: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if mode not in ("affine", "attention"):
            raise ValueError(f"mode is affine or attention, got {mode!r}")
        if form not in ("residual", "published"):
            raise ValueError(f"form is residual or published, got {form!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mode, self.form = mode, form
        self.reduce = nn.Conv2d(channels, inner_channels, 1, **dd)
        self.hidden = nn.Linear(inner_channels * _GRID**2, 2 * inner_channels, **dd)
        identity = [1.0, 0, 0, 0, 1, 0] if mode == "affine" else [1.0, 0, 0]
        self.locate = nn.Linear(2 * inner_channels, len(identity), **dd)
        nn.init.zeros_(self.locate.weight)
        with torch.no_grad():
            self.locate.bias.copy_(torch.tensor(identity))
        start = torch.full((1,), 0.0 if zero_init else 1.0, **dd)
        self.gamma = nn.Parameter(start) if form == "residual" else None

    def forward(self, x: Tensor) -> Tensor:
        return self._step(x, affine_sample(x, self.transformation(x)))

    def transformation(self, x: Tensor) -> Tensor:
        """theta ``(B, 2, 3)``, at least in float32: where the places (x, y, 1) of the output lie on the input."""
        seen = self.reduce(adaptive_average(x, _GRID).to(x.dtype)).relu().flatten(1)
        found = widened(self.locate(self.hidden(seen).relu()))
        if self.mode == "affine":
            return found.unflatten(1, (2, 3))
        scale, to_x, to_y = found.unbind(1)
        nothing = torch.zeros_like(scale)
        return torch.stack([scale, nothing, to_x, nothing, scale, to_y], 1).unflatten(1, (2, 3))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Bilinear weights ``(B, 1, Q, N)`` of the flat positions ``(Q,)`` of the output, of all when None."""
        H, W = x.shape[2:]
        theta = self.transformation(x)
        at = torch.arange(H * W, device=x.device) if queries is None else queries
        columns, rows = (2 * axis.to(theta) / max(n - 1, 1) - min(n - 1, 1) for axis, n in ((at % W, W), (at // W, H)))
        with without_autocast(x):
            points = torch.stack([columns, rows, torch.ones_like(rows)], 1) @ theta.transpose(1, 2)  # (B, Q, 2)
            near = [
                (1 - ((points[..., a, None] + 1) / 2 * (n - 1) - torch.arange(n, device=x.device)).abs()).relu()
                for a, n in ((1, H), (0, W))
            ]
            return (near[0][..., :, None] * near[1][..., None, :]).flatten(2)[:, None]

    def values(self, x: Tensor) -> Tensor:
        """What is read: x, ``(B, 1, N, C)``."""
        return x.flatten(2).transpose(1, 2)[:, None]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the input and what was read ``(B, 1, N, C)``."""
        return self._step(x, mixed[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]).to(x.dtype))

    def _step(self, x: Tensor, warped: Tensor) -> Tensor:
        y = warped if self.gamma is None else x + self.gamma.to(x.dtype) * (warped - x)
        return match_format(y, x)
