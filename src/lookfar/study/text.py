"""The comparison of a study as plain text: its table, cut to a width, and what it means in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookfar.study.candidates import is_reference
from lookfar.study.judging import Conclusions
from lookfar.study.rows import Summary
from lookfar.study.words import points, three, unit

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


def comparison(summaries: Sequence[Summary], conclusions: Conclusions, width: int = 120) -> str:
    """The table and its sentences as one text."""
    return "\n".join([*table_lines(summaries, width), "", *sentences(summaries, conclusions)])


def second_judge(name: str, rows: Sequence[Summary], conclusions: Conclusions, width: int) -> list[str]:
    """The comparison on the second set, under a line that says what it is."""
    said = f"The same trials on {name}, which was used for nothing else:"
    return [said, *table_lines(rows, width, cost=False), "", *sentences(rows, conclusions)]


def table_lines(rows: Sequence[Summary], width: int, *, cost: bool = True) -> list[str]:
    """The comparison, cut into two tables where the width cannot hold one; what the trials cost is left out on wish."""
    names = Column("block", [NAMES.get(row.candidate, row.candidate) for row in rows], number=False)
    letter, scale = unit([row.parameters for row in rows])
    accuracy = [
        Column("mIoU ± 95 %", [_of_mean(row) for row in rows]),
        Column("against baseline", ["" if row.difference is None else str(row.difference) for row in rows]),
        Column("verdict", [row.short for row in rows], number=False),
    ]
    costs = [
        Column("block off", ["" if row.miou_off is None else points(row.miou_off) for row in rows]),
        Column(f"params {letter}", [_number(row.parameters, scale) for row in rows]),
        Column("GFLOPs", [_number(row.flops, 1e9) for row in rows]),
        Column("ms", [_number(row.latency_ms) for row in rows]),
        Column("MB", [_number(row.memory_mb) for row in rows]),
    ]
    if not cost:
        costs = costs[:1]
    whole = [names, *accuracy, *costs]
    if sum(column.width + 2 for column in whole) <= width:
        return _lines(whole)
    return [*_lines([names, *accuracy]), "", *_lines([names, *costs])]


def sentences(rows: Sequence[Summary], conclusions: Conclusions) -> list[str]:
    """What the table means: what holds for the study, then a few sentences a candidate."""
    lines = list(conclusions.sentences)
    for row in rows:
        parts = [row.said] if row.said else []
        if row.failed and row.done:
            parts.append(f"{row.failed} of {row.failed + row.done} trials failed ({row.reason}).")
        if not is_reference(row.candidate) and row.miou_off is not None and row.miou is not None:
            parts.append(_off(row.miou.mean, row.miou_off))
        if parts:
            lines.append(f"{NAMES.get(row.candidate, row.candidate)}: {' '.join(parts)}")
    return lines


def _off(miou: float, miou_off: float) -> str:
    lost = miou - miou_off
    change = f"loses {points(lost)} points" if lost > 0 else f"gains {points(-lost)} points"
    if abs(lost) < 0.05:
        change = "changes nothing"
    return f"Switched off at test time, it {change}."


def _of_mean(row: Summary) -> str:
    if row.miou is None:
        return "no score" if row.done else "failed" if row.failed else "not yet"
    return str(row.miou)


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
