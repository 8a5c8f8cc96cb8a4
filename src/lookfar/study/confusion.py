"""A confusion matrix as a picture: what each class is taken for."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from lookfar._tables import shorten
from lookfar.study.by_class import rows
from lookfar.study.charts import draw_svg, draw_text
from lookfar.study.words import percent

MOST = 40  # classes: cells of more are too small to see
CHOSEN = 20  # of more than that
NUMBERS = 12  # up to here a cell has room for its number


def most_confused(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Shares of each true class in per cent by predicted class, and their names: of very many those confused most.

    Args:
        matrix: Counts ``(K, K)``, rows truth.
        names: Of the classes.

    >>> most_confused(np.array([[8, 2], [0, 5]]), ["road", "car"])[0].tolist()
    [[80.0, 20.0], [0.0, 100.0]]
    """
    share = rows(matrix)
    if len(share) <= MOST:
        return share, list(names)
    off = share.copy()
    np.fill_diagonal(off, 0)
    chosen: list[int] = []
    for cell in np.argsort(-off, axis=None, kind="stable"):
        chosen += [k for k in map(int, np.unravel_index(cell, off.shape)) if k not in chosen]
        if len(chosen) >= CHOSEN:
            break
    chosen = sorted(chosen[:CHOSEN])
    return share[np.ix_(chosen, chosen)], [names[k] for k in chosen]


def confusion(share: np.ndarray, names: Sequence[str], alt: str) -> Markup:
    """Shares of each true class (a row) by predicted class (a column).

    Args:
        share: Per cent of the true class ``(K, K)``, rows truth.
        names: Of the classes.
        alt: The picture in words.
    """
    K, side, label = len(share), 300, 92
    cell = (side - label) / K
    size = min(12.0, max(cell * 0.82, 5))
    style = f' style="font-size:{size:.1f}px"'
    parts = []
    for i, name in enumerate(names[:K]):
        text = shorten(name, int(label / size / 0.56))
        at = label + (i + 0.5) * cell
        parts.append(draw_text(label - 5, at + size * 0.36, text, "end", style))
        turned = f' transform="translate({at + size * 0.3:.1f} {label - 5}) rotate(-60)"'
        parts.append(draw_text(0, 0, text, "start", style + turned))
    for i, j in np.ndindex(K, K):
        value = float(share[i, j])
        if value < 0.05:
            continue
        x, y = label + j * cell, label + i * cell
        colour, strength = ("var(--accent)", value) if i == j else ("var(--bad)", 100 * (value / 100) ** 0.5)
        said = f"{names[i]} {'right' if i == j else f'taken for {names[j]}'}: {percent(value / 100)}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" fill="{colour}" '
            f'fill-opacity="{max(strength, 3) / 125:.2f}"><title>{escape(said)}</title></rect>'
        )
        if K <= NUMBERS and value >= 0.5:
            parts.append(draw_text(x + cell / 2, y + cell / 2 + 4, f"{value:.0f}", "middle", ' class="in"'))
    frame = f'<rect class="frame" x="{label}" y="{label}" width="{side - label}" height="{side - label}"/>'
    return draw_svg((side + 26, side), alt, [*parts, frame])
