"""``report.html``: one self-contained file about a study, a pure function of its folder.

The numbers are those of :mod:`lookfar.study.results`; here they are put in the order of a reader's questions.
"""

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study import charts, pictures
from lookfar.study._files import read_json, write_text
from lookfar.study.answer import answer, facts, intervals, limits, made, short_names
from lookfar.study.candidates import is_reference
from lookfar.study.intervals import Interval, over_seeds
from lookfar.study.results import Results, load
from lookfar.study.rows import Summary, Trial
from lookfar.study.words import WIDEST, duration, ends, half_width, plus_minus, points, signed, three, unit

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

LIMIT = 4_800_000  # bytes: below 5 MB, so that it can be mailed
# a report that is too large carries fewer pictures, never fewer numbers
DETAILS = (
    pictures.Detail(),
    pictures.Detail(images=8, explored=4),
    pictures.Detail(images=6, explored=3, queries=12, keys=24),
    pictures.Detail(images=4, explored=2, queries=8, keys=16),
    pictures.Detail(images=2, explored=1, queries=8, keys=16),
    pictures.Detail(images=0, explored=0),
)


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
    here = resources.files("lookfar.study")
    css, js = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    template = _template()
    text = _View(results)
    shown = _Pictures(results, text.styles)
    html = ""
    for detail in DETAILS:
        html = template.render(
            css=css, js=js, js_hash=base64.b64encode(hashlib.sha256(js.encode()).digest()).decode(),
            pictures=shown.at(detail), shade=text.shade, **vars(text),
        )  # fmt: skip
        if len(html.encode(errors="backslashreplace")) <= LIMIT:
            break
    return html


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lookfar.study", "."),
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
    }
    return environment.get_template("report.html.j2")


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


class _View:
    """Everything but the pictures."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.plan = results.plan
        self.environment = read_json(results.folder / "environment.json")
        names = list(dict.fromkeys(t.candidate for t in results.trials))
        self.styles = charts.styles(names)
        self.answer = answer(results)
        self.shorts = short_names(names)
        devices = [read_json(Path(t.folder) / "result.json").get("device") for t in results.trials]
        self.facts = facts(results, next((str(d) for d in devices if d), ""))
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
        metrics = {t: _metrics(Path(t.folder) / "metrics.jsonl") for t in results.trials}
        self.curves = self._curves(metrics)
        self.states = self._states(metrics)
        self.class_columns = [s for s in results.summaries if s.done]
        self.per_class = self._per_class()
        self.limits = limits(results)
        self.plan_text = (results.folder / "study.yaml").read_text(encoding="utf-8").strip()
        self.made = made(self.environment)

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
            if s.miou and cost is not None:
                name, style = self.shorts[s.candidate], self.styles[s.candidate]
                half = s.miou.half if s.miou.half <= WIDEST else None
                found.append(charts.Point(name, cost / unit, s.miou.mean, half, style))
        if len(found) < 2:
            return None
        alt = f"mIoU against {title}: " + "; ".join(f"{p.name} {three(p.x)}, {plus_minus(p.y, p.half)}" for p in found)
        return charts.scatter(found, title, "mIoU, % (± 95 %)", alt)

    def _curves(self, metrics: dict[Trial, list[dict[str, Any]]]) -> list[tuple[Summary, charts.Style, Any]]:
        def lines(name: str, of: Any) -> list[charts.Line]:
            found = [[p for record in m if (p := of(record))] for t, m in metrics.items() if t.candidate == name]
            return [charts.thin(line) for line in found if line]

        def miou(record: dict[str, Any]) -> tuple[float, float] | None:
            value = (record.get("val") or {}).get("miou")
            return None if value is None else (record["step"], 100 * value)

        def loss(record: dict[str, Any]) -> tuple[float, float] | None:
            value = record.get("loss")
            return None if value is None or not math.isfinite(value) else (record["step"], value)

        of = {s.candidate: (lines(s.candidate, miou), lines(s.candidate, loss)) for s in self.results.summaries}
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
                charts.Curves("validation mIoU, %", of[s.candidate][0], behind[0], *bounds[0]),
                charts.Curves(
                    f"training loss{' (log)' if log else ''}", of[s.candidate][1], behind[1], *bounds[1], log
                ),
            ]
            ends = [line[-1][1] for line in of[s.candidate][0]]
            alt = f"Learning curves of {s.candidate}"
            alt += f": validation mIoU ends at {', '.join(points(e) for e in ends)}" if ends else ""
            panels.append((s, self.styles[s.candidate], charts.stacked(plots, self.styles[s.candidate], alt)))
        return panels

    def _states(self, metrics: dict[Trial, list[dict[str, Any]]]) -> list[tuple[Summary, charts.Style, Any, str]]:
        """Panels of blocks, on shared axes from zero: what stays near zero must look so."""
        titles = {"contribution": "contribution against input", "gamma": "γ", "gradient": "share of the gradient"}
        lines: dict[str, dict[str, list[charts.Line]]] = {}
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
            if not any(own.values()) and s.miou_off is None:
                continue
            # a row that other blocks have stays in its place, so that panels can be read across
            own = {
                key: [charts.thin(line, 60) for line in found] for key, found in own.items() if any(lines[key].values())
            }
            plots = [
                charts.Curves(titles[key], found, (), *bounds[key], height=58, empty="none")
                for key, found in own.items()
            ]
            ends = {key: ", ".join(three(line[-1][1]) for line in found) for key, found in own.items() if found}
            last = [f"{titles[key]} ends at {values}" for key, values in ends.items()]
            style = self.styles[s.candidate]
            chart = charts.stacked(plots, style, f"{s.candidate}: {'; '.join(last)}") if plots else None
            off = ""
            if s.miou_off is not None and s.miou:
                off = f"{points(s.miou.mean)} % with the block, {points(s.miou_off)} % with it switched off"
            panels.append((s, style, chart, off))
        return panels

    def shade(self, value: float) -> float:
        """Strength of a cell's colour in per cent, over the range that occurs."""
        means = [cell.mean for _, cells in self.per_class for cell in cells if cell]
        low, high = min(means), max(means)
        return 100.0 if high == low else 10 + 90 * (value - low) / (high - low)

    def _per_class(self) -> list[tuple[str, list[Interval | None]]]:
        """IoU of each class by candidate; the interval is over seeds alone."""
        table = []
        for k, name in enumerate(self.results.classes):
            cells = []
            for s in self.class_columns:
                trials = [t for t in self.results.trials if t.candidate == s.candidate and t.status == "done"]
                values = [t.iou[k] for t in trials if k < len(t.iou)]
                known = [v for v in values if v is not None]
                cells.append(over_seeds(known) if known else None)
            table.append((name, cells))
        return table


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


class _Pictures:
    """Images, truth, predictions and the explorer's maps, of the first seed that most candidates have finished."""

    def __init__(self, results: Results, styles: dict[str, charts.Style]) -> None:
        done: dict[int, dict[str, Trial]] = {}
        for t in results.trials:
            if t.status == "done":
                done.setdefault(t.seed, {})[t.candidate] = t
        self.seed = max(done, key=lambda s: (len(done[s]), -s), default=None)
        chosen = done[self.seed] if self.seed is not None else {}
        order = [s.candidate for s in results.summaries if s.candidate in chosen]
        loaded = {name: pictures.load_samples(Path(chosen[name].folder)) for name in order}
        samples = {name: s for name, s in loaded.items() if s is not None and "prediction" in s}
        first = next(iter(samples.values()), None)
        if first is not None:
            same = first["name"].tolist()
            samples = {name: s for name, s in samples.items() if s["name"].tolist() == same}
        self.samples, self.styles = samples, styles
        self.sentences = [_looks(name, styles[name], s) for name, s in samples.items() if not is_reference(name)]
        self.classes = list(results.classes)
        self.images = self._images(first) if first is not None else []

    def _images(self, first: dict[str, Any]) -> list[dict[str, Any]]:
        order = pictures.most_different(list(self.samples.values()))
        highest = max(int(s["prediction"].max()) for s in self.samples.values())
        self.classes += [f"class {k}" for k in range(len(self.classes), highest + 1)]
        colours = pictures.class_colours(self.classes)
        self.colours = list(zip(self.classes, colours))
        self.order = order
        images = []
        for i in order[: DETAILS[0].images]:
            truth = first["truth"][i]
            predictions = []
            for name, sample in self.samples.items():
                guess = sample["prediction"][i]
                wrong = (guess != truth) & (truth != pictures.IGNORE)
                uris = pictures.labels_uri(guess, colours), pictures.labels_uri(guess, colours, wrong=wrong)
                predictions.append((name, self.styles[name], pictures.right_share(sample, i), *uris))
            images.append(
                {
                    "name": str(first["name"][i]),
                    "uri": pictures.image_uri(first["image"][i]),
                    "truth": pictures.labels_uri(truth, colours),
                    "pixelated": max(truth.shape) < 200,
                    "predictions": predictions,
                }
            )
        return images

    def at(self, detail: pictures.Detail) -> dict[str, Any]:
        """What the template shows at a level of detail."""
        images = self.images[: detail.images]
        with_maps = {name: s for name, s in self.samples.items() if "map" in s}
        return {
            "seed": self.seed,
            "images": images,
            "colours": self.colours if images else [],
            "sentences": self.sentences,
            "shown": [(name, self.styles[name]) for name in with_maps],
            "explorer": self._explorer(with_maps, detail) if with_maps and images and detail.explored else None,
        }

    def _explorer(self, samples: dict[str, dict[str, Any]], detail: pictures.Detail) -> dict[str, Any]:
        explored = self.order[: min(detail.explored, detail.images)]
        truth = next(iter(samples.values()))["truth"]
        blocks = [{"name": name, **pictures.explorer_block(s, explored, detail)} for name, s in samples.items()]
        for block in blocks:
            for of, i in zip(block["images"], explored):
                of["label"] = pictures.labels_near(truth[i], block["query"])
        images = [
            {"name": image["name"], "size": list(truth.shape[1:]), "start": pictures.best_query(blocks, k)}
            for k, image in enumerate(self.images[: len(explored)])
        ]
        return {"classes": self.classes, "blocks": blocks, "images": images}


def _looks(name: str, style: charts.Style, sample: dict[str, Any]) -> dict[str, Any]:
    """How alike a block's maps are and where they lie; what the block does with them no map can tell."""
    if "similarity" not in sample:
        reason = str(sample.get("reason", "")) or "nothing was recorded"
        return {"name": name, "style": style, "text": f"No maps: {reason}."}
    per_image = sample["similarity"].mean(-1)
    text = f"Mean similarity between the maps of different queries {float(per_image.mean()):.2f}."
    share, chance = sample["mean_share"].mean(), sample["mean_chance"].mean()
    if math.isfinite(share) and math.isfinite(chance):
        text += f" {100 * share:.0f} % of the weight lies on the query's own class, {100 * chance:.0f} % by chance."
    heads = sample["similarity"].shape[-1]
    if heads > 1:
        text += f" Maps are the mean of {heads} heads."
    return {"name": name, "style": style, "text": text}


# ---- small things ---------------------------------------------------------------------------------------------------


def soft(name: str) -> "Markup":
    """A name that may be broken after its signs, not within its words."""
    from markupsafe import Markup, escape

    text = str(escape(name.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")))
    return Markup(re.sub(r"(&#?\w+;|[_(,@=/-]|\.(?=\D))", r"\1<wbr>", text))


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a trial; a last line that was being written when the trial died is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _block_lines(metrics: list[dict[str, Any]], key: str) -> list[charts.Line]:
    """One line an inserted block."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in metrics:
        for name, state in (record.get("blocks") or {}).items():
            value = state.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                lines.setdefault(name, []).append((record["step"], float(value)))
    return list(lines.values())
