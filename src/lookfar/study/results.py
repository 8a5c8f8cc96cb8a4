"""Results of a study as plain tables: what was measured, and what the differences are worth.

Scores in files are shares where tables hold per cent; everything here is in the unit of the task's tables.
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookfar._arrays import read_arrays
from lookfar._options import choice
from lookfar.study._files import read_if_whole, write_text
from lookfar.study.ablations import FILES, Ablated, load_ablations
from lookfar.study.by_class import OfClass, by_class
from lookfar.study.candidates import is_reference
from lookfar.study.comparisons import Difference
from lookfar.study.continuing import begun_trials, check_consistent
from lookfar.study.groups import Groups, groups_of, groups_of_data
from lookfar.study.intervals import Interval
from lookfar.study.judging import Conclusions, conclude, scored
from lookfar.study.latency import Latencies, load_latency
from lookfar.study.mending import ALSO, judged_file, read_state
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.prospects import seeds_needed
from lookfar.study.rows import Summary, Trial, Without
from lookfar.study.text import ABLATED, as_html, comparison, second_judge
from lookfar.study.trained import TrainedNetwork, find_trial, load_trial
from lookfar.study.words import join
from lookfar.tasks import Task

if TYPE_CHECKING:
    from lookfar.data import Data

# set that judges -> file of what remains when a block does without something
ABLATIONS: dict[str, str] = dict(zip(("val", "also_val"), FILES))
TABLES = ("trials", "comparison", "classes")


@dataclass(frozen=True)
class Results:
    """A study's tables.

    Attributes:
        folder: Of the study.
        plan: Of the study.
        task: What judges.
        classes: Names of the classes.
        trials: A row a trial.
        summaries: A row a candidate, best first, references last.
        conclusions: What is true of the study as a whole.
        latency: How long the networks take, and how that was measured.
        judge: Which set judges, ``val`` or ``also_val``.
        also: The same trials judged on the second set (``also_val``), which nothing else has seen; None without one.
    """

    folder: Path
    plan: Plan
    task: Task
    classes: tuple[str, ...]
    trials: tuple[Trial, ...]
    summaries: tuple[Summary, ...]
    conclusions: Conclusions
    latency: Latencies
    judge: str = "val"
    also: "Results | None" = None

    def summary(self, candidate: str) -> Summary:
        """The row of one candidate."""
        for row in self.summaries:
            if row.candidate == candidate:
                return row
        raise ValueError(f"no candidate {candidate!r}; there are {', '.join(s.candidate for s in self.summaries)}")

    def network(self, candidate: str, seed: int = 0, *, data: "str | Path | Data | None" = None) -> TrainedNetwork:
        """The trained network of a trial, its data and the names of its blocks; as :func:`load_trial`.

        Args:
            candidate: As the plan writes it, by an alias, or in short where that leaves one.
            seed: Of the trial.
            data: Where the data lie now; by default where the study read them.

        Raises:
            ValueError: No such trial, or one that is not finished.
            FileNotFoundError: The data are not there.
        """
        return load_trial(find_trial(self.trials, candidate, seed), data=data)

    @property
    def complete(self) -> bool:
        """Whether every trial of the plan is done."""
        return all(trial.status == "done" for trial in self.trials)

    @cached_property
    def by_class(self) -> tuple[OfClass, ...]:
        """Each class: its share of the validation samples, its score, and the differences to the baseline."""
        done = [t for t in self.trials if t.status == "done"]
        facts = {(t.candidate, t.seed): self.task.facts(read_arrays(self._judged(t))) for t in done}
        return by_class(self.task, self.classes, facts, self.conclusions.groups)

    def confusion(self, candidate: str) -> np.ndarray | None:
        """What is taken for what, ``(K, K)``, rows truth, all seeds together; None where there are none."""
        done = [t for t in self.trials if t.candidate == candidate and t.status == "done"]
        matrices = [self.task.confusion(read_arrays(self._judged(t))) for t in done]
        there = [matrix for matrix in matrices if matrix is not None]
        return sum(there[1:], there[0]) if there else None

    def _judged(self, trial: Trial) -> Path:
        return Path(trial.folder) / _judged_file(self.task, self.judge)

    def __repr__(self) -> str:
        text = comparison(self.summaries, self.conclusions, columns=self.task.columns)
        return text if self.also is None else "\n".join([text, "", *self.also_lines()])

    def _repr_html_(self) -> str:
        html = as_html(self.summaries, self.conclusions)
        return (
            html
            if self.also is None
            else f"{html}\n<p>Judged on {escape(str(self.plan.also_val))}:</p>\n"
            + as_html(self.also.summaries, self.also.conclusions)
        )

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """What :func:`write_csv` writes: ``trials``, ``comparison`` (a row a candidate) and ``classes``."""
        return {
            "trials": [_trial_row(trial, self.task, self.classes) for trial in self.trials],
            "comparison": [_comparison_row(row, self.task, self.conclusions) for row in self.summaries],
            "classes": _class_rows(self),
        }

    def to_pandas(self, table: str = "trials") -> Any:
        """One of the tables as a ``pandas.DataFrame``.

        Args:
            table: ``trials``, a row a trial; ``comparison``, a row a candidate; ``classes``, a row a class and
                candidate.

        Raises:
            ImportError: pandas is not installed.
            ValueError: No such table.
        """
        choice("table", table, TABLES)
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ImportError("to_pandas needs pandas, which lookfar does not install: `pip install pandas`") from None
        return pandas.DataFrame(self.rows()[table])

    def also_lines(self, width: int = 120) -> list[str]:
        """The second set's table and sentences; nothing without one."""
        if self.also is None:
            return []
        return second_judge(str(self.plan.also_val), self.also.summaries, self.also.conclusions, width)


def load(folder: str | Path, *, margin: float | None = None, groups: str | None = None) -> Results:
    """Read a study's folder.

    Args:
        folder: Of the study.
        margin: Instead of the plan's: differences within ± so many points are practically none.
        groups: Instead of the plan's: which validation images belong together.

    Raises:
        FileNotFoundError: The folder holds no study.
        ValueError: ``groups`` is no regular expression, or finds nothing in a name.

    >>> results = load("runs/lookup")
    >>> results.summary("nonlocal").verdict
    'better'
    """
    folder = Path(folder)
    if not (folder / "study.yaml").is_file():
        if (folder / "config.json").is_file() and (above := _study_above(folder)) is not None:
            raise FileNotFoundError(f"{folder} is a trial: give its study, {above}")
        raise FileNotFoundError(
            f"no study in {folder}: study.yaml is missing. `lookfar study --data PATH --out {folder}` makes one"
        )
    plan = Plan.load(folder / "study.yaml")
    otherwise = {name: value for name, value in {"margin": margin, "groups": groups}.items() if value is not None}
    plan = replace(plan, **otherwise)
    data = read_if_whole(folder / "data.json")
    check_consistent(plan, [one for one in begun_trials(folder, strict=False) if one.done], data)
    environment = {"data": _named(data), **read_if_whole(folder / "environment.json")}
    task = plan.find_task(folder)
    trials = [
        _load_trial(trial_folder(folder, candidate, seed), task, candidate, seed)
        for candidate in plan.candidates
        for seed in range(plan.seeds)
    ]
    results = _judged(folder, plan, task, trials, environment, "val")
    if not plan.also_val:
        return results
    return replace(results, also=_judged(folder, plan, task, trials, environment, "also_val"))


def _study_above(trial: Path) -> Path | None:
    """The study that a trial's folder lies in, ``STUDY/trials/CANDIDATE/SEED``."""
    above = Path(os.path.normpath(trial / "../../.."))
    return above if (above / "study.yaml").is_file() else None


def _named(data: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and names of images as ``data.json`` has them, where ``environment.json`` is lost."""
    sets = data.get("sets", {})
    names = {f"{judge}_names": [name for name, *_ in sets[judge]] for judge in ABLATIONS if judge in sets}
    return {"classes": data.get("classes", ()), **names}


def _judged_file(task: Task, judge: str) -> str:
    return ALSO if judge == "also_val" else judged_file(task)


def _judged(
    folder: Path, plan: Plan, task: Task, trials: list[Trial], environment: dict[str, Any], judge: str
) -> Results:
    """The trials as one of the two sets sees them."""
    data, reach = environment.get("data", {}), environment.get("sum_of_learning_rates")
    facts, trials_scored = {}, []
    for trial in trials:
        path, ablations = (Path(trial.folder) / name for name in (_judged_file(task, judge), ABLATIONS[judge]))
        if trial.status == "done" and path.is_file():
            of_trial = task.facts(read_arrays(path))
            _check_truth(task, trial, of_trial, facts)
            ablated = load_ablations(ablations)
            trial = scored(task, trial, of_trial, ablated.facts, ablated.reason)
            facts[trial.candidate, trial.seed] = of_trial
        elif trial.status == "done":
            trial = replace(trial, status="missing")
        trials_scored.append(trial)
    samples = len(next(iter(facts.values()))) if facts else 0
    latency, groups_there = load_latency(folder), _groups(plan, data.get(f"{judge}_names"), samples)

    def ablated_of(trial: Trial) -> Ablated:
        return load_ablations(Path(trial.folder) / ABLATIONS[judge])

    summaries, conclusions = conclude(
        task, plan.candidates, trials_scored, facts, groups_there, plan.margin, latency.of, reach, ablated_of
    )
    summaries.sort(key=lambda row: _rank(row, task))
    classes = tuple(data.get("classes", ())) if task.words.of_class else ()
    return Results(folder, plan, task, classes, tuple(trials_scored), tuple(summaries), conclusions, latency, judge)


def _check_truth(task: Task, trial: Trial, of_trial: np.ndarray, facts: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Refuse trials that were judged by another truth than the first: other masks, other images."""
    for (candidate, seed), first in facts.items():
        if len(first) != len(of_trial) or not _same_truth(task, first, of_trial):
            there, here = f"{candidate} seed {seed}", f"{trial.candidate} seed {trial.seed}"
            images = [f"{len(some)} images" for some in (first, of_trial)]
            what = f"{images[0]} and {images[1]}" if len(first) != len(of_trial) else "other labels"
            raise ValueError(f"{there} and {here} were judged on {what}: they cannot be compared")
        return


def _same_truth(task: Task, a: np.ndarray, b: np.ndarray) -> bool:
    K = task.classes(a)
    return task.classes(b) == K and all(np.array_equal(task.truth(a, k), task.truth(b, k)) for k in range(K))


def write_csv(results: Results, path: Path | None = None) -> Path:
    """Write ``results.csv``, a row a trial: its scores as in the tables, FLOPs, MB, seconds.

    Beside it ``comparison.csv``, a row a candidate, and ``classes.csv``, a row a class and candidate; all again as
    ``also-...csv`` for a second set to judge by.
    """
    path = path or results.folder / "results.csv"
    if results.also is not None:
        write_csv(results.also, path.with_name(f"also-{path.name}"))
    names = {"trials": path.name, **{table: path.name.replace("results", table) for table in TABLES[1:]}}
    for table, rows in results.rows().items():
        if rows:
            _write_table(rows, path.with_name(names[table]))
    return path


def _write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """What the terminal and the report show, with more digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _trial_row(trial: Trial, task: Task, classes: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in Trial.__dataclass_fields__:
        if name == "score":
            row[task.metric] = trial.score
        elif name == "further":
            row |= {column: trial.further.get(column) for column in task.columns}
        elif name not in ("of_class", "folder", "without"):
            row[name] = getattr(trial, name)
    row |= {f"{task.metric} {title}": getattr(trial.without, kind) for kind, title in ABLATED.items()}
    of_class = [*trial.of_class, *[None] * len(classes)][: len(classes)]
    return row | {f"{task.words.of_class.lower()} {name}": value for name, value in zip(classes, of_class)}


def _class_rows(results: Results) -> list[dict[str, Any]]:
    """A row a class and candidate; the interval of each difference is its own."""
    found, words = [], results.task.words
    score = words.of_class.lower()
    for of in results.by_class:
        for candidate, mean in of.scores.items():
            d = of.differences.get(candidate)
            found.append(
                {
                    "class": of.name, "candidate": candidate, words.amount: of.share, "images": of.images,
                    score: mean.mean, f"{score} low": mean.low, f"{score} high": mean.high,
                    "difference": d.mean if d else None,
                    "difference low": d.single.low if d else None, "difference high": d.single.high if d else None,
                }
            )  # fmt: skip
    return found


def _comparison_row(row: Summary, task: Task, conclusions: Conclusions) -> dict[str, Any]:
    d, over, one, time = row.difference, row.over_control, row.once, row.latency
    best, needed = conclusions.best, seeds_needed(d, conclusions.terms.margin) if d and row.verdict == "open" else None

    def ends(name: str, of: Interval | Difference | None) -> dict[str, float | None]:
        return {f"{name} low": of.low if of else None, f"{name} high": of.high if of else None}

    return {
        "candidate": row.candidate, "done": row.done, "failed": row.failed,
        task.metric: row.score.mean if row.score else None, **ends(task.metric, row.score),
        "difference": d.mean if d else None, **ends("together", d and d.interval), **ends("single", d and d.single),
        **ends("seeds alone", d and d.seeds_alone), "groups": d.groups if d else None,
        "verdict": row.verdict, "said": row.said,
        "control": row.control, "over control": over.mean if over else None, **ends("over control", over),
        "wins": one.wins if one else None, "worst seed": one.worst if one else None,
        "probability of a better run": one.probability if one else None,
        "failure rate possible": one.failures_possible if one else None,
        "seeds that would show it, fewest": needed.fewest if needed else None,
        "seeds that would show it, most": needed.most if needed else None,
        "probability of being best": best.probabilities.get(row.candidate) if best else None,
        **{name: getattr(row.without, kind) for kind, name in ABLATED.items()}, "no map": row.without.reason,
        "needs": row.told.word if row.told else None, "needs, said": row.told.why if row.told else None,
        "parameters": row.parameters, "flops": row.flops,
        "ms": time.ms if time else None, "ms low": time.low if time else None, "ms high": time.high if time else None,
        "time ratio": time.ratio if time else None, "time ratio low": time.ratio_low if time else None,
        "time ratio high": time.ratio_high if time else None,
        "network MB": row.memory_mb, "block MB": row.block_memory_mb, "came in": row.came_in,
        "study": " ".join(conclusions.sentences),
    }  # fmt: skip


def _groups(plan: Plan, names: list[str] | None, images: int) -> Groups:
    """Groups of the validation images by their names, where the study knows them."""
    if names is None or len(names) != images:
        return groups_of([""] * images, "none")
    return groups_of_data(names, plan.data, plan.groups, classes=plan.task == "classification")


def _rank(row: Summary, task: Task) -> tuple[int, float]:
    place = 2 if row.candidate == "baseline" else 1 if is_reference(row.candidate) else 0
    if row.score is None:
        return place, math.inf
    return place, -row.score.mean if task.higher else row.score.mean


def _load_trial(folder: Path, task: Task, candidate: str, seed: int) -> Trial:
    """A trial's row; scores come from what was judged, those of ``result.json`` stand where that is gone."""
    state = read_state(folder, task, thorough=False)
    result, status, reason = state.result, state.result.get("status", "missing"), state.result.get("reason") or ""
    if state.damaged:
        status, reason = "failed", f"{join(state.damaged)} damaged: `lookfar study` makes it again"

    def scaled(name: str, value: float | None) -> float | None:
        return None if value is None else task.unit_of(name) * value

    of_class = task.words.of_class.lower()
    return Trial(
        candidate, seed, status, reason, scaled(task.metric, result.get(task.metric)),
        {column: scaled(column, result.get(column)) for column in task.columns},
        tuple(scaled(of_class, value) for value in result.get(of_class) or ()), Without(),
        result.get("parameters"), result.get("flops"), result.get("memory_mb"), result.get("block_memory_mb"),
        result.get("seconds"), result.get("step"), _contribution(folder), str(folder),
        bool(result.get("replaces")),
    )  # fmt: skip


def _contribution(folder: Path) -> float | None:
    """What the blocks of a trial add to their input at the end, the largest of several."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in reversed(lines):
        if '"blocks"' not in line:
            continue
        try:
            states = json.loads(line).get("blocks") or {}
        except (json.JSONDecodeError, AttributeError):
            continue  # being written when its trial died
        added = [state.get("contribution") for state in states.values()]
        added = [share for share in added if isinstance(share, int | float) and math.isfinite(share)]
        if added:
            return float(max(added))
    return None


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
