"""Curves over steps for the report: small plots over one another, and the values that the page says at a step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lookfar.study.charts import Linear, Style, draw_line, draw_svg, draw_text, ticks
from lookfar.study.words import tick

SEEDS_SAID = 5  # beside their mean; more would be read by nobody
Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """One small plot: lines of each seed and, where there are several, their mean drawn strong over them."""

    title: str
    lines: Sequence[Line]
    behind: Sequence[Line] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    empty: str = "not recorded"
    height: int = 92


@dataclass(frozen=True)
class Stack:
    """Small plots over one another.

    Attributes:
        svg: The picture.
        values: What the page needs to say the values at a step: places on the picture, steps, series.
    """

    svg: Markup
    values: dict[str, Any]


def stacked(plots: Sequence[Curves], names: tuple[str, str], style: Style, alt: str, *, width: int = 280) -> Stack:
    """Small plots over one another with one step axis.

    Args:
        plots: From the top.
        names: Of the lines, and of those behind them.
        style: Of the lines.
        alt: The picture in words.
        width: Of the picture.
    """
    left, right, gap = 42, width - 8, 32
    steps = [x for plot in plots for line in (*plot.lines, *plot.behind) for x, _ in line]
    x1 = max(steps, default=1) or 1
    to_x = Linear(0, x1, left, right)
    parts: list[str] = []
    values = []
    y = -8
    for plot in plots:
        top = y + gap - 6
        y = top + plot.height
        axis = _axis(plot)
        parts += _plot(plot, axis, style, to_x, (left, right, top, y))
        if axis:
            values.append(_values(plot, axis, names, style) | {"top": top, "bottom": y})
    for t in ticks(0, x1, about=3):
        parts.append(draw_text(to_x(t), y + 15, tick(t), "end" if to_x(t) > right - 12 else "middle"))
    parts.append(draw_text(left - 8, y + 15, "step", "end"))
    where = {"left": left, "right": right, "last": x1}
    return Stack(draw_svg((width, y + 22), alt, parts), {**where, "plots": values} if values else {})


@dataclass(frozen=True)
class _Axis:
    """The vertical axis of a plot: its ends, as logarithms to base 10 where ``log``."""

    low: float
    high: float
    log: bool


def _axis(plot: Curves) -> _Axis | None:
    """None for a plot without a line."""
    values = [v for line in (*plot.lines, *plot.behind) for _, v in line if math.isfinite(v)]
    if not values:
        return None
    low = min(values) if plot.low is None else plot.low
    high = max(values) if plot.high is None else plot.high
    high = high if high > low else low + (abs(low) or 1.0) * 0.1
    log = plot.log and low > 0
    return _Axis(math.log10(low), math.log10(high), log) if log else _Axis(low, high, log)


def _values(plot: Curves, axis: _Axis, names: tuple[str, str], style: Style) -> dict[str, Any]:
    """The means over seeds that the page says at a step, and with the first of them the seeds."""
    lines, behind = dict(mean_line(plot.lines)), dict(mean_line(plot.behind))
    steps = sorted(lines or behind)

    def at(table: Mapping[float, float]) -> list[float | None]:
        return [float(f"{table[x]:.4g}") if x in table else None for x in steps]

    series: list[dict[str, Any]] = [{"name": names[0], "colour": style.colour, "values": at(lines)}] if lines else []
    if 1 < len(plot.lines) <= SEEDS_SAID:
        series[0]["seeds"] = [at(dict(line)) for line in plot.lines]
    if behind:
        series.append({"name": names[1], "colour": "var(--base)", "values": at(behind)})
    ends = {"low": round(axis.low, 6), "high": round(axis.high, 6), "log": axis.log}
    return {"title": plot.title, "steps": steps, "series": series, **ends}


def _plot(
    plot: Curves, axis: _Axis | None, style: Style, to_x: Linear, box: tuple[float, float, float, float]
) -> list[str]:
    left, right, top, bottom = box
    parts = [draw_text(left, top - 6, plot.title, "start")]
    if axis is None:
        return [*parts, draw_text((left + right) / 2, (top + bottom) / 2, plot.empty)]
    low, high, log = axis.low, axis.high, axis.log
    if log:
        multiples = (1, 2, 5) if high - low < 0.8 else (1, 3) if high - low < 2 else (1,)
        decades = range(math.floor(low), math.ceil(high) + 1)
        marks = [(math.log10(m * 10.0**e), tick(m * 10.0**e)) for e in decades for m in multiples]
        marks = [(value, text) for value, text in marks if low <= value <= high]
    else:
        marks = [(t, tick(t)) for t in ticks(low, high, about=4)]
    to_y = Linear(low, high, bottom - 2, top + 2)

    def path(line: Line) -> str:
        pixels = [(to_x(x), to_y(math.log10(v) if log else v)) for x, v in line if math.isfinite(v)]
        return "M" + "L".join(f"{x:.1f} {min(max(y, top), bottom):.1f}" for x, y in pixels) if pixels else ""

    for value, text in marks:
        y = to_y(value)
        parts += [draw_line("grid", left, y, right, y), draw_text(left - 5, y + 3.8, text, "end")]
    parts.append(draw_line("edge", left, bottom, right, bottom))
    for lines, colour in ((plot.behind, "var(--base)"), (plot.lines, style.colour)):
        strong = len(lines) > 1
        for line in lines:
            parts.append(f'<path class="{"seed" if strong else "mean"}" d="{path(line)}" stroke="{colour}"/>')
        if strong:
            parts.append(f'<path class="mean" d="{path(mean_line(lines))}" stroke="{colour}"/>')
    return parts


def mean_line(lines: Sequence[Line]) -> Line:
    """The mean over seeds at the steps that all lines have."""
    tables = [dict(line) for line in lines]
    common = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in common]


def thin(line: Line, most: int = 120) -> Line:
    """At most about ``most`` points: means of neighbours, so that no spike decides what is seen."""
    size = math.ceil(len(line) / most)
    if size <= 1:
        return line
    groups = [line[i : i + size] for i in range(0, len(line), size)]
    return [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]
