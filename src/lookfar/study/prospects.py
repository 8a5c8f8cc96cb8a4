"""What a difference means for what is still to be trained: one network with the block, or more seeds."""

import math
from dataclasses import dataclass

import numpy as np

from lookfar.study.comparisons import Difference
from lookfar.study.intervals import LEVEL

MOST_SEEDS = 1000  # planning looks no further


@dataclass(frozen=True)
class Once:
    """What a candidate means for somebody who trains one network with it; a failed trial is a loss.

    Attributes:
        wins: Seeds in which it beat the reference.
        seeds: Seeds that were tried.
        worst: The least favourable difference of a seed.
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
            probability = float(special.stdtr(difference.degrees, difference.gain / spread))
        else:
            probability = 0.5 + 0.5 * float(np.sign(difference.gain))
        probability *= S / tried
    possible = failures_possible(tried, failed)
    wins = sum(d > 0 if difference.higher else d < 0 for d in difference.of_seed)
    worst = min(difference.of_seed) if difference.higher else max(difference.of_seed)
    return Once(wins, tried, worst, probability, possible)


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
