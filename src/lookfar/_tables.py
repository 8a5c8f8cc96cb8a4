"""Plain tables: numbers right-aligned with three significant digits, units in the headers."""

import math
import signal
from collections.abc import Sequence

EMPTY = "–"  # a cell of None


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str | int | float | None]], *, width: int | None = None
) -> str:
    """Lines of text, columns two spaces apart. Columns that hold a number are right-aligned, None is a dash.

    Args:
        headers: Names of the columns, with their units.
        rows: Cells. Floats get three significant digits, integers stay as they are.
        width: Shorten the longest text columns, to no less than 12, until lines are this long; None keeps all.
    """
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    cells = [list(headers), *([cell_text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    text = [i for i, number in enumerate(right) if not number]
    while width is not None and text and sum(widths) + 2 * (len(widths) - 1) > width:
        longest = max(text, key=widths.__getitem__)
        if widths[longest] <= 12:
            break
        widths[longest] -= 1
    cells = [[shorten(cell, w) for cell, w in zip(row, widths)] for row in cells]
    lines = (
        "  ".join(cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, right))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> str:
    """The same cells as a table of Markdown."""
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    cells = ([cell_text(value).replace("|", r"\|") for value in row] for row in rows)
    lines = [headers, ["---:" if number else "---" for number in right], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def significant(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and never an exponent.

    >>> [significant(x) for x in (0.0000164, 0.1, 9.6637, 131.9, 12345.6, -0.0)]
    ['0.0000164', '0.100', '9.66', '132', '12300', '0']
    """
    if value == 0:
        return "0"  # minus nothing too
    if not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    places = digits - 1 - math.floor(math.log10(abs(rounded)))  # 9.996 has become 10.0
    return f"{rounded:.{max(places, 0)}f}"


def by_size(size: Sequence[int]) -> str:
    """Numbers of positions or pixels.

    >>> by_size((97, 129))
    '97×129'
    """
    return "×".join(map(str, size))


def by_kind(kinds: Sequence[str], count: int) -> list[tuple[str, slice]]:
    """Which of ``count`` maps are the heads of each kind; all of them, under an empty name, where there are no kinds.

    >>> by_kind(("pairwise", "unary"), 4)
    [('pairwise', slice(0, 2, None)), ('unary', slice(2, 4, None))]
    """
    heads = count // max(len(kinds), 1)
    return [(kind, slice(k * heads, (k + 1) * heads)) for k, kind in enumerate(kinds or ("",))]


def map_names(kinds: Sequence[str], count: int) -> tuple[str, ...]:
    """The name of each of ``count`` maps of a query; a single map has none.

    >>> map_names((), 2), map_names(("pairwise", "unary"), 2), map_names((), 1)
    (('head 0', 'head 1'), ('pairwise', 'unary'), ('',))
    >>> map_names(("pairwise", "unary"), 4)
    ('pairwise, head 0', 'pairwise, head 1', 'unary, head 0', 'unary, head 1')
    """
    names = []
    for kind, own in by_kind(kinds, count):
        heads = own.stop - own.start
        names += [", ".join(filter(None, (kind, f"head {head}" if heads > 1 else ""))) for head in range(heads)]
    return tuple(names)


def cell_text(value: str | int | float | None) -> str:
    """A cell: three significant digits of a float, a dash for None."""
    if value is None:
        return EMPTY
    return significant(value) if isinstance(value, float) else str(value)


def shorten(text: str, width: int) -> str:
    """At most ``width`` characters, the last one an ellipsis where something was cut off."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def said(error: BaseException, length: int = 160) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(next((line for line in str(error).splitlines() if line.strip()), "").split())
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__, length)


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c, d and 7 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def signal_name(number: int) -> str:
    """What killed a process, by the number of the signal.

    >>> signal_name(9), signal_name(1000)
    ('SIGKILL', 'signal 1000')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
