"""Candidates against a reference and against each other, in intervals that hold together; words are in ``verdicts``."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lookfar.study.intervals import Interval, interval, satterthwaite
from lookfar.study.measured import SEED, Measured
from lookfar.study.noise import moderated_variances, sample_covariance, sample_degrees
from lookfar.study.words import ends, signed

DRAWS = 10_000  # for the probability of being best


@dataclass(frozen=True)
class Difference:
    """A candidate against a reference, paired by seed.

    Attributes:
        candidate: Its score is the minuend.
        reference: Its score is subtracted.
        of_seed: The difference under each seed that both have.
        interval: Holds together with those of the other compared candidates in 19 of 20 studies.
        single: 95 % for this comparison alone.
        seeds_alone: As ``interval`` without the samples' part; None at one seed.
        seed_variance: Of the paired difference under one seed; nan at one seed.
        degrees: Of the seed variance.
        sample_variance: Of the mean difference, by other samples; nan with one group.
        groups: Of samples.
        moderated: Whether the seed variance leans on all candidates.
        compared: How many comparisons hold together.
        higher: Whether a higher score is better.
    """

    candidate: str
    reference: str
    of_seed: tuple[float, ...]
    interval: Interval
    single: Interval
    seeds_alone: Interval | None
    seed_variance: float
    degrees: float
    sample_variance: float
    groups: int
    moderated: bool
    compared: int
    higher: bool = True

    @property
    def seeds(self) -> int:
        return len(self.of_seed)

    @property
    def mean(self) -> float:
        return self.interval.mean

    @property
    def half(self) -> float:
        return self.interval.half

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high

    @property
    def gains(self) -> bool:
        """Whether the whole interval is on the better side."""
        return self.low > 0 if self.higher else self.high < 0

    @property
    def loses(self) -> bool:
        """Whether the whole interval is on the worse side."""
        return self.high < 0 if self.higher else self.low > 0

    @property
    def gain(self) -> float:
        """The mean difference, positive where the candidate is better."""
        return self.mean if self.higher else -self.mean

    def __str__(self) -> str:
        found = ends(self.low, self.high)
        return signed(self.mean, self.half) + (f" [{', '.join(found)}]" if found else "")


@dataclass(frozen=True)
class Best:
    """Which candidate is the best, of those that have all seeds of the reference.

    Attributes:
        first: The one with the best mean.
        leads: Its differences to the others, in their order; they hold together.
        probabilities: Of being the best, the likeliest first.
    """

    first: str
    leads: tuple[Difference, ...]
    probabilities: Mapping[str, float]

    @property
    def shown(self) -> bool:
        """Whether the first is better than every other one, shown by at least three seeds."""
        return all(lead.gains and lead.seeds > 2 for lead in self.leads)


class Comparisons:
    """The comparisons of one study, on one estimate of its noise.

    Seed variances are moderated over the candidates that have every seed of the reference. Where that leaves fewer
    than four, and for a candidate that lacks a seed, the variance of the paired difference itself stands, so that no
    failed trial changes anybody else's interval by more than its part in the pooled variance.

    Args:
        measured: Scores and draws.
        reference: The candidate that all are compared with, usually ``baseline``.
        compared: How many candidates are compared at once, by plan; references are not counted.
        higher: Whether a higher score is better.
    """

    def __init__(self, measured: Measured, reference: str, compared: int, *, higher: bool = True) -> None:
        self.measured, self.reference, self.compared, self.higher = measured, reference, max(compared, 1), higher
        there = np.isfinite(measured.scores)
        at = measured.candidates.index(reference) if reference in measured.candidates else None
        self.seeds = there[at] if at is not None else np.zeros(there.shape[1], bool)  # (S,)
        S = int(self.seeds.sum())
        complete = np.flatnonzero(there[:, self.seeds].all(1)) if S else np.array([], int)
        self.complete = tuple(measured.candidates[i] for i in complete)
        self.variances: dict[str, float] = {}
        if S > 1 and len(complete) > 3:
            variances = moderated_variances(measured.scores[complete][:, self.seeds])
            self.variances = dict(zip(self.complete, variances.tolist()))
        self._covariance = None
        self.sample_degrees = measured.groups - 1.0  # of the samples' part, the same for all comparisons
        if S and measured.groups > 1:
            draws = measured.draws[complete][:, self.seeds]
            self._covariance = sample_covariance(draws, measured.groups)
            others = [i for i, row in enumerate(complete) if row != at]
            differences = draws[others] - measured.draws[at][self.seeds]
            if others:
                self.sample_degrees = sample_degrees(differences, measured.drawn, measured.groups)

    def mean(self, candidate: str) -> Interval | None:
        """The mean score of one candidate with an interval of its own; None without a trial."""
        measured = self.measured
        values, draws = measured.scores[measured.row(candidate)], measured.draws[measured.row(candidate)]
        there = np.isfinite(values)
        if not there.any():
            return None
        S = int(there.sum())
        samples, degrees = 0.0, 0.0
        if measured.groups > 1:
            samples = max(float(sample_covariance(draws[None, there], measured.groups)[0, 0]), 0.0)
            degrees = sample_degrees(draws[None, there], measured.drawn, measured.groups)
        seeds = float(values[there].var(ddof=1)) if S > 1 else math.nan
        return interval(float(values[there].mean()), S, seeds, S - 1, samples, degrees, 1)

    def difference(self, candidate: str, reference: str | None = None, *, alone: bool = False) -> Difference | None:
        """A candidate against the reference, or against another candidate; None where they share no seed.

        Args:
            candidate: Its name.
            reference: Instead of the study's.
            alone: It is not one of the compared: ``interval`` is then the single one.
        """
        measured = self.measured
        reference = reference or self.reference
        if candidate not in measured.candidates or reference not in measured.candidates:
            return None
        pair = [measured.row(candidate), measured.row(reference)]
        both = candidate in self.complete and reference in self.complete
        shared = self.seeds if both else np.asarray(np.isfinite(measured.scores[pair]).all(axis=0))
        of_seed = measured.scores[pair[0], shared] - measured.scores[pair[1], shared]
        S = len(of_seed)
        if S == 0:
            return None
        seed_variance, degrees = (float(of_seed.var(ddof=1)), float(S - 1)) if S > 1 else (math.nan, 0.0)
        moderated = both and candidate in self.variances
        if moderated:
            a, b = self.variances[candidate], self.variances[reference]
            # a pair that scatters more than its two parts say is believed
            seed_variance = max(a + b, seed_variance)
            degrees = satterthwaite(a, b, S + 1)
        sample_variance = self._sample_variance(candidate, reference, both, shared)
        mean, k = float(of_seed.mean()), 1 if alone else self.compared
        parts = mean, S, seed_variance, degrees, sample_variance, self.sample_degrees
        return Difference(
            candidate, reference, tuple(of_seed.tolist()), interval(*parts, k), interval(*parts, 1),
            interval(mean, S, seed_variance, degrees, 0.0, 0.0, k) if S > 1 else None,
            seed_variance, degrees, sample_variance if measured.groups > 1 else math.nan, measured.groups,
            moderated, k, self.higher,
        )  # fmt: skip

    def _sample_variance(self, candidate: str, reference: str, both: bool, shared: np.ndarray) -> float:
        measured = self.measured
        if measured.groups < 2:
            return 0.0
        if both and self._covariance is not None:
            i, j = self.complete.index(candidate), self.complete.index(reference)
            covariance = self._covariance[np.ix_([i, j], [i, j])]
        else:
            pair = [measured.row(candidate), measured.row(reference)]
            covariance = sample_covariance(measured.draws[pair][:, shared], measured.groups)
        return max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0)

    def best(self, candidates: Iterable[str]) -> Best | None:
        """Which of these is the best; None unless two have all seeds of the reference, which are two at least.

        The first is chosen by the data; that its differences to all others hold together with Dunnett's value makes
        "the best" right all the same (Hsu, Multiple Comparisons, 1996, chapter 4).
        """
        names = [name for name in candidates if name in self.complete]
        S = int(self.seeds.sum())
        if len(names) < 2 or S < 2:
            return None
        rows = [self.measured.row(name) for name in names]
        means = self.measured.scores[rows][:, self.seeds].mean(1)
        order = np.argsort(-means if self.higher else means, kind="stable")
        first = names[order[0]]
        leads = tuple(d for i in order[1:] if (d := self.difference(first, names[i])) is not None)
        rng = np.random.default_rng(SEED)
        own = np.array([self.variances.get(name, math.nan) for name in names])
        if np.isnan(own).any():  # no moderated variances: half of what pairs scatter
            scattered = self.measured.scores[rows][:, self.seeds]
            own = np.full(len(names), (scattered - scattered.mean(0)).var(axis=1, ddof=1).mean())
        drawn = means + np.sqrt(own / S) * rng.standard_t(S + 1 if self.variances else S - 1, (DRAWS, len(names)))
        if self._covariance is not None:
            at = [self.complete.index(name) for name in names]
            values, vectors = np.linalg.eigh(self._covariance[np.ix_(at, at)])
            root = vectors * np.sqrt(np.maximum(values, 0))
            drawn = drawn + rng.standard_t(self.sample_degrees, (DRAWS, len(names))) @ root.T
        firsts = drawn.argmax(1) if self.higher else drawn.argmin(1)
        share = np.bincount(firsts, minlength=len(names)) / DRAWS
        likely = np.argsort(-share, kind="stable")
        return Best(first, leads, {names[i]: float(share[i]) for i in likely})
