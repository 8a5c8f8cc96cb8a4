"""How candidates of a study are said to stand to each other, and whether intervals bear it out.

The differences of one claim are paired by seed and sample, and their intervals hold together in 19 of 20 studies. What
is said of a claim follows from where they end: a whole interval bears a relation out or refutes it, or all is open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lookfar.claims._claim import Answer

if TYPE_CHECKING:
    from lookfar.study import Results
    from lookfar.study.comparisons import Comparisons, Difference

Relation = Literal["better than", "no better than", "no worse than", "practically the same as", "different from"]


@dataclass(frozen=True)
class Pair:
    """One candidate against another, as a claim has it.

    Attributes:
        first: A candidate.
        relation: Of the first to the second. Better by the margin at most is not better, worse by that not worse.
        second: Another.
    """

    first: str
    relation: Relation
    second: str


def pairs(relation: Relation, *candidates: str) -> tuple[Pair, ...]:
    """Each candidate against all behind it.

    >>> [(pair.first, pair.second) for pair in pairs("different from", "a", "b", "c")]
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    return tuple(Pair(a, relation, b) for i, a in enumerate(candidates) for b in candidates[i + 1 :])


def bears_out(relation: Relation, low: float, high: float, margin: float) -> bool | None:
    """Whether an interval of the first's gain over the second bears a relation out; None where it leaves it open.

    >>> [bears_out("better than", *ends, 0.5) for ends in ((0.1, 0.9), (0.1, 0.4), (-0.3, 0.9))]
    [True, False, None]
    """
    better, worse = low > 0 and high > margin, high < 0 and low < -margin
    within, apart = -margin <= low and high <= margin, low > margin or high < -margin
    yes, no = {
        "better than": (better, high <= margin),
        "no better than": (high <= margin, better),
        "no worse than": (low >= -margin, high < -margin),
        "practically the same as": (within, apart),
        "different from": (better or worse, within),
    }[relation]
    return True if yes else False if no else None


def answers(results: "Results", asked: Sequence[Pair]) -> list[Answer]:
    """What a study says to each pair; every trial of their candidates is done."""
    names = [*dict.fromkeys(name for pair in asked for name in (pair.first, pair.second))]
    comparisons = among(results, names)
    return [_answer(pair, together(comparisons, pair.first, pair.second, len(asked)), results) for pair in asked]


def together(comparisons: "Comparisons", first: str, second: str, compared: int) -> "Difference | None":
    """One of so many differences, with an interval that holds together with the others'; None without a common seed.

    Bonferroni's values and not Dunnett's: a claim's pairs have no reference in common, or share one another's.
    """
    from lookfar.study.intervals import LEVEL, Interval, student

    d = comparisons.difference(first, second)
    if d is None:
        return None
    level, variance = 1 - (1 - LEVEL) / compared, 0.0
    if d.seeds > 1 and d.seed_variance > 0:
        variance += student(d.degrees, level) ** 2 * d.seed_variance / d.seeds
    if d.sample_variance > 0:  # nan with one group
        variance += student(comparisons.sample_degrees, level) ** 2 * d.sample_variance
    return replace(d, interval=Interval(d.mean, math.sqrt(variance) if d.seeds > 1 else math.nan), compared=compared)


def among(results: "Results", names: Sequence[str]) -> "Comparisons":
    """Some candidates of a study by themselves: what else was trained there changes no interval."""
    from lookfar._arrays import read_arrays
    from lookfar.study.comparisons import Comparisons
    from lookfar.study.measured import measure
    from lookfar.study.mending import judged_file

    task = results.task
    facts = {
        (trial.candidate, trial.seed): task.facts(read_arrays(Path(trial.folder) / judged_file(task)))
        for trial in results.trials
        if trial.candidate in names and trial.status == "done"
    }
    measured = measure(facts, task.score, results.conclusions.groups.labels)
    return Comparisons(measured, names[0], 1, higher=task.higher)


def _answer(pair: Pair, d: "Difference | None", results: "Results") -> Answer:
    from lookfar.study.verdicts import judge

    terms = results.conclusions.terms
    if d is None:
        return Answer(None, f"{pair.first} and {pair.second} share no seed")
    low, high = (d.low, d.high) if d.higher else (-d.high, -d.low)
    word = judge(d, terms).word
    holds = bears_out(pair.relation, low, high, terms.margin) if d.seeds > 2 else None
    return Answer(holds, f"{pair.first} against {pair.second} {d}, {word}")
