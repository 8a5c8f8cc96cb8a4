"""How the cost of a block grows with the number of positions: measured at several sizes, fitted in log-log."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lookfar.cost.measure import Cost, measure_cost
from lookfar.cost.sizes import axes_of, checked_size, in_axes

GROWTH_CHANNELS = 32
GROWTH_SIZES = ((64, 64), (96, 96), (128, 128), (192, 192), (256, 256))


@dataclass(frozen=True)
class Growth:
    """Cost at several sizes, and the exponents a of time ~ N^a and memory ~ N^a, by least squares in log-log.

    Attributes:
        points: What was measured, in ascending size.
        time_exponent: Of the latency; None with fewer than two points.
        memory_exponent: Of the peak memory; None with fewer than two points.
        skipped: Sizes that were not measured, since one call was expected to exceed the time limit.
    """

    name: str
    points: tuple[Cost, ...]
    time_exponent: float | None
    memory_exponent: float | None
    skipped: tuple[tuple[int, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON takes them."""
        return {
            "name": self.name,
            "time_exponent": self.time_exponent,
            "memory_exponent": self.memory_exponent,
            "points": [point.to_dict() for point in self.points],
            "skipped": [list(size) for size in self.skipped],
        }

    def _repr_html_(self) -> str:
        from lookfar.cost.tables import growth_table

        return growth_table(self).html


def growth(
    block: str | nn.Module,
    channels: int = GROWTH_CHANNELS,
    sizes: Sequence[Sequence[int]] | None = None,
    *,
    backward: bool = False,
    device: str | torch.device | None = None,
    limit: float = 120.0,
    progress: Callable[[tuple[int, ...]], None] | None = None,
) -> Growth:
    """Measure a block at several sizes and fit how time and memory grow with the number of positions N.

    Args:
        block: As in :func:`measure_cost`.
        channels: Few by default: the exponents do not depend on it, the waiting does.
        sizes: At least two; measured in ascending order. By default :data:`GROWTH_SIZES`, or as many positions in the
            axes that the block has.
        backward: As in :func:`measure_cost`.
        device: As in :func:`measure_cost`.
        limit: Seconds that one call may take. A size at which the time of the previous one, grown with N^2, exceeds it
            is not measured and named in ``skipped``.
        progress: Called with every size before it is measured.

    >>> grown = growth("squeeze_excitation", 16, [(8, 8), (16, 16)])
    >>> [point.size for point in grown.points], grown.skipped
    ([(8, 8), (16, 16)], ())
    """
    if sizes is None:
        sizes = [in_axes(size, axes_of(block) or 2) for size in GROWTH_SIZES]
    ordered = sorted((checked_size(size) for size in sizes), key=math.prod)
    if len({math.prod(size) for size in ordered}) < 2:
        raise ValueError(f"growth needs at least two different sizes, got {[tuple(size) for size in sizes]}")
    points: list[Cost] = []
    skipped: list[tuple[int, ...]] = []
    for size in ordered:
        if points:
            expected = points[-1].latency_ms / 1000 * (math.prod(size) / math.prod(points[-1].size)) ** 2
            if expected > limit:
                skipped.append(size)
                continue
        if progress is not None:
            progress(size)
        points.append(measure_cost(block, channels, size, backward=backward, device=device))
    N = [math.prod(point.size) for point in points]
    return Growth(
        points[0].name,
        tuple(points),
        _exponent(N, [point.latency_ms for point in points]),
        _exponent(N, [point.memory_mb for point in points]),
        tuple(skipped),
    )


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """Slope of log values over log sizes by least squares."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(v) for v in values]).slope
