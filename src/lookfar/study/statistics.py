"""What a study's scores are worth: intervals that hold together, verdicts, and what more seeds would bring.

The module knows neither masks nor files. It is given *facts of samples*, one object a trial (for segmentation the
counts of every validation image), and a function that scores R re-weighted sets of these samples at once, so that any
task whose score follows from weighted samples can be judged. Everything is in the unit of that score; words are in
:mod:`lookfar.study.verdicts`, how often they are right in ``docs/statistics.md``.

Two things make a difference uncertain, and each has its own degrees of freedom: other seeds (training again) and other
samples (validating on others). ``half = sqrt(d^2 seed_variance / S + e^2 sample_variance)`` with d and e Dunnett's
values, the first by the degrees of the seed variance, the second by the number of groups of samples.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from lookfar.study.words import ends, plus_minus, signed

RESAMPLES = 1000
DRAWS = 10_000  # for the probability of being best
SEED = 0  # the same samples are drawn for every candidate, and every time a report is made
LEVEL = 0.95
FEW_GROUPS = 4  # up to here the interval of seeds alone is reported beside the whole one
MOST_SEEDS = 1000  # planning looks no further

Score = Callable[[Any, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Scores of all trials, on all samples and on resamples of them.

    Attributes:
        candidates: Names, C of them.
        scores: ``(C, S)``; nan where there is no trial.
        draws: ``(C, S, R)``; draw r holds the same samples for all candidates and seeds.
        groups: How many groups the samples form; with one their part of the noise cannot be measured.
    """

    candidates: tuple[str, ...]
    scores: np.ndarray
    draws: np.ndarray
    groups: int

    def row(self, candidate: str) -> int:
        """Where a candidate's scores stand."""
        return self.candidates.index(candidate)


@dataclass(frozen=True)
class Interval:
    """``mean ± half``, 95 %; half is nan where nothing of the noise was measured."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return plus_minus(self.mean, self.half)


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

    def __str__(self) -> str:
        found = ends(self.low, self.high)
        return signed(self.mean, self.half) + (f" [{', '.join(found)}]" if found else "")


@dataclass(frozen=True)
class Best:
    """Which candidate is the best, of those that have all seeds of the reference.

    Attributes:
        first: The one with the highest mean.
        leads: Its differences to the others, in their order; they hold together.
        probabilities: Of being the best, the likeliest first.
    """

    first: str
    leads: tuple[Difference, ...]
    probabilities: Mapping[str, float]

    @property
    def shown(self) -> bool:
        """Whether the first is better than every other one, shown by at least three seeds."""
        return all(lead.low > 0 and lead.seeds > 2 for lead in self.leads)


@dataclass(frozen=True)
class Once:
    """What a candidate means for somebody who trains one network with it; a failed trial is a loss.

    Attributes:
        wins: Seeds in which it beat the reference.
        seeds: Seeds that were tried.
        worst: The smallest difference of a seed.
        probability: That one run with it beats one without; nan at one seed.
        failures_possible: The failure rate that its runs do not exclude (95 %).
    """

    wins: int
    seeds: int
    worst: float
    probability: float
    failures_possible: float


@dataclass(frozen=True)
class Needed:
    """Seeds that would show a difference in four of five studies, by either end of the seed variance's 80 % interval.

    Attributes:
        effect: The difference.
        fewest: None where more than ``MOST_SEEDS`` would be needed, or none would do.
        most: The same for the upper end.
        reachable: Whether any number of seeds would do on these samples.
    """

    effect: float
    fewest: int | None
    most: int | None
    reachable: bool = True


# ---- from facts to scores --------------------------------------------------------------------------------------------


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
    weights = group_draws(len(labels), resamples)[:, index] if len(labels) > 1 else everything
    for (candidate, seed), of_trial in facts.items():
        row = candidates.index(candidate)
        scores[row, seed] = score(of_trial, everything)[0]
        if math.isfinite(scores[row, seed]):
            draws[row, seed] = score(of_trial, weights)
        else:
            scores[row, seed] = np.nan
    # samples without any score in some draws, such as images without labels: these draws are left out for all
    draws = draws[..., np.isfinite(draws[np.isfinite(scores)]).all(0)]
    return Measured(candidates, scores, draws, len(labels) if draws.shape[-1] > 1 else 1)


@lru_cache(maxsize=8)
def group_draws(groups: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each group is drawn, ``(R, groups)``; a function of the number of groups alone."""
    drawn = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return drawn.astype(np.float64)


# ---- noise -----------------------------------------------------------------------------------------------------------


def moderated_variances(scores: np.ndarray) -> np.ndarray:
    """Variance over seeds of each candidate beyond what a seed does to all of them.

    Own variances from three seeds are too uncertain to show anything, one variance for all is wrong where one block is
    unstable: each own variance is drawn towards the pooled one, which counts as two further degrees of freedom.

    Args:
        scores: ``(C, S)``, C at least 4, S at least 2, without nan.

    Returns:
        ``(C,)``, with S + 1 degrees of freedom each.
    """
    C, S = scores.shape
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    own = (rest**2).sum(1) / (S - 1)
    pooled = own.sum() / (C - 1)
    # what taking off the mean over candidates took from each, and gave it of the others
    unbiased = np.maximum(C / (C - 2) * (own - own.sum() / (C * (C - 1))), 0)
    return (2 * pooled + (S - 1) * unbiased) / (S + 1)


def sample_covariance(draws: np.ndarray, groups: int) -> np.ndarray:
    """Covariance ``(C, C)`` of the candidates' means over seeds by the samples alone.

    Two different seeds share nothing but the samples, so the mean covariance of their draws counts what samples do to
    all seeds, and leaves out what they do to one: that is in the seeds' variance already. With one seed there are no
    two, and the covariance within it is taken.

    Args:
        draws: ``(C, S, R)``.
        groups: Of samples, at least 2.
    """
    C, S, R = draws.shape
    draws = draws - draws.mean(-1, keepdims=True)
    total = draws.sum(1)
    covariance = total @ total.T
    if S > 1:
        by_candidate = draws.reshape(C, S * R)
        covariance = (covariance - by_candidate @ by_candidate.T) / (S * (S - 1))
    return covariance / (R - 1) * groups / (groups - 1)


def satterthwaite(a: float, b: float, degrees: float) -> float:
    """Degrees of freedom of a sum of two variances of so many each, to the tenth below."""
    return math.floor(10 * degrees * (a + b) ** 2 / (a**2 + b**2)) / 10 if a + b > 0 else degrees


def student(degrees: float, level: float = LEVEL) -> float:
    """Student's two-sided value."""
    from scipy import special

    return float(special.stdtrit(degrees, (1 + level) / 2))


@cache
def dunnett(comparisons: int, degrees: float, level: float = LEVEL) -> float:
    """Dunnett's two-sided value for comparisons with one reference (correlation 1/2).

    The probability that all of k differences stay within d standard errors, ``E_s E_z [Phi(z + sqrt(2) d s) -
    Phi(z - sqrt(2) d s)]^k`` with z the reference's error and s the estimated by the true standard deviation, is
    integrated on a grid and inverted.

    Dunnett, New tables for multiple comparisons with a control (Biometrics 1964).
    """
    from scipy import special

    if comparisons <= 1:
        return student(degrees, level)
    z = np.linspace(-8, 8, 129)
    weight_z = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    nodes, weights = np.polynomial.legendre.leggauss(160)
    # over log s: small s decide where degrees are few
    half = degrees / 2
    low, high = (0.5 * math.log(special.gammaincinv(half, p) / half) for p in (1e-9, 1 - 1e-12))
    log_s = (high - low) / 2 * nodes + (high + low) / 2
    s = np.exp(log_s)
    density = 2 * np.exp(half * math.log(half) + degrees * log_s - half * s**2 - special.gammaln(half))  # of log s
    weight_s = (high - low) / 2 * weights * density

    def coverage(d: float) -> float:
        inside = special.ndtr(z + math.sqrt(2) * d * s[:, None]) - special.ndtr(z - math.sqrt(2) * d * s[:, None])
        return float(weight_s @ inside**comparisons @ weight_z)

    low, high = student(degrees, level), student(degrees, 1 - (1 - level) / comparisons)  # Bonferroni's
    while high - low > 1e-6 * high:
        d = (low + high) / 2
        low, high = (d, high) if coverage(d) < level else (low, d)
    return high


# ---- conclusions -----------------------------------------------------------------------------------------------------


class Comparisons:
    """The comparisons of one study, on one estimate of its noise.

    Seed variances are moderated over the candidates that have every seed of the reference. Where that leaves fewer
    than four, and for a candidate that lacks a seed, the variance of the paired difference itself stands, so that no
    failed trial changes anybody else's interval by more than its part in the pooled variance.

    Args:
        measured: Scores and draws.
        reference: The candidate that all are compared with, usually ``baseline``.
        compared: How many candidates are compared at once, by plan; references are not counted.
    """

    def __init__(self, measured: Measured, reference: str, compared: int) -> None:
        self.measured, self.reference, self.compared = measured, reference, max(compared, 1)
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
        if S and measured.groups > 1:
            self._covariance = sample_covariance(measured.draws[complete][:, self.seeds], measured.groups)

    def mean(self, candidate: str) -> Interval | None:
        """The mean score of one candidate with an interval of its own; None without a trial."""
        measured = self.measured
        values, draws = measured.scores[measured.row(candidate)], measured.draws[measured.row(candidate)]
        there = np.isfinite(values)
        if not there.any():
            return None
        S = int(there.sum())
        samples = 0.0
        if measured.groups > 1:
            samples = max(float(sample_covariance(draws[None, there], measured.groups)[0, 0]), 0.0)
        seeds = float(values[there].var(ddof=1)) if S > 1 else math.nan
        return _interval(float(values[there].mean()), S, seeds, S - 1, samples, measured.groups, 1)

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
        parts = mean, S, seed_variance, degrees, sample_variance, measured.groups
        return Difference(
            candidate, reference, tuple(of_seed.tolist()), _interval(*parts, k), _interval(*parts, 1),
            _interval(mean, S, seed_variance, degrees, 0.0, 1, k) if S > 1 else None,
            seed_variance, degrees, sample_variance if measured.groups > 1 else math.nan, measured.groups,
            moderated, k,
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
        order = np.argsort(-means, kind="stable")
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
            drawn = drawn + rng.standard_t(self.measured.groups - 1, (DRAWS, len(names))) @ root.T
        share = np.bincount(drawn.argmax(1), minlength=len(names)) / DRAWS
        likely = np.argsort(-share, kind="stable")
        return Best(first, leads, {names[i]: float(share[i]) for i in likely})


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one value a seed with Student's interval over seeds alone; its half is nan with one."""
    S = len(values)
    variance = float(np.var(values, ddof=1)) if S > 1 else math.nan
    return _interval(float(np.mean(values)), S, variance, S - 1, 0.0, 1, 1)


def once(difference: Difference, failed: int = 0) -> Once:
    """For whoever trains once.

    Args:
        difference: To the network without the block.
        failed: Trials of the candidate that failed.
    """
    from scipy import special

    S = difference.seeds
    tried = S + failed
    probability = math.nan
    if S > 1:
        spread = math.sqrt(difference.seed_variance * (1 + 1 / S))
        if spread > 0:
            probability = float(special.stdtr(difference.degrees, difference.mean / spread))
        else:
            probability = 0.5 + 0.5 * float(np.sign(difference.mean))
        probability *= S / tried
    possible = failures_possible(tried, failed)
    return Once(sum(d > 0 for d in difference.of_seed), tried, min(difference.of_seed), probability, possible)


def failures_possible(runs: int, failed: int = 0) -> float:
    """The largest failure rate that so many runs do not exclude (95 %, one-sided)."""
    from scipy import special

    return 1.0 if failed == runs else float(special.betaincinv(failed + 1, runs - failed, LEVEL))


def seeds_needed(difference: Difference, margin: float, power: float = 0.8) -> Needed | None:
    """How many seeds would show the measured difference, or the margin where that is more; None at one seed."""
    from scipy import special

    effect = max(abs(difference.mean), margin)
    if difference.seeds < 2:
        return None
    of_samples = 0.0 if math.isnan(difference.sample_variance) else difference.sample_variance
    room = effect**2 - (special.ndtri((1 + LEVEL) / 2) + special.ndtri(power)) ** 2 * of_samples
    if room <= 0:
        return Needed(effect, None, None, reachable=False)
    N = np.arange(2, MOST_SEEDS + 1)
    # moderated variances have N + 1 degrees each, their sum as many times that as now
    times = min(difference.degrees / (difference.seeds + 1), 2.0)
    degrees = times * (N + 1) if difference.moderated else N - 1
    factor = (special.stdtrit(degrees, (1 + LEVEL) / 2) + special.stdtrit(degrees, power)) ** 2 / N
    found = []
    for p in (0.9, 0.1):
        half = difference.degrees / 2
        variance = difference.seed_variance * half / float(special.gammaincinv(half, p))  # a quantile of chi squared
        enough = np.flatnonzero(factor * variance <= room)
        found.append(int(N[enough[0]]) if len(enough) else None)
    return Needed(effect, *found)


def _interval(
    mean: float, seeds: int, seed_variance: float, degrees: float, sample_variance: float, groups: int, comparisons: int
) -> Interval:
    if seeds < 2 and groups < 2:
        return Interval(mean, math.nan)
    variance = 0.0
    if seeds > 1 and seed_variance > 0:
        variance += dunnett(comparisons, degrees) ** 2 * seed_variance / seeds
    if groups > 1 and sample_variance > 0:
        variance += dunnett(comparisons, groups - 1) ** 2 * sample_variance
    return Interval(mean, math.sqrt(variance))
