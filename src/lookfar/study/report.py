"""``report.html``: one self-contained file about a study, a pure function of its folder.

The numbers are those of :mod:`lookfar.study.results`; here they are put in the order of a reader's questions.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lookfar.study import charts, pictures
from lookfar.study._files import read_json, write_text
from lookfar.study.plan import REFERENCES, Plan
from lookfar.study.results import Interval, Results, Summary, Trial, interval, load, points, signed

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
    """
    path = Path(folder) / "report.html"
    write_text(path, render(load(folder)))
    return path


def render(results: Results) -> str:
    """The report as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lookfar.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"three": three, "points": points, "duration": duration}
    here = resources.files("lookfar.study")
    css, js = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    template = environment.get_template("report.html.j2")
    text = _View(results)
    html = ""
    for detail in DETAILS:
        html = template.render(
            css=css, js=js, js_hash=base64.b64encode(hashlib.sha256(js.encode()).digest()).decode(),
            pictures=_pictures(results, text.styles, detail), **vars(text),
        )  # fmt: skip
        if len(html.encode()) <= LIMIT:
            break
    return html


# ---- what the template is given ---------------------------------------------------------------------------------------


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
        self.headline, self.supports = answer(results)
        devices = [read_json(Path(t.folder) / "result.json").get("device") for t in results.trials]
        self.facts = _facts(self.plan, next((str(d) for d in devices if d), ""))
        ranges = [(s.difference.low, s.difference.high) for s in results.summaries if s.difference]
        scale = charts.forest_range(ranges)
        self.axis = charts.forest_axis(scale) if ranges else None
        self.rows = [_row(s, self.styles[s.candidate], scale) for s in results.summaries]
        self.parameter_unit = _unit([s.parameters for s in results.summaries])
        self.scatters = [
            s
            for s in (
                self._scatter("flops", 1e9, "GFLOPs an image"),
                self._scatter("latency_ms", 1, "milliseconds an image"),
            )
            if s
        ]
        self.one_seed = self.plan.seeds == 1
        metrics = {t: _metrics(Path(t.folder) / "metrics.jsonl") for t in results.trials}
        self.curves = self._curves(metrics)
        self.states = self._states(metrics)
        self.class_columns = [s for s in results.summaries if s.done]
        self.per_class = self._per_class()
        self.failures = [t for t in results.trials if t.status == "failed"]
        self.missing = [t for t in results.trials if t.status == "missing"]
        self.limits = _limits(results)
        self.plan_text = (results.folder / "study.yaml").read_text(encoding="utf-8").strip()
        self.made = _made(self.environment)

    def _scatter(self, field: str, unit: float, title: str) -> Any:
        rows = [s for s in self.results.summaries if s.miou and getattr(s, field) is not None]
        found = [
            charts.Point(s.candidate, getattr(s, field) / unit, s.miou.mean, s.miou.half, self.styles[s.candidate])
            for s in rows
            if s.miou
        ]
        if len(found) < 2:
            return None
        alt = f"mIoU against {title}: " + "; ".join(f"{p.name} {three(p.x)}, {_plus_minus(p.y, p.half)}" for p in found)
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
            alt = f"Learning curves of {s.candidate}: validation mIoU ends at {', '.join(points(e) for e in ends) or 'no value'}"
            panels.append((s, self.styles[s.candidate], charts.stacked(plots, self.styles[s.candidate], alt)))
        return panels

    def _states(self, metrics: dict[Trial, list[dict[str, Any]]]) -> list[tuple[Summary, charts.Style, Any, str]]:
        panels = []
        for s in self.results.summaries:
            own = [m for t, m in metrics.items() if t.candidate == s.candidate]
            plots, last = [], []
            for key, title in (
                ("contribution", "contribution against input"),
                ("gamma", "γ"),
                ("gradient", "share of the gradient"),
            ):
                lines = [line for m in own for line in _block_lines(m, key)]
                if lines:
                    plots.append(charts.Curves(title, [charts.thin(line) for line in lines], height=58))
                    last.append(f"{title} ends at {', '.join(three(line[-1][1]) for line in lines)}")
            if not plots and s.miou_off is None:
                continue
            style = self.styles[s.candidate]
            chart = charts.stacked(plots, style, f"{s.candidate}: {'; '.join(last)}") if plots else None
            off = ""
            if s.miou_off is not None and s.miou:
                off = f"{points(s.miou.mean)} % with the block, {points(s.miou_off)} % with it switched off"
            panels.append((s, style, chart, off))
        return panels

    def _per_class(self) -> list[tuple[str, list[Interval | None]]]:
        """IoU of each class by candidate; the interval is over seeds alone."""
        table = []
        for k, name in enumerate(self.results.classes):
            cells = []
            for s in self.class_columns:
                trials = [t for t in self.results.trials if t.candidate == s.candidate and t.status == "done"]
                values = [t.iou[k] for t in trials if k < len(t.iou)]
                known = [v for v in values if v is not None]
                cells.append(interval(known, 0.0) if known else None)
            table.append((name, cells))
        return table


def _row(s: Summary, style: charts.Style, scale: tuple[float, float]) -> Row:
    d = s.difference
    alt = f"difference of {s.candidate} to the baseline: "
    alt += (
        f"{signed(d.mean, d.half)}, 95 % interval {signed(d.low, d.half)} to {signed(d.high, d.half)}" if d else "none"
    )
    forest = charts.forest_row(scale, style, (d.low, d.mean, d.high) if d else None, alt)
    note = {"baseline": "no block", "control": "plain convolutions of like size"}.get(s.candidate, "")
    return Row(s, style, forest, note)


def _pictures(results: Results, styles: dict[str, charts.Style], detail: pictures.Detail) -> dict[str, Any]:
    """Images, truth and predictions, and what the explorer shows; of the first seed that every candidate finished."""
    done: dict[int, dict[str, Trial]] = {}
    for t in results.trials:
        if t.status == "done":
            done.setdefault(t.seed, {})[t.candidate] = t
    seed = max(done, key=lambda s: (len(done[s]), -s), default=None)
    chosen = done.get(seed, {}) if seed is not None else {}
    found = {
        n: s
        for s_ in results.summaries
        if (n := s_.candidate) in chosen and (s := pictures.load_samples(Path(chosen[n].folder)))
    }
    found = {n: s for n, s in found.items() if "image" in s and "prediction" in s}
    if not found or not detail.images:
        return {"seed": seed, "images": [], "colours": [], "explorer": None, "sentences": []}
    first = next(iter(found.values()))
    names = [str(n) for n in first["name"]]
    found = {n: s for n, s in found.items() if [str(x) for x in s["name"]] == names}
    order = pictures.most_different(list(found.values()))[: detail.images]
    classes = list(results.classes) or [f"class {k}" for k in range(int(first["prediction"].max()) + 1)]
    colours = pictures.class_colours(classes)
    images = []
    for i in order:
        truth = first["truth"][i]
        predictions = []
        for n, s in found.items():
            guess = s["prediction"][i]
            wrong = (guess != truth) & (truth != pictures.IGNORE)
            right = pictures.right_share(s, i)
            predictions.append(
                (
                    n,
                    styles[n],
                    right,
                    pictures.labels_uri(guess, colours),
                    pictures.labels_uri(guess, colours, wrong=wrong),
                )
            )
        images.append(
            {
                "name": names[i],
                "uri": pictures.image_uri(first["image"][i]),
                "truth": pictures.labels_uri(truth, colours),
                "pixelated": max(truth.shape) < 200,
                "predictions": predictions,
            }
        )
    with_maps = {n: s for n, s in found.items() if "map" in s}
    sentences = [_looks(n, styles[n], s) for n, s in found.items() if n not in REFERENCES]
    explorer = None
    if with_maps and detail.explored:
        explored = order[: detail.explored]
        blocks = [pictures.explorer_block(s, explored, detail) | {"name": n} for n, s in with_maps.items()]
        for block in blocks:
            for of, i in zip(block["images"], explored):
                of["label"] = pictures.labels_near(first["truth"][i], block["query"])
        explorer = {
            "classes": classes,
            "blocks": blocks,
            "images": [
                {"name": names[i], "size": list(first["truth"].shape[1:]), "start": pictures.best_query(blocks, k)}
                for k, i in enumerate(explored)
            ],
        }
    return {
        "seed": seed, "images": images, "colours": list(zip(classes, colours)), "explorer": explorer,
        "sentences": sentences, "shown": [(n, styles[n]) for n in with_maps],
    }  # fmt: skip


def _looks(name: str, style: charts.Style, sample: dict[str, Any]) -> dict[str, Any]:
    """Whether a block's maps depend on the query, in one sentence."""
    if "similarity" not in sample:
        reason = str(sample.get("reason", "")) or "nothing was recorded"
        return {"name": name, "style": style, "word": "", "text": f"No maps: {reason}."}
    from lookfar.diagnostics.maps import similarity_word

    per_image = sample["similarity"].mean(-1)
    value = float(per_image.mean())
    word = similarity_word(value)
    uses = {"differs between queries": "it uses the query"}.get(word, "it does without the query")
    text = f"Mean similarity between the maps of different queries {value:.2f}: {uses}."
    share, chance = sample["mean_share"].mean(), sample["mean_chance"].mean()
    if math.isfinite(share) and math.isfinite(chance):
        text += f" {100 * share:.0f} % of the weight lies on the query's own class, {100 * chance:.0f} % by chance."
    heads = sample["similarity"].shape[-1]
    if heads > 1:
        text += f" Maps are the mean of {heads} heads."
    return {"name": name, "style": style, "word": word, "text": text}


# ---- the answer -------------------------------------------------------------------------------------------------------


def answer(results: Results) -> tuple[str, list[str]]:
    """The headline, made from the verdicts, and the sentences that keep it honest."""
    blocks = [s for s in results.summaries if s.candidate not in REFERENCES]
    done = [s for s in blocks if s.difference]
    baseline = next((s for s in results.summaries if s.candidate == "baseline"), None)
    if baseline is None or baseline.miou is None:
        return "Without a finished baseline nothing can be compared yet.", _troubles(results)
    if not done:
        return "No block has a finished trial beside the baseline yet.", _troubles(results)
    done = sorted(done, key=lambda s: -_difference(s).mean)
    better = [s for s in done if s.verdict == "better"]
    supports: list[str] = []
    if not any(_difference(s).seed_noise_measured for s in done):
        top = done[0]
        headline = "One seed shows no winner: seed noise was not measured."
        supports.append(f"On these images {_list([f'{s.candidate} is {_gain(s)} away from the baseline' for s in done[:3]])}. "
                        "At least two seeds are needed for a verdict.")  # fmt: skip
        return headline, supports + _troubles(results)
    if better:
        headline, more = _gains(better, len(done), baseline)
        supports += more
        supports += _against_control(better[0], next((s for s in results.summaries if s.candidate == "control"), None))
    else:
        worse = [s for s in done if s.verdict == "worse"]
        open_ = [s for s in done if s.verdict == "no difference"]
        if worse and not open_:
            headline = (
                f"No block helps: {_list([f'{s.candidate} loses {_amount(s)}' for s in worse[:3]])} points of mIoU."
            )
        else:
            half = max((_difference(s).half for s in open_), default=0.0)
            which = open_[0].candidate if len(open_) == 1 else f"the {len(open_)} blocks"
            seeds = min(_difference(s).seeds for s in open_)
            headline = f"No difference between {which} and the network without a block can be seen: ±{points(half, half)} points of mIoU at {seeds} seeds."
            if worse:
                supports.append(f"{_list([f'{s.candidate} loses {_amount(s)} points' for s in worse])}.")
        supports += [f"{s.candidate}: {s.sentence}." for s in open_[:3]]
    off = [s for s in better[:2] if s.miou_off is not None and s.miou]
    for s in off:
        supports.append(
            f"Switched off at test time, {s.candidate} leaves {points(s.miou_off)} % of {points(s.miou.mean)} % mIoU."
        )  # pyright: ignore
    return headline, supports + _troubles(results)


def _gains(better: Sequence[Summary], compared: int, baseline: Summary) -> tuple[str, list[str]]:
    top = better[0]
    over = "over the network without a block"
    more = []
    if len(better) == 1:
        headline = f"{top.candidate} gains {_amount(top)} points of mIoU {over}{_cost(top, baseline)}."
    elif len(better) <= 3:
        others = _list([f"{s.candidate} {_amount(s)}" for s in better[1:]])
        headline = f"{top.candidate} gains {_amount(top)} points of mIoU {over}, {others}."
        more.append(f"{top.candidate} comes{_cost(top, baseline)}." if _cost(top, baseline) else "")
    else:
        gains = [_difference(s).mean for s in better]
        headline = f"{len(better)} of {compared} blocks gain {over}, by {points(min(gains))} to {points(max(gains))} points of mIoU."
        more.append(f"Largest: {_list([f'{s.candidate} {_amount(s)}' for s in better[:3]])}.")
    if len(better) > 1:
        apart = _difference(top).low > max(_difference(s).high for s in better[1:])
        more.append(f"The interval of {top.candidate} lies above all others." if apart
                    else "Their intervals overlap: this study does not say which of them is best.")  # fmt: skip
    return headline, [m for m in more if m]


def _against_control(top: Summary, control: Summary | None) -> list[str]:
    if control is None or control.difference is None:
        return []
    d = control.difference
    gain = f"A convolution of like size changes mIoU by {signed(d.mean, d.half)} ± {points(d.half, d.half)}"
    if _difference(top).low > d.high:
        return [f"{gain}: the gain of {top.candidate} is more than that of added parameters."]
    return [f"{gain}; its interval overlaps that of {top.candidate}, so the gain need not come from attention."]


def _cost(s: Summary, baseline: Summary) -> str:
    if not s.flops or not baseline.flops:
        return ""
    return f" for {100 * (s.flops / baseline.flops - 1):.3g} % more computation" if s.flops > baseline.flops else ""


def _troubles(results: Results) -> list[str]:
    found = []
    failed = [t for t in results.trials if t.status == "failed"]
    missing = [t for t in results.trials if t.status == "missing"]
    if failed:
        names = list(dict.fromkeys(t.candidate for t in failed))
        found.append(f"{len(failed)} of {len(results.trials)} trials failed ({_list(names)}).")
    if missing:
        found.append(f"{len(missing)} of {len(results.trials)} trials are not finished: this is what is known so far.")
    return found


def _difference(s: Summary) -> Interval:
    assert s.difference is not None
    return s.difference


def _amount(s: Summary) -> str:
    d = _difference(s)
    return f"{points(abs(d.mean), d.half)} ± {points(d.half, d.half)}"


def _gain(s: Summary) -> str:
    return f"{signed(_difference(s).mean)} points"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _limits(results: Results) -> list[str]:
    plan = results.plan
    blocks = sum(s.difference is not None for s in results.summaries)
    seeds = plan.seeds
    found = [
        "Other data, other hosts, other places in the host and longer training: everything here was trained for "
        f"{_count(plan.steps)} steps with one setting for all, tuned for none.",
        "How it does on images that nobody has looked at: the validation images are the judge here, and were seen often.",
        "Why a block helps: maps show where weights lie, not what is made of them. The score with the block switched off "
        "is the better witness.",
        "Time and memory on other machines; other trials may have run beside the one that was timed.",
    ]
    if seeds > 1 and blocks > 1:
        found.insert(
            1,
            f"Certainty: with {blocks} comparisons at 95 % each, {blocks * 0.05:.2g} would be wrong on average. "
            f"An interval from {seeds} seeds assumes that seeds scatter normally.",
        )
    elif seeds == 1:
        found.insert(1, "Whether any difference would survive another seed: there was one.")
    return found


# ---- small things -----------------------------------------------------------------------------------------------------


def three(value: float | None) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """1:05, 12:30 or 2:03:00."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plus_minus(value: float, half: float | None) -> str:
    return points(value, half) + (f" ± {points(half, half)}" if half is not None else "")


def _unit(parameters: Sequence[int | None]) -> tuple[str, float]:
    largest = max((p for p in parameters if p), default=0)
    return ("M", 1e6) if largest >= 1e6 else ("k", 1e3)


def _facts(plan: Plan, device: str) -> list[str]:
    seeds = plan.seeds
    found = [plan.data, f"host {plan.host}" + (f", blocks after {plan.place}" if plan.place else "")]
    found.append(f"{_count(plan.steps)} steps of {plan.batch_size} images")
    found.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    return [*found, device] if device else found


def _count(number: int | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "?" if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _made(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Machine, data and times as names and texts; unknown entries are shown as they are."""
    data = dict(environment.get("data") or {})
    found: list[tuple[str, str]] = []
    if "train" in data and "val" in data:
        found.append(("data", f"{_count(data['train'])} images to train on, {_count(data['val'])} to validate"))
    found += [("", str(line)) for line in data.get("facts") or ()]
    if data.get("size"):
        found.append(("images", f"{' × '.join(map(str, data['size']))} pixels, {data.get('in_chans', 3)} bands"))
    versions = environment.get("versions") or {}
    found += [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))] if versions else []
    told = {"command", "data", "versions", "parameters"}
    for name, value in environment.items():
        if name in told or value is None:
            continue
        if name == "seconds":
            name, value = "training time", duration(value)
        found.append((name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)))
    return found


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
