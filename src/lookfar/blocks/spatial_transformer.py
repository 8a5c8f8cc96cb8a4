"""STN: a small network sees the whole map and decides how to warp it: attention to a place, soft and by warping.

Traps: corners lie on -1 and 1 (``align_corners=True``); sampling at the identity is equal only up to rounding, so the
step from the input to its warped form is what gamma switches on.
"""

import functools
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import Form, Placement, added, gate, gated
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.adaptive_average import adaptive_average
from lookfar.ops.sampling import affine_sample, grid_points, sample_at

Mode = Literal["affine", "attention", "projective", "thin_plate"]

_GRID = 4  # what the localisation network sees of a map, and a spline's control points, along an axis


def _control_points() -> list[tuple[float, float]]:
    """(x, y), row by row."""
    line = [2 * i / (_GRID - 1) - 1 for i in range(_GRID)]
    return [(x, y) for y in line for x in line]


def _basis(points: Tensor, control: Tensor) -> Tensor:
    """r^2 log r^2 to each of the K control points, 1, x and y: ``(Q, 2), (K, 2) -> (Q, K + 3)``."""
    squared = (points[:, None] - control).square().sum(2)
    bent = squared * squared.clamp_min(1e-30).log()
    return torch.cat([bent, torch.ones_like(points[:, :1]), points], 1)


@functools.cache
def _spline() -> tuple[tuple[float, ...], ...]:
    """From the values at the control points to a thin-plate spline's coefficients: its bent part bends no plane."""
    control = torch.tensor(_control_points(), dtype=torch.float64, device="cpu")
    system = torch.zeros(len(control) + 3, len(control) + 3, dtype=torch.float64, device="cpu")
    system[: len(control)] = _basis(control, control)
    system[len(control) :, : len(control)] = system[: len(control), len(control) :].T
    return tuple(map(tuple, torch.linalg.inv(system)[:, : len(control)].tolist()))


@block(
    "spatial_transformer",
    title="Spatial transformer (STN)",
    paper="Spatial Transformer Networks (NeurIPS 2015)",
    arxiv="1506.02025",
    formula=(r"y = x + \gamma\,(\text{sample}(x, \theta) - x), \quad \theta = \text{identity} + f(x)",),
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
    """Reads the map again at the places of a warped grid that a small network found in it.

    y = x + gamma (sample(x, theta) - x), theta = identity + f(x)

    Args:
        mode: ``affine`` (six numbers); ``attention``: one scale and a translation (three); ``projective`` (eight);
            ``thin_plate``: a spline through the places of 4 x 4 control points (32).
        inner_channels: Channels of the localisation network.
        form: ``block``, or ``published``: the warped map alone.
        zero_init: Start as the identity (gamma 0); else gamma starts at 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown mode or form.

    Example:
        >>> block = SpatialTransformer(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    position_dependent = "reading elsewhere than at one's own place is what it does"

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "affine",
        inner_channels: int = 16,
        form: Form = "block",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.form = form
        self.spline = _spline()
        self.reduce = nn.Conv2d(channels, inner_channels, 1, **dd)
        self.hidden = nn.Linear(inner_channels * _GRID**2, 2 * inner_channels, **dd)
        start: dict[str, list[float]] = {
            "affine": [1.0, 0, 0, 0, 1, 0],
            "attention": [1.0, 0, 0],
            "projective": [1.0, 0, 0, 0, 1, 0, 0, 0],
            "thin_plate": [number for point in _control_points() for number in point],
        }
        identity = start[mode]
        self.locate = nn.Linear(2 * inner_channels, len(identity), **dd)
        nn.init.zeros_(self.locate.weight)
        with torch.no_grad():
            self.locate.bias.copy_(torch.tensor(identity))
        self.form = form
        self.gamma = gate(self, zero_init, **dd) if form == "block" else None

    def forward(self, x: Tensor) -> Tensor:
        theta = self.transformation(x)
        if self.mode in ("affine", "attention"):
            return self._step(x, affine_sample(x, theta))
        with without_autocast(x):
            points = self._places(theta, torch.stack(grid_points(theta, (x.shape[2], x.shape[3])), 1))
        return self._step(x, sample_at(x, points.unflatten(1, x.shape[2:])))

    def transformation(self, x: Tensor) -> Tensor:
        """theta, at least in float32: where the places (x, y, 1) of the output lie on the input.

        ``(B, 2, 3)``; of ``projective`` ``(B, 3, 3)``; of ``thin_plate`` the control points' places ``(B, 16, 2)``.
        """
        seen = self.reduce(adaptive_average(x, _GRID).to(x.dtype)).relu().flatten(1)
        found = widened(self.locate(self.hidden(seen).relu()))
        if self.mode == "affine":
            return found.unflatten(1, (2, 3))
        if self.mode == "projective":
            return torch.cat([found, torch.ones_like(found[:, :1])], 1).unflatten(1, (3, 3))
        if self.mode == "thin_plate":
            return found.unflatten(1, (-1, 2))
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
            points = self._places(theta, torch.stack([columns, rows], 1))
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

    def _places(self, theta: Tensor, places: Tensor) -> Tensor:
        """Where places (x, y) of the output lie on the input, ``(Q, 2) -> (B, Q, 2)``."""
        if self.mode == "thin_plate":
            control = torch.tensor(_control_points(), dtype=places.dtype, device=places.device)
            spline = torch.tensor(self.spline, dtype=places.dtype, device=places.device)
            return _basis(places, control) @ spline @ theta
        found = torch.cat([places, torch.ones_like(places[:, :1])], 1) @ theta.transpose(1, 2)
        # what lies behind the plane of a projection is read far outside the map
        return found if self.mode != "projective" else found[..., :2] / found[..., 2:].clamp_min(1e-3)

    def _step(self, x: Tensor, warped: Tensor) -> Tensor:
        y = warped if self.form == "published" else added(self, x, gated(self.gamma, warped - x))
        return match_format(y, x)
