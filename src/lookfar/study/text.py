"""The comparison of a study as plain text: its table, cut to a width, and what it means in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookfar._notebooks import html_table
from lookfar.study.candidates import is_reference
from lookfar.study.judging import Conclusions
from lookfar.study.latency import Latency
from lookfar.study.prospects import failures_possible
from lookfar.study.rows import Summary
from lookfar.study.words import capital, counted, percent, three, unit
from lookfar.tasks import Words

NAMES = {"control": "control (conv)"}
ABLATED = {
    "mean": "mean map", "uniform": "plain average", "other": "another image's map", "pairwise": "pairwise",
    "unary": "unary", "constant": "a constant", "off": "off",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column: its header, its cells, whether they are numbers."""

    header: str
    cells: Sequence[str]
    number: bool = True

    @property
    def width(self) -> int:
        return max(len(text) for text in (self.header, *self.cells))


def comparison(
    summaries: Sequence[Summary], conclusions: Conclusions, width: int = 120, columns: Mapping[str, str] = {}
) -> str:
    """The table and its sentences as one text; ``columns`` are the further ones of the task."""
    tables = [*table_lines(summaries, width, conclusions.terms.words), *beside_lines(summaries, columns)]
    return "\n".join([*tables, "", *sentences(summaries, conclusions), *told_lines(summaries)])


def second_judge(name: str, rows: Sequence[Summary], conclusions: Conclusions, width: int) -> list[str]:
    """The comparison on the second set, under a line that says what it is; what both sets share stands above it."""
    images = counted(len(conclusions.groups.labels), "image")
    said = f"The same trials on {name}, {images} used for nothing else:"
    table = table_lines(rows, width, conclusions.terms.words, cost=False)
    judged = [f"{NAMES.get(row.candidate, row.candidate)}: {row.judged}." for row in rows if row.judged]
    return [said, *table, "", *conclusions.sentences, *judged, *told_lines(rows)]


def table_lines(rows: Sequence[Summary], width: int, words: Words, *, cost: bool = True) -> list[str]:
    """The comparison, cut into two tables where the width cannot hold one; what the trials cost is left out on wish."""
    names, scores, costs = table_columns(rows, words)
    whole = [names, *scores, *(costs if cost else [])]
    if not cost or sum(column.width + 2 for column in whole) <= width:
        return _lines(whole)
    return [*_lines([names, *scores]), "", *_lines([names, *costs])]


def table_columns(rows: Sequence[Summary], words: Words) -> tuple[Column, list[Column], list[Column]]:
    """The columns of the comparison: names, scores and verdicts, costs."""
    names = Column("block", [NAMES.get(row.candidate, row.candidate) for row in rows], number=False)
    letter, scale = unit([row.parameters for row in rows])
    scores = [
        Column(f"{words.score} ± 95 %", [_of_mean(row) for row in rows]),
        Column("against baseline", ["" if row.difference is None else str(row.difference) for row in rows]),
        Column("verdict", [row.short for row in rows], number=False),
    ]
    costs = [
        Column(f"params {letter}", [_number(row.parameters, scale) for row in rows]),
        Column("GFLOPs", [_number(row.flops, 1e9) for row in rows]),
        *_times(rows),
        Column("block MB", [_number(row.block_memory_mb) for row in rows]),
    ]
    return names, scores, costs


def as_html(rows: Sequence[Summary], conclusions: Conclusions) -> str:
    """The comparison and its sentences for a notebook."""
    names, scores, costs = table_columns(rows, conclusions.terms.words)
    columns = [names, *scores, *costs]
    below = [*sentences(rows, conclusions), *told_lines(rows)]
    cells = list(zip(*(column.cells for column in columns)))
    return html_table([c.header for c in columns], cells, numbers=[c.number for c in columns], below=below)


def _times(rows: Sequence[Summary]) -> list[Column]:
    """Milliseconds of an image and their ratio to the baseline's with its range; nothing before they are measured."""
    if not any(row.latency for row in rows):
        return []
    ratios = ["" if row.latency is None else ratio_words(row.latency) for row in rows]
    return [Column("ms", [_number(row.latency_ms) for row in rows]), Column("× baseline", ratios)]


def ratio_words(latency: Latency) -> str:
    """``1.12 (1.08–1.19)``."""
    if latency.ratio is None or latency.ratio_low is None or latency.ratio_high is None:
        return ""
    return f"{latency.ratio:.2f} ({latency.ratio_low:.2f}–{latency.ratio_high:.2f})"


def told_lines(rows: Sequence[Summary]) -> list[str]:
    """A line a block: what could take its place in the trained networks."""
    told = [f"{NAMES.get(row.candidate, row.candidate)}: {row.told}" for row in rows if row.told is not None]
    return ["", "What could take a block's place, in the trained networks, weights unchanged:", *told] if told else []


def beside_lines(rows: Sequence[Summary], columns: Mapping[str, str]) -> list[str]:
    """A table of a task's further columns, where it has several that are known.

    Args:
        rows: Candidates.
        columns: What stands above each of them.
    """
    rows = [row for row in rows if row.done]
    known = [name for name in columns if any(row.further.get(name) is not None for row in rows)]
    if len(known) < 2:
        return []
    names = Column("beside the score", [NAMES.get(r.candidate, r.candidate) for r in rows], number=False)
    return ["", *_lines([names, *(Column(columns[n], [three(r.further.get(n)) for r in rows]) for n in known)])]


def sentences(rows: Sequence[Summary], conclusions: Conclusions) -> list[str]:
    """What the table means: what holds for the study, then a few sentences a candidate."""
    lines = list(conclusions.sentences)
    for row in rows:
        parts = [row.said] if row.said else []
        if row.failed and row.done:
            parts.append(f"{row.failed} of {row.failed + row.done} trials failed ({row.reason}).")
        if not is_reference(row.candidate) and row.off_and_constant:
            parts.append(f"{capital(row.off_and_constant)}.")
        if parts:
            lines.append(f"{NAMES.get(row.candidate, row.candidate)}: {' '.join(parts)}")
    return [*lines, *small_print(rows, conclusions)]


def small_print(rows: Sequence[Summary], conclusions: Conclusions) -> list[str]:
    """What every table should be read with: what was drawn again, what holds together, what its runs cannot exclude."""
    groups, found = conclusions.groups, []
    if groups.labels and groups.noun != "image":
        found.append(f"Validated on {counted(len(groups.labels), 'image')}, {groups}.")
    compared = [row.difference for row in rows if row.difference and not is_reference(row.candidate)]
    if len(compared) > 1 and compared[0].seeds > 1:
        found.append("Intervals against the baseline hold together in 19 of 20 studies.")
    runs = min((d.seeds for d in compared), default=0)
    if runs > 1:
        possible = percent(failures_possible(runs))
        found.append(f"After {runs} runs without a failure, a failure rate of up to {possible} is still possible.")
    return [" ".join(found)] if found else []


def _of_mean(row: Summary) -> str:
    if row.score is None:
        return "no score" if row.done else "failed" if row.failed else "not yet"
    return str(row.score)


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
