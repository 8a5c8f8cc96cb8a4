"""Intervals from two kinds of noise, each with its own degrees of freedom.

``half = sqrt(d^2 seed_variance / S + e^2 sample_variance)`` with d and e Dunnett's values, the first by the degrees of
the seed variance, the second by the number of groups of samples. How often they are right is in ``docs/statistics.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lookfar.study.words import plus_minus

LEVEL = 0.95


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


def interval(
    mean: float,
    seeds: int,
    seed_variance: float,
    degrees: float,
    sample_variance: float,
    sample_degrees: float,
    comparisons: int,
) -> Interval:
    """The interval of a mean, holding together with so many comparisons; a part that was not measured is left out.

    Args:
        mean: Over seeds.
        seeds: S.
        seed_variance: Of one seed; without effect at one seed.
        degrees: Of ``seed_variance``.
        sample_variance: Of the mean, by other samples.
        sample_degrees: Of ``sample_variance``; 0 where it was not measured.
        comparisons: How many intervals are to hold together.
    """
    if seeds < 2 and not sample_degrees:
        return Interval(mean, math.nan)
    variance = 0.0
    if seeds > 1 and seed_variance > 0:
        variance += dunnett(comparisons, degrees) ** 2 * seed_variance / seeds
    if sample_degrees and sample_variance > 0:
        variance += dunnett(comparisons, sample_degrees) ** 2 * sample_variance
    return Interval(mean, math.sqrt(variance))


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one value a seed with Student's interval over seeds alone; its half is nan with one."""
    S = len(values)
    variance = float(np.var(values, ddof=1)) if S > 1 else math.nan
    return interval(float(np.mean(values)), S, variance, S - 1, 0.0, 0.0, 1)


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
