"""What claims ask of the maps of trained blocks, beside scores: from trials' own files and networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookfar.claims._claim import Answer
from lookfar.claims.relations import together
from lookfar.study.words import MINUS

if TYPE_CHECKING:
    from lookfar.study import Results
    from lookfar.study.intervals import Interval

NUMBERS = "numbers-of-maps.npz"  # beside a trial's other files: made once
BATCH = 16
# of a table: what a block's map gives way to, and what its maps are like
ABLATED = ("mean", "uniform", "other", "pairwise", "unary", "off")
SHOWN = ("similarity", "mutual_information", "entropy_normalised", "output_residual", "label_mass", "label_chance")
COLUMNS = ("full", *ABLATED, *SHOWN)
# what is asked of the map of a term
LIFTS = {"pairwise": ("label_lift", "on the query's class"), "unary": ("boundary_lift", "on borders of classes")}


def one_map(results: "Results", blocks: Sequence[str]) -> list[Answer]:
    """Whether one map for all queries of an image does as well as the queries' own, by the verdict over all seeds.

    A block that the network does as well without says nothing of its maps.
    """
    found = []
    for name in blocks:
        told = results.summary(name).told
        if told is None:
            found.append(Answer(None, f"{name}: not measured"))
            continue
        rung = next((rung for rung in told.verdict.rungs if rung.kind == "mean"), None)
        holds = None
        if rung is not None and told.word not in ("off", "harms"):
            holds = True if rung.equivalent else False if rung.needed else None
        found.append(Answer(holds, f"{name} {told.word}: {told.why}"))
    return found


def lifts(results: "Results", blocks: Sequence[str]) -> list[Answer]:
    """How often more than by chance a pairwise map lies on the query's class, and a unary map on borders.

    Asked of blocks that have one term alone, and of both maps of a block that adds them.
    """
    asked = [(name, term, number) for name in blocks for number, term in enumerate(_terms(name))]
    found = []
    for name, term, number in asked:
        lift, where = LIFTS[term]
        values = _values(results, name, lift, number)
        over = over_chance(results, values, len(asked))
        holds = True if over.low > 1 else False if over.high <= 1 else None
        said = f"weight of {name}'s {term} map {where} "
        seeds = ", ".join(f"{np.nanmean(of_seed):.2f}" for of_seed in values.values())
        numbers = f"{over.mean:.2f} [{over.low:.2f}, {over.high:.2f}] times chance (seed by seed {seeds})"
        found.append(Answer(holds, said + (numbers.replace("-", MINUS) if np.isfinite(over.half) else "not measured")))
    return found


def _terms(name: str) -> list[str]:
    """The terms of a disentangled block, in the order of its maps."""
    alone = [term for term in LIFTS if f"terms={term}" in name]
    return alone or list(LIFTS)


def _values(results: "Results", name: str, number: str, of: int) -> dict[int, np.ndarray]:
    """A number of one of a candidate's maps, image by image, of each seed whose network is there."""
    trials = [trial for trial in results.trials if trial.candidate == name]
    found = {trial.seed: map_numbers(Path(trial.folder)) for trial in trials}
    return {seed: numbers[number][:, of] for seed, numbers in found.items() if numbers}


def over_chance(results: "Results", values: dict[int, np.ndarray], compared: int) -> "Interval":
    """The mean of values over seeds and images, of which so many intervals hold together."""
    from lookfar.study.comparisons import Comparisons
    from lookfar.study.intervals import Interval
    from lookfar.study.measured import measure

    facts: dict[tuple[str, int], np.ndarray] = {}
    for seed, of_seed in values.items():
        there = np.isfinite(of_seed)
        facts["values", seed] = np.stack([np.where(there, of_seed, 0.0), there], 1)
        facts["chance", seed] = np.stack([there, there], 1).astype(float)
    groups = results.conclusions.groups
    # all images of one sequence: they are drawn, and what is said holds for it
    labels = groups.labels if groups.number > 1 else range(len(groups.labels))
    d = together(Comparisons(measure(facts, _mean, labels), "chance", 1), "values", "chance", compared)
    return Interval(1 + d.mean, d.half) if d is not None else Interval(np.nan, np.nan)


def table_of(results: "Results", blocks: Sequence[str]) -> list[list[str | float | None]]:
    """A row a trial of these blocks: its score, what is left with another map, and what its maps are like."""
    rows = []
    for trial in results.trials:
        if trial.candidate in blocks and trial.status == "done":
            scores = [trial.score, *(getattr(trial.without, kind) for kind in ABLATED)]
            numbers = map_numbers(Path(trial.folder))
            means = [float(np.nanmean(numbers[name])) if name in numbers else None for name in SHOWN]
            rows.append([f"{trial.candidate}, seed {trial.seed}", *scores, *means])
    return rows


def map_numbers(trial: Path) -> dict[str, np.ndarray]:
    """What the maps of a trial's block are like, ``(images, maps)`` by name, on all validation images.

    Nothing where its network or its data are not there any more.
    """
    from lookfar._arrays import read_arrays
    from lookfar.diagnostics import statistics
    from lookfar.study import load_trial
    from lookfar.training.checkpoints import save_arrays

    path = trial / NUMBERS
    if not (found := read_arrays(path)):
        try:
            network, data, blocks = load_trial(trial)
        except (FileNotFoundError, ValueError):
            return {}
        batches = data.val_batches(BATCH)
        if data.target != "mask":
            batches = (inputs for inputs, _ in batches)
        of_block = statistics(network, batches, blocks[0])
        found = {name: of.plain.numpy() for name, of in of_block.items()}
        save_arrays(path, **found)
    return found


def _mean(facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total, there = (weights @ facts).T
    return np.divide(total, there, out=np.full(len(total), np.nan), where=there > 0)
