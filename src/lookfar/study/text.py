"""The comparison of a study as plain text: its table, cut to a width, and what it means in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookfar.study.rows import Interval, Summary, Trial
from lookfar.study.words import plus_minus, points, signed, three, unit

NAMES = {"control": "control (conv)"}


@dataclass(frozen=True)
class Column:
    """A column: its header, its cells, whether they are numbers."""

    header: str
    cells: Sequence[str]
    number: bool = True

    @property
    def width(self) -> int:
        return max(len(text) for text in (self.header, *self.cells))


def comparison(summaries: Sequence[Summary], trials: Sequence[Trial], width: int = 120) -> str:
    """The table and its sentences as one text."""
    return "\n".join([*table_lines(summaries, width), "", *sentences(summaries, trials)])


def table_lines(rows: Sequence[Summary], width: int) -> list[str]:
    """The comparison, cut into two tables where the width cannot hold one."""
    names = Column("block", [NAMES.get(row.candidate, row.candidate) for row in rows], number=False)
    letter, scale = unit([row.parameters for row in rows])
    accuracy = [
        Column("mIoU ± 95 %", [_of_mean(row) for row in rows]),
        Column("against baseline", [_of_difference(row) for row in rows]),
        Column("verdict", [_short(row) for row in rows], number=False),
    ]
    cost = [
        Column("block off", ["" if row.miou_off is None else points(row.miou_off) for row in rows]),
        Column(f"params {letter}", [_number(row.parameters, scale) for row in rows]),
        Column("GFLOPs", [_number(row.flops, 1e9) for row in rows]),
        Column("ms", [_number(row.latency_ms) for row in rows]),
        Column("MB", [_number(row.memory_mb) for row in rows]),
    ]
    whole = [names, *accuracy, *cost]
    if sum(column.width + 2 for column in whole) <= width:
        return _lines(whole)
    return [*_lines([names, *accuracy]), "", *_lines([names, *cost])]


def sentences(rows: Sequence[Summary], trials: Sequence[Trial]) -> list[str]:
    """What the table means, one sentence or two a candidate; ``trials`` say where their maps are stored."""
    lines = []
    for row in rows:
        parts = []
        name = NAMES.get(row.candidate, row.candidate)
        if row.verdict == "no difference" or (row.difference and not row.verdict) or (row.failed and not row.done):
            parts.append(f"{name}: {row.sentence}.")
        elif row.verdict == "better" and row.over_control is not None:
            parts.append(f"{name}: {row.sentence}, {_against_control(row.over_control)}.")
        if row.failed and row.done:
            parts.append(f"{name}: {row.failed} of {row.failed + row.done} trials failed ({row.reason}).")
        if row.candidate not in NAMES and row.miou_off is not None and row.miou is not None:
            looking = _looking(name, trials, row)
            parts.append(looking + _off("it" if looking else name, row))
        if parts:
            lines.append(" ".join(parts))
    one_seed = any(row.miou is not None and not row.miou.seed_noise_measured for row in rows)
    if one_seed:
        lines.append("Some intervals rest on one seed: they cover the choice of images, not seed noise.")
    return lines


def mean_similarity(folder: Path) -> float | None:
    """Mean cosine between the attention maps of different queries, over a trial's samples; None without maps."""
    path = folder / "samples.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as samples:
        if "similarity" not in samples:
            return None
        values = samples["similarity"]
        return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _looking(name: str, trials: Sequence[Trial], row: Summary) -> str:
    folders = [Path(t.folder) for t in trials if t.candidate == row.candidate and t.status == "done"]
    values = [value for folder in folders if (value := mean_similarity(folder)) is not None]
    if not values:
        return ""
    from lookfar.diagnostics import similarity_word

    similarity = float(np.mean(values))
    if similarity_word(similarity).startswith("differs"):
        return f"{name}'s maps differ between queries (mean similarity {similarity:.2f}): it uses the query. "
    return f"{name}'s map is {similarity_word(similarity)} (mean similarity {similarity:.2f}). "


def _against_control(over: Interval) -> str:
    gain = f"{signed(over.mean, over.half)} ± {points(over.half, over.half)}"
    if over.low > 0:
        return f"and better than plain convolutions of the same size ({gain})"
    return f"but not shown to be better than plain convolutions of the same size ({gain})"


def _off(name: str, row: Summary) -> str:
    assert row.miou is not None
    assert row.miou_off is not None
    lost = row.miou.mean - row.miou_off
    change = f"loses {points(lost)} points" if lost > 0 else f"gains {points(-lost)} points"
    if abs(lost) < 0.05:
        change = "changes nothing"
    return f"Switched off at test time, {name} {change}."


def _of_mean(row: Summary) -> str:
    if row.miou is None:
        return "failed" if row.failed else "not yet"
    return plus_minus(row.miou.mean, row.miou.half)


def _of_difference(row: Summary) -> str:
    d = row.difference
    return "" if d is None else f"{signed(d.mean, d.half)} [{signed(d.low, d.half)}, {signed(d.high, d.half)}]"


def _short(row: Summary) -> str:
    if row.miou is None or row.difference is None:
        return ""
    if row.verdict == "no difference":
        return f"no difference ≥ {points(row.difference.half, row.difference.half)}"
    return row.verdict or "one seed: open"


def _number(value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else three(value / scale)


def _lines(columns: Sequence[Column]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        aligned = (
            c.rjust(column.width) if column.number else c.ljust(column.width) for c, column in zip(cells, columns)
        )
        return "  ".join(aligned).rstrip()

    return [
        line([c.header for c in columns]),
        *(line([c.cells[i] for c in columns]) for i in range(len(columns[0].cells))),
    ]
