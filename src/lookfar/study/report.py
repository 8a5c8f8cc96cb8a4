"""``report.html``: one self-contained file about a study, a pure function of its folder.

The numbers are those of :mod:`lookfar.study.results`; here they are put in the order of a reader's questions.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study import charts
from lookfar.study._files import read_if_whole, write_text
from lookfar.study.answer import answer, classes_note, facts, intervals, limits, made, short_names
from lookfar.study.by_class import OfClass, confusions, is_shown
from lookfar.study.candidates import is_reference
from lookfar.study.comparisons import Difference
from lookfar.study.confusion import MOST, confusion, most_confused
from lookfar.study.curves import Curves, Line, stacked, thin
from lookfar.study.gallery import DETAILS, Gallery, study_gallery
from lookfar.study.intervals import Interval
from lookfar.study.provenance import readable
from lookfar.study.results import Results, load
from lookfar.study.rows import Summary, Trial
from lookfar.study.text import ABLATED, ratio_words
from lookfar.study.trained import how_to_load
from lookfar.study.words import (
    WIDEST,
    capital,
    counted,
    duration,
    ends,
    half_width,
    join,
    percent,
    plus_minus,
    points,
    signed,
    three,
    unit,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CLASSES = 60  # that the page shows one by one
# blocks that the page shows at once, the best ones; of the others it has the numbers, folded, and no pictures
OPEN = 20
LIMIT = 4_800_000  # bytes: below 5 MB, so that it can be mailed


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` of a study's folder; the same folder gives the same bytes.

    Raises:
        FileNotFoundError: The folder holds no study.

    >>> write_report("runs/lookup")
    PosixPath('runs/lookup/report.html')
    """
    path = Path(folder) / "report.html"
    write_text(path, render(load(folder)))
    return path


def render(results: Results) -> str:
    """The report as text."""
    text = _View(results)
    return fill("report.html.j2", study_gallery(results, text.styles, text.folded), vars(text))


def fill(template: str, shown: Gallery, values: Mapping[str, Any]) -> str:
    """A page with pictures, of as much detail as keeps it small enough to be mailed.

    Args:
        template: Name of its file.
        shown: Its pictures.
        values: All else that it is given.
    """
    here = resources.files("lookfar.study")
    css, maps, own = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "maps.js", "report.js"))
    js = f"{maps}\n{own}"
    js_hash = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    page, html = _templates().get_template(template), ""
    for detail in DETAILS:
        html = page.render(css=css, js=js, js_hash=js_hash, pictures=shown.at(detail), **values)
        if len(html.encode(errors="backslashreplace")) <= LIMIT:
            break
    return html


@cache
def _templates() -> "Environment":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("lookfar.study", "."), PackageLoader("lookfar.insight", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "three": three,
        "points": points,
        "half_width": half_width,
        "signed": signed,
        "ends": lambda d: " to ".join(ends(d.low, d.high) or ("too wide to show",)),
        "duration": duration,
        "soft": soft,
        "whole": whole,
        "counted": counted,
        "ratio": ratio_words,
    }
    return environment


# ---- what the template is given -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A candidate in the comparison."""

    summary: Summary
    style: charts.Style
    forest: Any
    note: str

    @property
    def name(self) -> str:
        return self.summary.candidate


@dataclass(frozen=True)
class Cell:
    """A class under a candidate: its difference to the baseline, whether it is shown, how strong its colour is."""

    difference: Difference
    shown: bool
    strength: float


class _View:
    """Everything but the pictures."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.plan, self.judged = results.plan, True
        self.words, self.higher = results.task.words, results.task.higher
        self.columns = results.task.columns
        shown = {name for s in results.summaries for name, value in s.further.items() if value is not None}
        self.beside = {name: title for name, title in self.columns.items() if name in shown}
        self.task_note = results.task.note
        self.of_images = results.task.by_own
        self.environment = read_if_whole(results.folder / "environment.json")
        self.pooled = bool(self.environment.get("pooled"))  # whether the host takes the mean over positions
        of_data = self.environment.get("data") or {}
        self.question = str(of_data.get("question") or of_data.get("task") or "")  # earlier versions called it task
        names = list(dict.fromkeys(t.candidate for t in results.trials))
        self.styles = charts.styles(names)
        self.folded = folded([s.candidate for s in results.summaries])
        self.answer = answer(results)
        self.shorts = short_names(names)
        self.longest = max(len(part) for name in self.shorts.values() for part in re.split(r"(?=[(@])", name))
        devices = [read_if_whole(Path(t.folder) / "result.json").get("device") for t in results.trials]
        paths = self.environment.get("paths") or {}
        self.data_name = readable(self.plan.data, paths)
        self.command = readable(str(self.environment.get("command", "")), paths)
        self.facts = [readable(fact, paths) for fact in facts(results, next((str(d) for d in devices if d), ""))]
        drawn = [bar for s in results.summaries if (bar := _bar(s))]
        scale = charts.forest_range([(min(bar.low, *bar.dots), max(bar.high, *bar.dots)) for bar in drawn])
        self.axis = charts.forest_axis(scale) if drawn else None
        self.rows = [_row(s, self.styles[s.candidate], scale) for s in results.summaries]
        self.parameter_unit = unit([s.parameters for s in results.summaries])
        self.scatters = [
            s
            for s in (
                self._scatter("flops", 1e9, "GFLOPs an image"),
                self._scatter("latency_ms", 1, "milliseconds an image"),
            )
            if s
        ]
        self.also = self._also()
        self.one_seed = self.plan.seeds == 1
        self.intervals = intervals(results)
        drawn_of = [t for t in results.trials if t.candidate not in self.folded]
        metrics = {t: _metrics(Path(t.folder) / "metrics.jsonl") for t in drawn_of}
        self.curves = self._curves(metrics)
        self.states = self._states(metrics)
        self.latency = str(results.latency)
        self.ablated = ABLATED
        self.without = [s for s in results.summaries if s.without.known or s.candidate == "baseline"]
        reasons = [s.without.reason for s in self.without if not is_reference(s.candidate)]
        self.no_maps = [capital(r) for r in dict.fromkeys(filter(None, reasons))]
        self.class_columns = sorted((s for s in results.summaries if s.done), key=lambda s: s.candidate != "baseline")
        every = self._classes()
        self.per_class = _most_different(every)
        self.classes_left_out = len(every) - len(self.per_class)
        self.classes_note = classes_note(results)
        self.confused_left_out = len(every) if len(every) > MOST else 0
        self.confusions = self._confusions()
        self.limits = limits(results)
        order = [s.candidate for s in results.summaries]
        self.how_to_load = how_to_load(results.folder, results.trials, order, classes=bool(self.words.of_class))
        self.plan_text = readable((results.folder / "study.yaml").read_text(encoding="utf-8").strip(), paths)
        self.made = [(name, readable(value, paths)) for name, value in made(self.environment)]

    def _also(self) -> dict[str, Any] | None:
        """The comparison on the second set."""
        if self.results.also is None:
            return None
        images = len(self.environment.get("data", {}).get("also_val_names") or ())
        return {"images": images, "rows": self.results.also.summaries, "styles": self.styles}

    def _scatter(self, field: str, unit: float, title: str) -> Any:
        found = []
        for s in self.results.summaries:
            cost = getattr(s, field)
            if s.score and cost is not None:
                name, style = self.shorts[s.candidate], self.styles[s.candidate]
                half = s.score.half if s.score.half <= WIDEST else None
                named = s.candidate not in self.folded
                found.append(charts.Point(name, cost / unit, s.score.mean, half, style, named))
        if len(found) < 2:
            return None
        words = self.results.task.words
        alt = f"{words.score} against {title}: " + "; ".join(
            f"{p.name} {three(p.x)}, {plus_minus(p.y, p.half)}" for p in found
        )
        return charts.scatter(found, title, f"{words.title} (± 95 %)", alt)

    def _curves(self, metrics: dict[Trial, list[dict[str, Any]]]) -> list[tuple[Summary, charts.Style, Any]]:
        own: dict[str, list[list[dict[str, Any]]]] = {}
        for trial, records in metrics.items():
            own.setdefault(trial.candidate, []).append(records)

        def lines(name: str, of: Any) -> list[Line]:
            found = [[p for record in m if (p := of(record))] for m in own.get(name, ())]
            return [thin(line) for line in found if line]

        task = self.results.task

        def score(record: dict[str, Any]) -> tuple[float, float] | None:
            value = (record.get("val") or {}).get(task.metric)
            return None if value is None else (record["step"], task.scale * value)

        def loss(record: dict[str, Any]) -> tuple[float, float] | None:
            value = record.get("loss")
            return None if value is None or not math.isfinite(value) else (record["step"], value)

        of = {s.candidate: (lines(s.candidate, score), lines(s.candidate, loss)) for s in self.results.summaries}
        every = [[v for pair in of.values() for line in pair[k] for _, v in line] for k in (0, 1)]
        if not any(every):
            return []
        bounds = [(min(v), max(v)) if v else (None, None) for v in every]
        log = bool(every[1]) and min(every[1]) > 0 and max(every[1]) > 10 * min(every[1])
        panels = []
        for s in self.results.summaries:
            if not any(of[s.candidate]):
                continue
            behind = of.get("baseline", ([], [])) if s.candidate != "baseline" else ([], [])
            plots = [
                Curves(f"validation {task.words.title}", of[s.candidate][0], behind[0], *bounds[0]),
                Curves(f"training loss{' (log)' if log else ''}", of[s.candidate][1], behind[1], *bounds[1], log),
            ]
            ends = [line[-1][1] for line in of[s.candidate][0]]
            alt = f"Learning curves of {s.candidate}"
            alt += f": validation {task.words.score} ends at {', '.join(points(e) for e in ends)}" if ends else ""
            panels.append(
                (s, self.styles[s.candidate], stacked(plots, ("", "baseline"), self.styles[s.candidate], alt))
            )
        return panels

    def _states(self, metrics: dict[Trial, list[dict[str, Any]]]) -> list[tuple[Summary, charts.Style, Any]]:
        """Panels of blocks, on shared axes from zero: what stays near zero must look so."""
        # γ last, since not all blocks have one: rows of neighbouring panels can be read across
        titles = {"contribution": "contribution against input", "gradient": "share of the gradient", "gamma": "γ"}
        lines: dict[str, dict[str, list[Line]]] = {}
        for t, records in metrics.items():
            for key in titles:
                lines.setdefault(key, {}).setdefault(t.candidate, []).extend(_block_lines(records, key))
        bounds = {}
        for key, of in lines.items():
            values = [v for every in of.values() for line in every for _, v in line]
            bounds[key] = min([0.0, *values]), max([0.0, *values])
        panels = []
        for s in self.results.summaries:
            own = {key: of.get(s.candidate, []) for key, of in lines.items()}
            if not any(own.values()):
                continue
            own = {key: [thin(line, 60) for line in found] for key, found in own.items() if found}
            plots = [Curves(titles[key], found, (), *bounds[key], height=58) for key, found in own.items()]
            ends = {key: ", ".join(three(line[-1][1]) for line in found) for key, found in own.items() if found}
            last = [f"{titles[key]} ends at {values}" for key, values in ends.items()]
            style = self.styles[s.candidate]
            chart = stacked(plots, ("", ""), style, f"{s.candidate}: {'; '.join(last)}")
            panels.append((s, style, chart))
        return panels

    def _classes(self) -> list[tuple[OfClass, list[tuple[Summary, Interval | None, Cell | None]]]]:
        """Each class with the score of all candidates and, but for the baseline, its difference to it."""
        groups = self.results.conclusions.groups
        differences = [d.mean for of in self.results.by_class for d in of.differences.values()]
        largest = max(map(abs, differences), default=0.0) or 1.0
        table = []
        for of in self.results.by_class:
            cells = []
            for s in self.class_columns:
                d = of.differences.get(s.candidate)
                cell = Cell(d, is_shown(d, groups), 100 * abs(d.mean) / largest) if d else None
                cells.append((s, of.scores.get(s.candidate), cell))
            table.append((of, cells))
        return table

    def _confusions(self) -> list[tuple[Summary, charts.Style, Any, str]]:
        """A matrix and its largest confusions for each candidate."""
        found = []
        for s in self.class_columns:
            matrix = None if s.candidate in self.folded else self.results.confusion(s.candidate)
            if matrix is None:
                continue
            names = [of.name for of in self.results.by_class]
            most = [f"{a} for {b} {percent(share / 100)}" for a, b, share in confusions(matrix, names)]
            nothing = f"No class is taken for another in 1 % of its {self.words.amount}."
            said = f"Most often taken: {join(most)}." if most else nothing
            picture = confusion(*most_confused(matrix, names), f"confusion matrix of {s.candidate}. {said}")
            found.append((s, self.styles[s.candidate], picture, said))
        return found


def folded(best_first: Sequence[str]) -> frozenset[str]:
    """Candidates beyond those that the page shows at once.

    >>> len(folded(["baseline", *(f"cbam(reduction={k})" for k in range(1, 24))]))
    3
    """
    blocks = [name for name in best_first if not is_reference(name)]
    return frozenset(blocks[OPEN:])


def _most_different(
    classes: Sequence[tuple[OfClass, list[tuple[Summary, Interval | None, Cell | None]]]],
) -> list[tuple[OfClass, list[tuple[Summary, Interval | None, Cell | None]]]]:
    """All classes in their order, or of very many those in which some candidate differs most from the baseline."""
    if len(classes) <= CLASSES:
        return list(classes)
    largest = [max((abs(d.mean) for d in of.differences.values()), default=0.0) for of, _ in classes]
    chosen = sorted(range(len(classes)), key=lambda k: (-largest[k], k))[:CLASSES]
    return [classes[k] for k in sorted(chosen)]


def _row(s: Summary, style: charts.Style, scale: tuple[float, float]) -> Row:
    alt = f"difference of {s.candidate} to the baseline: {s.difference or 'none'}"
    forest = charts.forest_row(scale, style, _bar(s), alt)
    note = "no block" if s.candidate == "baseline" else "plain convolutions" if is_reference(s.candidate) else ""
    return Row(s, style, forest, note)


def _bar(s: Summary) -> charts.Bar | None:
    d = s.difference
    if d is None:
        return None
    half = d.half if d.half <= WIDEST else 0.0  # what says nothing would press all others together
    return charts.Bar(d.mean - half, d.mean, d.mean + half, d.of_seed)


# ---- small things ---------------------------------------------------------------------------------------------------


def soft(name: str) -> "Markup":
    """A path or a name from files, which may be broken after its signs."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(&#?\w+;|[_(,@=/-]|\.(?=\D))", r"\1<wbr>", str(escape(name))))


def whole(text: str) -> "Markup":
    """A candidate, or a sentence about some: names are never broken, only between their options."""
    from markupsafe import Markup, escape

    kept = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
    # inside brackets a space follows each comma: with it, and at the place, a long name may go on in the next line
    return Markup(re.sub(r"(?<=[\w)])(\(|@)(?=\S*\w)", r"<wbr>\1", str(escape(kept))))


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a trial; a last line that was being written when the trial died is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _block_lines(metrics: list[dict[str, Any]], key: str) -> list[Line]:
    """One line an inserted block."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in metrics:
        for name, state in (record.get("blocks") or {}).items():
            value = state.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                lines.setdefault(name, []).append((record["step"], float(value)))
    return list(lines.values())
