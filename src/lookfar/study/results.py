"""Results of a study as plain tables: what was measured, and what the differences are worth.

Numbers in files are fractions; everything here is in percentage points of mIoU.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookfar.study._files import read_json, write_text
from lookfar.study.plan import REFERENCES, Plan, trial_folder
from lookfar.study.rows import Interval, Summary, Trial, Verdict
from lookfar.study.text import comparison
from lookfar.study.words import plus_minus, points, signed

RESAMPLES = 1000
BOOTSTRAP_SEED = 0  # the same images are drawn for every candidate, and every time a report is made


@dataclass(frozen=True)
class Results:
    """A study's tables: ``trials``, a row a trial; ``summaries``, a row a candidate, best first, references last."""

    folder: Path
    plan: Plan
    classes: tuple[str, ...]
    trials: tuple[Trial, ...]
    summaries: tuple[Summary, ...]

    def summary(self, candidate: str) -> Summary:
        """The row of one candidate."""
        for row in self.summaries:
            if row.candidate == candidate:
                return row
        raise ValueError(f"no candidate {candidate!r}; there are {', '.join(s.candidate for s in self.summaries)}")

    @property
    def complete(self) -> bool:
        """Whether every trial of the plan is done."""
        return all(trial.status == "done" for trial in self.trials)

    def __repr__(self) -> str:
        return comparison(self.summaries, self.trials)


def load(folder: str | Path) -> Results:
    """Read a study's folder.

    Raises:
        FileNotFoundError: The folder holds no study.
    """
    folder = Path(folder)
    if not (folder / "study.yaml").is_file():
        raise FileNotFoundError(
            f"no study in {folder}: study.yaml is missing. `lookfar study --out {folder}` makes one"
        )
    plan = Plan.load(folder / "study.yaml")
    environment = read_json(folder / "environment.json")
    trials = [
        _load_trial(trial_folder(folder, candidate, seed), candidate, seed)
        for candidate in plan.candidates
        for seed in range(plan.seeds)
    ]
    counts = {
        (t.candidate, t.seed): load_counts(Path(t.folder) / "confusion.npz") for t in trials if t.status == "done"
    }
    summaries = [_summarise(name, trials, counts) for name in plan.candidates]
    summaries.sort(key=_rank)
    return Results(folder, plan, tuple(environment.get("data", {}).get("classes", ())), tuple(trials), tuple(summaries))


def write_csv(results: Results, path: Path | None = None) -> Path:
    """Write ``results.csv``, a row a trial: mIoU, accuracy and IoU in percent, FLOPs, milliseconds, MB, seconds."""
    path = path or results.folder / "results.csv"
    classes = results.classes
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [name for name in Trial.__dataclass_fields__ if name not in ("iou", "folder")]
    writer.writerow([*head, *(f"iou {name}" for name in classes)])
    for trial in results.trials:
        row = asdict(trial)
        ious = [*trial.iou, *[None] * len(classes)][: len(classes)]
        writer.writerow([_cell(row[name]) for name in head] + [_cell(value) for value in ious])
    write_text(path, text.getvalue())
    return path


# ---- numbers ----


def load_counts(path: Path) -> np.ndarray:
    """What IoU needs of ``confusion`` (images, K, K), rows truth: hits, truth and predictions, (images, 3, K)."""
    with np.load(path, allow_pickle=False) as file:
        confusion = file["confusion"]
    return counts_of(confusion)


def counts_of(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) with rows truth -> (..., 3, K): hits, pixels of the class, pixels predicted as the class."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(-1), confusion.sum(-2)], -2).astype(np.float64)


def miou_of(counts: np.ndarray) -> np.ndarray:
    """Mean IoU in points of summed counts (..., 3, K); a class that is neither there nor predicted does not count."""
    hits, truth, predicted = np.moveaxis(counts, -2, 0)
    union = truth + predicted - hits
    there = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=there)
    return 100 * iou.sum(-1) / np.maximum(there.sum(-1), 1)


def resampled_miou(counts: np.ndarray, *, resamples: int = RESAMPLES) -> np.ndarray:
    """mIoU (resamples,) of validation sets drawn with replacement; the draws depend on the number of images alone."""
    images = len(counts)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).multinomial(images, np.full(images, 1 / images), size=resamples)
    return miou_of((drawn.astype(np.float64) @ counts.reshape(images, -1)).reshape(resamples, *counts.shape[1:]))


def interval(values: Sequence[float], image_variance: float) -> Interval:
    """Mean of one value a seed, with its 95 % half-width: seeds by Student's t, images by the bootstrap.

    Args:
        values: mIoU, or paired difference in mIoU, of each seed.
        image_variance: Bootstrap variance over images of the mean over seeds.
    """
    from scipy import stats

    S = len(values)
    if S == 1:
        return Interval(
            values[0], float(stats.norm.ppf(0.975)) * math.sqrt(image_variance), 1, math.nan, image_variance
        )
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, S - 1)) * math.sqrt(sd**2 / S + image_variance)
    return Interval(float(np.mean(values)), half, S, sd, image_variance)


def seeds_needed(seed_sd: float, image_variance: float, target: float, *, most: int = 100_000) -> int | None:
    """The least number of seeds whose half-width is at most ``target``; None where the images alone exceed it."""
    from scipy import stats

    if float(stats.norm.ppf(0.975)) * math.sqrt(image_variance) >= target:
        return None
    low, high = 1, 2  # the half-width falls with S: double, then bisect
    while _half(stats, seed_sd, image_variance, high) > target:
        low, high = high, 2 * high
        if low > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _half(stats, seed_sd, image_variance, middle) > target else (low, middle)
    return high


def judge(difference: Interval, images: int) -> tuple[Verdict, str]:
    """A verdict in one word and in one sentence; no winner that the data do not show."""
    d = difference
    if not d.seed_noise_measured:
        return (
            "",
            f"{signed(d.mean, d.half)} mIoU on these images; seed noise not measured: at least 2 seeds for a verdict",
        )
    if d.low > 0 or d.high < 0:
        word: Verdict = "better" if d.low > 0 else "worse"
        return word, f"{word} by {plus_minus(abs(d.mean), d.half)} mIoU at {d.seeds} seeds"
    target = _round_to(d.half / 2, 1)
    if target == 0:
        return "no difference", f"no difference: the same on all {images} images at {d.seeds} seeds"
    needed = seeds_needed(d.seed_sd, d.image_variance, target)
    smaller = points(target, target)
    end = f"{smaller} would need about {needed}" if needed else f"{smaller} is not reachable with {images} images"
    return "no difference", f"no difference detectable: ±{points(d.half, d.half)} mIoU at {d.seeds} seeds; {end}"


def _half(stats: Any, seed_sd: float, image_variance: float, S: int) -> float:
    return float(stats.t.ppf(0.975, S - 1)) * math.sqrt(seed_sd**2 / S + image_variance)


def _round_to(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _summarise(name: str, trials: list[Trial], counts: dict[tuple[str, int], np.ndarray]) -> Summary:
    own = [t for t in trials if t.candidate == name]
    done = [t for t in own if t.status == "done"]
    failed = [t for t in own if t.status == "failed"]
    miou = difference = over_control = None
    verdict: Verdict = ""
    sentence = f"failed: {failed[0].reason}" if failed and not done else ""
    if done:
        of_seed = {t.seed: _observed(counts[name, t.seed]) for t in done}
        miou = interval(*_mean_over_seeds(list(of_seed.values())))
        if name != "baseline":
            difference = _paired(of_seed, "baseline", counts)
        if name not in REFERENCES:
            over_control = _paired(of_seed, "control", counts)
        if difference is not None:
            verdict, sentence = judge(difference, len(counts[name, done[0].seed]))
    iou = tuple(None if None in of_class else _mean(of_class) for of_class in zip(*(t.iou for t in done)))
    return Summary(
        name, len(done), len(failed), failed[0].reason if failed else "", miou, difference, verdict, sentence,
        _mean([t.miou_off for t in done]), _mean([t.accuracy for t in done]), iou,
        done[0].parameters if done else None, done[0].flops if done else None,
        _median([t.latency_ms for t in done]), _median([t.memory_mb for t in done]), _mean([t.seconds for t in done]),
        over_control,
    )  # fmt: skip


def _observed(counts: np.ndarray) -> tuple[float, np.ndarray]:
    """mIoU, and mIoU of every resample."""
    return float(miou_of(counts.sum(0))), resampled_miou(counts)


def _paired(
    of_seed: dict[int, tuple[float, np.ndarray]], reference: str, counts: dict[tuple[str, int], np.ndarray]
) -> Interval | None:
    """Difference to a reference over the seeds that both have done."""
    pairs = []
    for seed, (miou, drawn) in of_seed.items():
        if (reference, seed) in counts:
            other, other_drawn = _observed(counts[reference, seed])
            pairs.append((miou - other, drawn - other_drawn))
    return interval(*_mean_over_seeds(pairs)) if pairs else None


def _mean_over_seeds(values: list[tuple[float, np.ndarray]]) -> tuple[list[float], float]:
    """One value a seed, and the variance over resamples of their mean over seeds."""
    return [value for value, _ in values], float(np.mean([drawn for _, drawn in values], 0).var(ddof=1))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _rank(row: Summary) -> tuple[int, float]:
    last = ("control", "baseline")  # these end every table
    place = last.index(row.candidate) + 1 if row.candidate in last else 0
    return place, -row.miou.mean if row.miou else math.inf


def _load_trial(folder: Path, candidate: str, seed: int) -> Trial:
    result = read_json(folder / "result.json")
    status = result.get("status", "missing")

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return Trial(
        candidate, seed, status, result.get("reason") or "",
        percent(result.get("miou")), percent(result.get("accuracy")),
        tuple(percent(v) for v in result.get("iou") or ()), percent(result.get("miou_off")),
        result.get("parameters"), result.get("flops"), result.get("latency_ms"), result.get("memory_mb"),
        result.get("seconds"), result.get("step"), str(folder),
    )  # fmt: skip


def _cell(value: Any) -> Any:
    return "" if value is None else repr(value) if isinstance(value, float) else value
