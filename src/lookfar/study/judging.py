"""From trials to conclusions: scores of all trials, the row of each candidate, what is true of the study as a whole.

Every difference comes from :mod:`lookfar.study.comparisons`, every verdict from :mod:`lookfar.study.verdicts`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lookfar.study.ablations import KINDS, Ablated
from lookfar.study.candidates import is_reference, place_of, short_name
from lookfar.study.comparisons import Best, Comparisons
from lookfar.study.groups import Groups
from lookfar.study.ladder import tell, unlearned
from lookfar.study.latency import Latency
from lookfar.study.measured import measure, scored_groups
from lookfar.study.prospects import once
from lookfar.study.rows import Summary, Trial, Without
from lookfar.study.told import Told
from lookfar.study.verdicts import SHORT, Terms, against_control, judge, off_and_constant, trained_once, which_is_best
from lookfar.study.words import points, thousands
from lookfar.tasks import Task

CAME_IN = 0.02  # of the input: a block that adds less at the end has not come in
NOTHING = "Nothing was learned"
ABOUT_THE_GATE = "this says something about the gate and the budget, not about the block"


@dataclass(frozen=True)
class Conclusions:
    """What a study shows.

    Attributes:
        terms: Score, margin and restriction of every sentence.
        groups: How the validation images were drawn again.
        best: Which block is best; None with fewer than two.
        sentences: What is true of the study as a whole, without full stop.
    """

    terms: Terms
    groups: Groups
    best: Best | None
    sentences: tuple[str, ...]


def scored(task: Task, trial: Trial, facts: np.ndarray, without: Mapping[str, np.ndarray], reason: str = "") -> Trial:
    """The trial with its scores.

    Args:
        task: What judges.
        trial: Without them.
        facts: Of its validation samples, ``(S, ...)``.
        without: The same when its block has to do without something, by the names in :class:`Without`.
        reason: Why some of these are missing.
    """

    def score(some: np.ndarray) -> float | None:
        return _known(float(task.score(some, np.ones((1, len(some))))[0]))

    without = {kind: of_kind for kind, of_kind in without.items() if of_kind.shape == facts.shape}
    return replace(
        trial,
        score=score(facts),
        further={name: _known(value) for name, value in task.further(facts).items()},
        of_class=tuple(score(task.of_class(facts, k)) for k in range(task.classes(facts))),
        without=Without(**{kind: score(of_kind) for kind, of_kind in without.items()}, reason=reason),
    )


def conclude(
    task: Task,
    candidates: Sequence[str],
    trials: Sequence[Trial],
    facts: Mapping[tuple[str, int], np.ndarray],
    groups: Groups,
    margin: float,
    latency: Mapping[str, Latency],
    reach: float | None = None,
    ablated: Callable[[Trial], Ablated] | None = None,
) -> tuple[list[Summary], Conclusions]:
    """Judge a study.

    Args:
        task: What judges.
        candidates: By plan, references too.
        trials: Of all candidates and seeds, with scores.
        facts: Of the trials that are done, ``(S, ...)`` each.
        groups: Of the validation images.
        margin: Differences within it are practically none.
        latency: Of the candidates that were measured.
        reach: The learning rates of all steps, summed up; None where that is not known.
        ablated: What a trial kept of its block doing without something; without it no block is told what it needs.
    """
    groups = scored_groups(groups, facts, task.score)
    where = f"on this one {groups.noun}" if groups.number == 1 else ""
    terms = Terms(task.words, task.higher, margin, where)
    blocks = [name for name in candidates if not is_reference(name)]
    comparisons = Comparisons(measure(facts, task.score, groups.labels), "baseline", len(blocks), higher=task.higher)
    sizes = _sizes(trials)
    rows = [_row(name, trials, comparisons, terms, sizes, latency.get(name), reach) for name in candidates]
    if ablated is not None:
        rows = [replace(row, told=_told(task, row.candidate, trials, facts, groups, terms, ablated)) for row in rows]
    best = comparisons.best(blocks)
    sentences = _nothing_learned(task, rows, facts)
    if best is not None and any(row.verdict == "better" for row in rows if row.candidate in best.probabilities):
        sentences.append(which_is_best(best, {}, terms))
    return rows, Conclusions(terms, groups, best, tuple(sentences))


def _row(
    name: str,
    trials: Sequence[Trial],
    comparisons: Comparisons,
    terms: Terms,
    sizes: Mapping[str, int],
    latency: Latency | None,
    reach: float | None,
) -> Summary:
    own = [t for t in trials if t.candidate == name]
    done = [t for t in own if t.status == "done"]
    failed = [t for t in own if t.status == "failed"]
    there = _is_there(name, comparisons)
    difference = comparisons.difference(name, alone=is_reference(name)) if there and name != "baseline" else None
    verdict = judge(difference, terms) if difference else None
    of_one = once(difference, len(failed)) if difference else None
    replaces = any(t.replaces for t in done)  # the convolution that went is in the baseline
    control = None if replaces else _control_of(name, sizes)
    over = comparisons.difference(name, control) if there and control else None
    beside = against_control(over, terms, _called(sizes[name], sizes[control])) if over and control else ""
    without, baseline = (
        _without(name, done),
        comparisons.mean("baseline") if _is_there("baseline", comparisons) else None,
    )
    of_class = tuple(None if None in values else _mean(values) for values in zip(*(t.of_class for t in done)))
    further = {column: _mean([t.further.get(column) for t in done]) for t in done[:1] for column in t.further}
    return Summary(
        name, len(done), len(failed), failed[0].reason if failed else "",
        comparisons.mean(name) if there else None, difference,
        verdict.word if verdict else "", verdict.short if verdict else "",
        verdict.sentence if verdict else f"failed: {failed[0].reason}" if failed and not done else "",
        without, further, of_class,
        done[0].parameters if done else None, done[0].flops if done else None,
        latency, _median([t.memory_mb for t in done]), _median([t.block_memory_mb for t in done]),
        _mean([t.seconds for t in done]),
        control, over, beside, of_one,
        trained_once(of_one, len(done)) if of_one and len(done) > 1 and not is_reference(name) else "",
        _came_in(name, done, reach), off_and_constant(without.off, without.constant, baseline and baseline.mean, terms),
    )  # fmt: skip


def _is_there(name: str, comparisons: Comparisons) -> bool:
    return name in comparisons.measured.candidates


def _without(name: str, done: Sequence[Trial]) -> Without:
    """Means over the seeds."""
    of = [t.without for t in done]
    reason = next((w.reason for w in of if w.reason), "")
    means = {kind: _mean([getattr(w, kind) for w in of]) for kind in KINDS}
    return Without(**means, reason=reason and ("plain convolutions have no maps" if is_reference(name) else reason))


def _told(
    task: Task,
    name: str,
    trials: Sequence[Trial],
    facts: Mapping[tuple[str, int], np.ndarray],
    groups: Groups,
    terms: Terms,
    ablated: Callable[[Trial], Ablated],
) -> Told | None:
    """What could take a block's place in its trained networks, by all of its seeds."""
    if is_reference(name):
        return None
    full = {t.seed: facts[name, t.seed] for t in trials if (t.candidate, t.seed) in facts and t.candidate == name}
    kept = {t.seed: ablated(t) for t in trials if t.candidate == name and t.seed in full}
    kept = {seed: one for seed, one in kept.items() if one.facts}
    if not kept:
        return None
    first = next(iter(kept.values()))
    asked = ("off",) if first.reason else first.rungs or _rungs_of(name)
    without = {
        kind: {
            s: of.facts[kind] for s, of in kept.items() if kind in of.facts and of.facts[kind].shape == full[s].shape
        }
        for kind in asked
    }
    entropies = [one.entropy for one in kept.values() if one.entropy is not None]
    return tell(
        full, without, task.score, groups, asked, terms.margin,
        higher=task.higher, noun=f"points of {terms.score}", entropy=min(entropies, default=None), reason=first.reason,
        unlearned=unlearned(task, full),
    )  # fmt: skip


def _rungs_of(candidate: str) -> tuple[str, ...]:
    """Of a block whose file does not say them."""
    from lookfar.study.rungs import rungs_for

    return rungs_for(short_name(candidate))


# ---- controls --------------------------------------------------------------------------------------------------------


def _sizes(trials: Sequence[Trial]) -> dict[str, int]:
    """Parameters that each candidate adds to the host; 0 where they are not known."""
    whole = {t.candidate: t.parameters or 0 for t in trials if t.status == "done"}
    return {name: max(count - whole.get("baseline", count), 0) for name, count in whole.items()}


def _control_of(name: str, sizes: Mapping[str, int]) -> str | None:
    """The control of a block: of those at its place the one nearest in size."""
    if is_reference(name) or name not in sizes:
        return None
    controls = [other for other in sizes if is_reference(other) and other != "baseline"]
    here = [other for other in controls if place_of(other) == place_of(name)] or controls
    return min(here, key=lambda other: abs(math.log(max(sizes[other], 1) / max(sizes[name], 1))), default=None)


def _called(own: int, control: int) -> str:
    """What the control is called beside a block of this size."""
    if control == 0:
        return "plain convolutions"
    if own * 2 >= control and own <= control * 2:
        return f"convolutions of the same size ({thousands(control)} parameters)"
    relation = "larger" if control > own else "smaller"
    return f"convolutions of {relation} size ({thousands(control)} parameters, the block {thousands(own)})"


# ---- beyond the differences ------------------------------------------------------------------------------------------


def _nothing_learned(task: Task, rows: Sequence[Summary], facts: Mapping[tuple[str, int], np.ndarray]) -> list[str]:
    """One line where no candidate beats a network that has learned nothing."""
    least = task.blind(next(iter(facts.values()))) if facts else None
    means = [row.score.mean for row in rows if row.score is not None]
    if least is None or not means or not (max(means) <= least if task.higher else min(means) >= least):
        return []
    words = task.words
    return [f"{NOTHING}: no candidate beats {words.blind} ({points(least)}{words.unit} {words.score})."]


def _came_in(name: str, done: Sequence[Trial], reach: float | None) -> str:
    """Says so where a block added next to nothing at the end of training."""
    added = [t.contribution for t in done if t.contribution is not None]
    out = [share for share in added if share < CAME_IN]
    if name == "baseline" or not out:
        return ""
    if len(out) < len(added):
        return f"did not come in under {len(out)} of {len(added)} seeds: it added less than 2 % to its input at the end"
    most = max(out)
    added_at_most = f" (at the end it added {100 * most:.1f} % to its input)" if most >= 0.001 else ""
    low = reach is not None and reach < SHORT
    short = f"; the learning rates of all steps add up to only {reach:.2g}" if low else ""
    return f"never came in{added_at_most}: {ABOUT_THE_GATE}{short}"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None
