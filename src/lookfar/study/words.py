"""How a study writes numbers, durations and lists: on the terminal and in the report alike."""

import math
from collections.abc import Sequence

from lookfar._tables import significant

WIDEST = 50.0  # half-widths beyond it say nothing about a score from 0 to 100
MINUS = "\N{MINUS SIGN}"


def points(value: float, half: float | None = None) -> str:
    """A score to one decimal; to two or three where its half-width would otherwise read 0.0.

    >>> points(12.345), points(12.345, 0.04), points(-0.01)
    ('12.3', '12.35', '0.0')
    """
    decimals = 1
    while half is not None and 0 < half < 0.5 * 10**-decimals and decimals < 3:
        decimals += 1
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def signed(value: float, half: float | None = None) -> str:
    """As :func:`points`, with a plus where there is no minus.

    >>> signed(0.7), signed(-1.25), signed(-0.01)
    ('+0.7', '−1.2', '+0.0')
    """
    text = points(value, half)
    return text if text.startswith(MINUS) else f"+{text}"


def plus_minus(value: float, half: float | None) -> str:
    """A score with its half-width, where that is known and says anything.

    >>> plus_minus(61.23, 0.81), plus_minus(61.23, None), plus_minus(21.8, 129.7)
    ('61.2 ± 0.8', '61.2', '21.8 ± too wide to show')
    """
    return points(value, half) + half_width(half)


def signed_plus_minus(value: float, half: float | None) -> str:
    """As :func:`plus_minus`, for a difference."""
    return signed(value, half) + half_width(half)


def half_width(half: float | None) -> str:
    """`` ± 0.8``; nothing where it is not known."""
    if half is None or math.isnan(half):
        return ""
    return f" ± {points(half, half)}" if half <= WIDEST else " ± too wide to show"


def ends(low: float, high: float) -> tuple[str, str] | None:
    """Both ends of an interval with as many decimals as its width asks for; None where they say nothing.

    >>> ends(-1.44, 6.1)
    ('−1.4', '+6.1')
    """
    half = (high - low) / 2
    return (signed(low, half), signed(high, half)) if half <= WIDEST else None


def percent(share: float) -> str:
    """A probability; nothing is certain.

    >>> percent(0.5), percent(0.9999)
    ('50 %', 'above 99 %')
    """
    if share > 0.99:
        return "above 99 %"
    return "below 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def three(value: float | None) -> str:
    """Three significant digits without an exponent, with a real minus; a dash for None."""
    return "–" if value is None else significant(value).replace("-", MINUS)


def tick(value: float) -> str:
    """A label on an axis: a round number as it is, with a real minus.

    >>> tick(-0.5), tick(1000.0)
    ('−0.5', '1000')
    """
    return f"{value:.6g}".replace("-", MINUS)


def thousands(number: int | None) -> str:
    """A whole number with narrow spaces between its thousands, which no line break parts; ``?`` for None.

    >>> thousands(12500).replace("\N{NARROW NO-BREAK SPACE}", "_")
    '12_500'
    """
    return "?" if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(3, "trial"), counted(0, "step")
    ('1 seed', '3 trials', '0 steps')
    """
    return f"{thousands(number)} {noun}{'s' * (number != 1)}"


def duration(seconds: float | None) -> str:
    """Minutes and seconds, hours before them where there are any; a dash for None.

    >>> duration(65), duration(7380)
    ('1:05', '2:03:00')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A time that is not known exactly.

    >>> about(42), about(340), about(9000)
    ('about 40 s', 'about 6 min', 'about 2.5 h')
    """
    if seconds < 90:
        return f"about {max(round(seconds / 10), 1) * 10} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def unit(counts: Sequence[int | None]) -> tuple[str, float]:
    """Thousands or millions, one for a whole column of parameter counts: its letter and its size."""
    return ("M", 1e6) if max((n for n in counts if n), default=0) >= 1e6 else ("k", 1e3)


def join(parts: Sequence[str], word: str = "and") -> str:
    """A list in a sentence.

    >>> join(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def capital(text: str) -> str:
    """A text that begins a sentence; a block's name stays as it is written.

    >>> capital("it has no maps"), capital("squeeze_excitation has no maps")
    ('It has no maps', 'squeeze_excitation has no maps')
    """
    first = text.partition(" ")[0]
    return text if "_" in first or "(" in first else f"{text[:1].upper()}{text[1:]}"
