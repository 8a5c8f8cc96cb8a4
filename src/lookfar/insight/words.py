"""What `lookfar inspect` prints of a block."""

from lookfar._tables import table
from lookfar.diagnostics.block_statistics import UNITS, Statistics
from lookfar.insight.inspecting import ORDER, Inspected
from lookfar.study.text import ABLATED
from lookfar.study.words import capital, counted, ends, points, signed


def lines_of(one: Inspected) -> list[str]:
    """The verdict, the ladder, the statistics."""
    subject = one.subject
    judged = "" if subject.task is None else ", labelled"
    head = f"{one.label} ({one.block}), {counted(len(subject.data.val), 'image')}{judged}"
    lines = [head, str(one.told)]
    if one.note:
        lines.append(f"{capital(one.note)}.")
    if one.told.reason:
        return lines
    lines += ["", _ladder(one)]
    if one.statistics is not None:
        lines += ["", _statistics(one.statistics, one.untrained)]
    return lines


def _ladder(one: Inspected) -> str:
    """A row for all that was taken away; intervals where the verdict rests on them."""
    rungs = {rung.kind: rung for rung in one.told.verdict.rungs}
    rows: list[list[str | float | None]] = []
    task, full = one.subject.task, one.scores.get("full", 0.0)
    for kind in ("full", *ORDER):
        if kind not in one.scores:
            continue
        rung, value = rungs.get(kind), one.scores[kind]
        loss = 0.0 if task is None else (full - value if task.higher else value - full)
        costs = "" if task is None or kind == "full" else signed(loss, rung and rung.high - rung.loss)
        found = ends(rung.low, rung.high) if rung and task is not None else None
        rows.append([{"full": "full", **ABLATED}[kind], points(value), costs, ", ".join(found) if found else ""])
    title = "% of predictions changed" if task is None else task.words.title
    headers = ["without changing weights", title, "costs", "95 %"]
    return (
        table(headers, rows) if task is not None else table(headers[:2], [row[:2] for row in rows if row[0] != "full"])
    )


def _statistics(now: Statistics, before: Statistics | None) -> str:
    rows: list[list[str | float | None]] = []
    for name, of in now.items():
        weighted = None if of.weighted is None else of.weighted.nanmean(0)
        untrained = None if before is None or name not in before else before[name].mean
        for kind, own in now.kinds_of(of):
            cells = [None if c is None else float(c[own].mean()) for c in (of.mean, of.deviation, weighted, untrained)]
            label = f"{name}, {kind}" if kind else name
            rows.append([label, *(None if c is None or c != c else round(c, 5) for c in cells), UNITS[name]])
    return table(["maps, means over images and heads", "mean", "± images", "weighted", "untrained", ""], rows)
