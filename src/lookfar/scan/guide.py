"""How well scans have ordered what full trainings ordered, as far as that was measured.

``guide.json`` is written by ``benchmarks/scan.py`` beside ``docs/scan.md``; without it nothing is known.
"""

import json
from dataclasses import dataclass
from pathlib import Path

STRONG = 0.6  # Spearman's rho below which a scan is called a weak guide
FILE = Path(__file__).with_name("guide.json")


@dataclass(frozen=True)
class Guide:
    """Spearman's rho between the gains of scans and of full trainings, with its 95 % interval.

    Attributes:
        rho: Over all pairs of block and place, the mean over data sets.
        low: Lower end.
        high: Upper end.
        pairs: How many.
        data: On which data sets.
    """

    rho: float
    low: float
    high: float
    pairs: int
    data: tuple[str, ...]


def guide() -> Guide | None:
    """What was measured; None where nothing was."""
    if not FILE.is_file():
        return None
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return Guide(**{**found, "data": tuple(found["data"])})


def warning(known: Guide | None) -> str:
    """What a scan says of itself.

    >>> warning(None)[:11]
    'Weak guide:'
    >>> warning(Guide(0.8, 0.7, 0.9, 16, ("scenes:lookup",)))[:45]
    'Order of scans and of full trainings: rho 0.8'
    """
    if known is None:
        return "Weak guide: how scans order what full trainings order was not measured."
    said = (
        f"rho {known.rho:.2f} (95 % {known.low:.2f} to {known.high:.2f}) over {known.pairs} pairs of block and place "
        f"on {' and '.join(known.data)}"
    )
    if known.rho < STRONG:
        return f"Weak guide: orders of scans and of full trainings agree with {said}."
    doubt = f"; it may be a weak guide, since the interval reaches below {STRONG}" if known.low < STRONG else ""
    return f"Order of scans and of full trainings: {said}{doubt}."
