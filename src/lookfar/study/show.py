"""The end of a study on the terminal: the table, what it means in sentences, what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from lookfar._tables import significant
from lookfar.study.progress import make_console
from lookfar.study.results import Interval, Results, Summary, points, signed

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


def show(results: Results, report: Path | None = None, console: Console | None = None) -> None:
    """Print the table, its sentences, where the report is, and what to do next."""
    console = console or make_console()
    for number, line in enumerate(table_lines(results, console.width)):
        console.print(line, style="bold" if number == 0 else "", soft_wrap=True)
    console.print()
    for sentence in sentences(results):
        console.print(sentence, soft_wrap=not console.is_terminal)  # a terminal wraps at words
    last = ([f"Report: {report}"] if report else []) + [f"Next: {next_step(results)}"]
    joined = "        ".join(last)
    console.print(joined if len(joined) <= console.width else "\n".join(last), soft_wrap=True)


def as_text(results: Results, width: int = 120) -> str:
    """What :func:`show` prints, as one text."""
    return "\n".join([*table_lines(results, width), "", *sentences(results)])


def table_lines(results: Results, width: int) -> list[str]:
    """The comparison, cut into two tables where the width cannot hold one."""
    rows = results.summaries
    names = Column("block", [NAMES.get(row.candidate, row.candidate) for row in rows], number=False)
    scale, unit = (1e6, "M") if any((row.parameters or 0) >= 1e6 for row in rows) else (1e3, "k")
    accuracy = [
        Column("mIoU ± 95 %", [_of_mean(row) for row in rows]),
        Column("against baseline", [_of_difference(row) for row in rows]),
        Column("verdict", [_short(row) for row in rows], number=False),
    ]
    cost = [
        Column("block off", ["" if row.miou_off is None else points(row.miou_off) for row in rows]),
        Column(f"params {unit}", [_number(row.parameters, scale) for row in rows]),
        Column("GFLOPs", [_number(row.flops, 1e9) for row in rows]),
        Column("ms", [_number(row.latency_ms) for row in rows]),
        Column("MB", [_number(row.memory_mb) for row in rows]),
    ]
    whole = [names, *accuracy, *cost]
    if sum(column.width + 2 for column in whole) <= width:
        return _lines(whole)
    return [*_lines([names, *accuracy]), "", *_lines([names, *cost])]


def sentences(results: Results) -> list[str]:
    """What the table means, one sentence or two a candidate."""
    lines = []
    for row in results.summaries:
        parts = []
        name = NAMES.get(row.candidate, row.candidate)
        if row.verdict == "no difference" or (row.difference and not row.verdict) or (row.failed and not row.done):
            parts.append(f"{name}: {row.sentence}.")
        elif row.verdict == "better" and row.over_control is not None:
            parts.append(f"{name}: {row.sentence}, {_against_control(row.over_control)}.")
        if row.failed and row.done:
            parts.append(f"{name}: {row.failed} of {row.failed + row.done} trials failed ({row.reason}).")
        if row.candidate not in NAMES and row.miou_off is not None and row.miou is not None:
            looking = _looking(name, results, row)
            parts.append(looking + _off("it" if looking else name, row))
        if parts:
            lines.append(" ".join(parts))
    one_seed = any(row.miou is not None and not row.miou.seed_noise_measured for row in results.summaries)
    if one_seed:
        lines.append("Some intervals rest on one seed: they tell of the images alone, seed noise is not in them.")
    return lines


def next_step(results: Results) -> str:
    """What the reader of this table would do next."""
    plan = results.plan
    if not results.complete:
        return "the same command tries what failed or is missing again"
    if plan.data == "scenes:lookup":
        return "the same with --data scenes:cue, or on your own images: --data PATH"
    if plan.data == "scenes:cue":
        return "your own images: lookfar study --data PATH --blocks nonlocal,global_context --pretrained"
    best = results.summaries[0]
    if best.verdict == "better":
        return f'put it in: lookfar.insert(network, "{best.candidate.partition("@")[0]}", at=...)'
    return f"more seeds narrow the intervals: --seeds {max(2 * plan.seeds, 3)} --out another folder"


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


def _looking(name: str, results: Results, row: Summary) -> str:
    folders = [Path(t.folder) for t in results.trials if t.candidate == row.candidate and t.status == "done"]
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
    return f"{points(row.miou.mean, row.miou.half)} ± {points(row.miou.half, row.miou.half)}"


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
    return "" if value is None else significant(value / scale)


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
