"""Scores of all trials, on all samples and on samples drawn again.

The module knows neither masks nor files. It is given *facts of samples*, one object a trial (for segmentation the
counts of every validation image), and a function that scores R re-weighted sets of these samples at once, so that any
task whose score follows from weighted samples can be judged. Everything that follows is in the unit of that score.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lookfar.study.groups import Groups

RESAMPLES = 1000
ROOM = 20_000_000  # numbers that all draws may take at once
SEED = 0  # the same samples are drawn for every candidate, and every time a report is made

Score = Callable[[Any, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Scores of all trials, on all samples and on resamples of them.

    Attributes:
        candidates: Names, C of them.
        scores: ``(C, S)``; nan where there is no trial.
        draws: ``(C, S, R)``; draw r holds the same samples for all candidates and seeds.
        groups: How many groups the samples form; with one their part of the noise cannot be measured.
        drawn: How often each draw holds each group, ``(R, G)``; None where that is not known.
    """

    candidates: tuple[str, ...]
    scores: np.ndarray
    draws: np.ndarray
    groups: int
    drawn: np.ndarray | None = None

    def row(self, candidate: str) -> int:
        """Where a candidate's scores stand."""
        return self.candidates.index(candidate)


def measure(
    facts: Mapping[tuple[str, int], Any], score: Score, groups: Sequence[Hashable], *, resamples: int = RESAMPLES
) -> Measured:
    """Score every trial, and score it again on samples drawn by groups.

    Args:
        facts: What is known of the samples in the trial of (candidate, seed); trials that are missing are left out.
        score: ``score(facts, weights (R, samples)) -> (R,)``, nan where samples have no score.
        groups: The group of each sample. Groups are drawn whole; where every sample is its own, samples are drawn.
        resamples: R.
    """
    labels, index = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
    candidates = tuple(dict.fromkeys(candidate for candidate, _ in facts))
    seeds = 1 + max((seed for _, seed in facts), default=-1)
    scores = np.full((len(candidates), seeds), np.nan)
    draws = np.full((len(candidates), seeds, resamples), np.nan)
    everything = np.ones((1, len(index)))
    for (candidate, seed), of_trial in facts.items():
        value = float(score(of_trial, everything)[0])
        scores[candidates.index(candidate), seed] = value if math.isfinite(value) else np.nan
    for some, weights in _weights(index, len(labels), resamples):
        for (candidate, seed), of_trial in facts.items():
            row = candidates.index(candidate)
            if math.isfinite(scores[row, seed]):
                draws[row, seed, some] = score(of_trial, weights)
    # samples without any score in some draws, such as images without labels: these draws are left out for all
    kept = np.isfinite(draws[np.isfinite(scores)]).all(0)
    draws = draws[..., kept]
    if draws.shape[-1] < 2 or len(labels) < 2:
        return Measured(candidates, scores, draws, 1)
    # how often each of very many groups is drawn tells nothing, and would take all memory
    drawn = group_draws(len(labels), resamples)[kept] if 2 * len(labels) <= resamples else None
    return Measured(candidates, scores, draws, len(labels), drawn)


def scored_groups(groups: Groups, facts: Mapping[Any, Any], score: Score) -> Groups:
    """One group where all samples that have a score are of one: masks without a label tell nothing of other images.

    Args:
        groups: Of all samples.
        facts: Of some trials on the same samples.
        score: As for :func:`measure`.
    """
    labels, index = np.unique(np.asarray(groups.labels), return_inverse=True)
    if not facts or not 1 < len(labels) <= RESAMPLES:
        return groups
    alone = np.equal.outer(np.arange(len(labels)), index).astype(np.float64)
    scored = np.isfinite(score(next(iter(facts.values())), alone)).sum()
    return Groups(("",) * len(index), groups.noun) if scored == 1 else groups


def _weights(index: np.ndarray, groups: int, resamples: int) -> Iterator[tuple[slice, np.ndarray]]:
    """How often each draw holds each sample, ``(R, S)``, some draws at a time where they are large."""
    if groups < 2:
        yield slice(None), np.ones((1, len(index)))
        return
    if resamples * max(groups, len(index)) <= ROOM:
        yield slice(None), group_draws(groups, resamples)[:, index]
        return
    rng, step = np.random.default_rng(SEED), max(ROOM // (10 * max(groups, len(index))), 1)
    for start in range(0, resamples, step):
        some = slice(start, min(start + step, resamples))
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=some.stop - some.start)
        yield some, drawn.astype(np.float64)[:, index]


@lru_cache(maxsize=8)
def group_draws(groups: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each group is drawn, ``(R, groups)``; a function of the number of groups alone."""
    drawn = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return drawn.astype(np.float64)
