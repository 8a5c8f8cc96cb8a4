"""Charts of the report as SVG text: they take colours and ink from the page, so they follow light, dark and print.

Candidates are drawn in ``var(--cN)`` with a marker of their own; text is never coloured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lookfar._tables import shorten
from lookfar.study.candidates import is_reference
from lookfar.study.words import tick

# one path a marker, about (0, 0), all of about the same area
MARKERS = (
    "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    "M-4.5-4.5h9v9h-9Z",
    "M0-6.2L6.2 0L0 6.2L-6.2 0Z",
    "M0-6L5.8 4.4H-5.8Z",
    "M0 6L5.8-4.4H-5.8Z",
    "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
)
PALETTE = 7  # colours of candidates in report.css, --c0 to --c6; after them the markers change


@dataclass(frozen=True)
class Style:
    """How a candidate is drawn, everywhere in the report: a CSS colour and a marker."""

    colour: str
    marker: str

    @property
    def swatch(self) -> Markup:
        """The marker beside a name."""
        path = f'<path d="{self.marker}" fill="{self.colour}"/>'
        return Markup(f'<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true">{path}</svg>')


def styles(candidates: Sequence[str]) -> dict[str, Style]:
    """Colours in the order of the plan; the references are grey and ink."""
    found = {"baseline": Style("var(--base)", MARKERS[0])}
    controls = [name for name in candidates if is_reference(name) and name != "baseline"] or ["control"]
    found |= {name: Style("var(--control)", MARKERS[(1 + n) % len(MARKERS)]) for n, name in enumerate(controls)}
    others = [name for name in candidates if name not in found]
    for i, name in enumerate(others):
        marker = MARKERS[(i + i // PALETTE) % len(MARKERS)]
        found[name] = Style(f"var(--c{i % PALETTE})", marker)
    return found


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if m * step >= raw), 10)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


# ---- forest plot: one cell of a table row each, in per cent of its width --------------------------------------------


def forest_range(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """One scale for all rows, with zero on it."""
    low = min([0.0, *(i[0] for i in intervals)])
    high = max([0.0, *(i[1] for i in intervals)])
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


@dataclass(frozen=True)
class Bar:
    """A paired difference: the ends of its interval, its mean, and the difference under each seed."""

    low: float
    mean: float
    high: float
    dots: Sequence[float] = ()


def forest_row(scale: tuple[float, float], style: Style, bar: Bar | None, alt: str) -> Markup:
    """Paired difference with its interval and its seeds; None draws the zero line alone."""

    def at(value: float) -> str:
        return f"{100 * (value - scale[0]) / (scale[1] - scale[0]):.2f}%"

    parts = [f'<line class="grid" x1="{at(t)}" x2="{at(t)}" y1="0" y2="100%"/>' for t in ticks(*scale, about=4) if t]
    parts.append(f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="100%"/>')
    if bar:
        draw = f'stroke="{style.colour}"'
        parts.append(f'<line class="bar" {draw} x1="{at(bar.low)}" x2="{at(bar.high)}" y1="50%" y2="50%"/>')
        parts += [f'<circle class="seed" {draw} cx="{at(dot)}" cy="50%" r="2.5"/>' for dot in bar.dots]
        marker = f'<path class="mark" d="{style.marker}" fill="{style.colour}"/>'
        parts.append(f'<svg x="{at(bar.mean)}" y="50%" overflow="visible">{marker}</svg>')
    return Markup(f'<svg class="forest" role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>')


def forest_axis(scale: tuple[float, float]) -> Markup:
    """The numbers under the rows."""
    span = scale[1] - scale[0]
    parts = []
    for t in ticks(*scale, about=4):
        label = ("+" if t > 0 else "") + tick(t)
        parts.append(f'<text x="{100 * (t - scale[0]) / span:.2f}%" y="14" text-anchor="middle">{label}</text>')
    return Markup(f'<svg class="forest axis" aria-hidden="true">{"".join(parts)}</svg>')


# ---- gain against cost ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A candidate in the scatter: cost, score and its half-width (None where not known); whether its name is drawn."""

    name: str
    x: float
    y: float
    half: float | None
    style: Style
    named: bool = True


def scatter(points: Sequence[Point], x_title: str, y_title: str, alt: str) -> Markup:
    """The score with its interval against a cost; points carry their names, moved aside where names would collide."""
    W, H = 420, 340
    box = left, right, top, bottom = 52, W - 10, 12, H - 44
    points = sorted(points, key=lambda p: not p.named)  # names are placed beside the first ones
    xs = [p.x for p in points]
    ys = [v for p in points for v in (p.y - (p.half or 0), p.y + (p.half or 0))]
    pad_x = 0.12 * (max(xs) - min(xs)) or 0.2 * max(xs) or 1.0
    pad_y = 0.08 * (max(ys) - min(ys)) or 1.0
    x0, x1, y0, y1 = max(min(xs) - pad_x, 0), max(xs) + pad_x, min(ys) - pad_y, max(ys) + pad_y
    to_x, to_y = Linear(x0, x1, left, right), Linear(y0, y1, bottom, top)
    parts = []
    for t in ticks(y0, y1):
        parts += [draw_line("grid", left, to_y(t), right, to_y(t)), draw_text(left - 6, to_y(t) + 4, tick(t), "end")]
    for t in ticks(x0, x1):
        parts += [draw_line("edge", to_x(t), bottom, to_x(t), bottom + 4), draw_text(to_x(t), bottom + 17, tick(t))]
    parts += [draw_line("edge", left, bottom, right, bottom), draw_text((left + right) / 2, H - 6, x_title)]
    turned = f'transform="translate(11 {(top + bottom) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(y_title)}</text>')

    places = [(to_x(p.x), to_y(p.y)) for p in points]
    bars = [(to_y(p.y + (p.half or 0)), to_y(p.y - (p.half or 0))) for p in points]
    labels = place_labels([p.name for p in points if p.named], places, bars, box)
    for (x, y), label in zip(places, labels):
        parts += [draw_line("leader", x, y, *label.near)] if label.far else []
    for p, (x, _), (upper, lower) in zip(points, places, bars):
        parts += [draw_line("bar", x, upper, x, lower, p.style.colour)] if p.half else []
    for p, (x, y) in zip(points, places):
        mark = f'd="{p.style.marker}" fill="{p.style.colour}"'
        title = f"<title>{escape(p.name)}</title>"
        parts.append(f'<path class="mark" transform="translate({x:.1f} {y:.1f})" {mark}>{title}</path>')
    for p, label in zip(points, labels):
        text = f"<title>{escape(p.name)}</title>{escape(label.text)}"
        parts.append(f'<text class="label" x="{label.x:.1f}" y="{label.y:.1f}">{text}</text>')
    return draw_svg((W, H), alt, parts)


@dataclass(frozen=True)
class Label:
    """A placed name: left end of its base line, whether it stands away from its point, its end towards it."""

    text: str
    x: float
    y: float
    far: bool
    near: tuple[float, float]


CHARACTER, LINE = 6.5, 14.0  # width and height of a character of a label, a little generous


def place_labels(
    names: Sequence[str],
    places: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float]],
    box: tuple[float, float, float, float],
) -> list[Label]:
    """Where names go so that they cover neither points, intervals nor each other: greedy over a ring of offers."""
    left, right, top, bottom = box
    taken = [((x - 7, y - 7, x + 7, y + 7), 2.0) for x, y in places]
    taken += [((x - 2, upper, x + 2, lower), 1.0) for (x, _), (upper, lower) in zip(places, bars)]
    labels = []
    for name, (x, y) in zip(names, places):
        text = shorten(name, 30)
        w = CHARACTER * len(text)
        offers = []
        for far in (0, 14, 28, 44, 62, 84, 110):
            for dx, dy in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
                start = x + dx * (11 + far) - (0, w / 2, w)[1 - dx]
                middle = y + dy * (far + (4 if dx else 16))
                offers.append((far, (start, middle - LINE / 2, start + w, middle + LINE / 2)))
        inside = [o for o in offers if _within(o[1], (left, top - 8, right + 6, bottom + 2))] or offers
        # a pixel of distance costs as much as a few of overlap: names stay near, and clear where they can
        far, rect = min(inside, key=lambda o: 3 * o[0] + sum(cost * _overlap(o[1], t) for t, cost in taken))
        taken.append((rect, 2.0))
        near = (rect[0] - 2 if rect[0] > x else rect[2] + 2 if rect[2] < x else x, (rect[1] + rect[3]) / 2)
        labels.append(Label(text, rect[0], rect[3] - 3.5, far > 0, near))
    return labels


def _within(a: Sequence[float], box: Sequence[float]) -> bool:
    return a[0] >= box[0] and a[1] >= box[1] and a[2] <= box[2] and a[3] <= box[3]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


# ---- shared ---------------------------------------------------------------------------------------------------------


class Linear:
    """A value on an axis to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.slope = low, start, (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def draw_line(kind: str, x1: float, y1: float, x2: float, y2: float, colour: str = "") -> str:
    """A line of a kind that ``report.css`` knows."""
    stroke = f' stroke="{colour}"' if colour else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{stroke}/>'


def draw_text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    """A text with its base line at a place; ``more`` are further attributes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def draw_svg(size: tuple[float, float], alt: str, parts: Sequence[str]) -> Markup:
    """A picture with what it shows in words."""
    head = f'<svg class="chart" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" aria-label="{escape(alt)}">'
    return Markup(head + "".join(parts) + "</svg>")
