"""Which candidates of a scan its seeds tell apart.

A candidate's seeds scatter by a standard deviation s, pooled over all candidates. The means of two differ visibly where
they are further apart than t s sqrt(2 / S), S seeds each, t Student's 97.5 % value for the degrees of freedom of s.
Groups are made from the best down: a group's first member leads it, and whoever cannot be told from it is in it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lookfar.study.intervals import student


def least_difference(scores: Mapping[str, Sequence[float]]) -> float:
    """What two candidates' means must differ by to be told apart; nan where there is one seed.

    Args:
        scores: Of each candidate, one a seed.

    >>> round(least_difference({"a": [70.0, 71.0], "b": [75.0, 76.0], "c": [70.0, 71.0]}), 2)
    2.25
    """
    degrees = sum(len(values) - 1 for values in scores.values())
    seeds = min((len(values) for values in scores.values()), default=0)
    if not degrees or seeds < 2:
        return math.nan
    variance = sum(float(np.var(values)) * len(values) for values in scores.values()) / degrees
    return student(degrees) * math.sqrt(2 * variance / seeds)


def grouped(scores: Mapping[str, Sequence[float]], least: float, *, higher: bool = True) -> list[list[str]]:
    """Candidates best first, in groups; in a single one where nothing is known of seeds.

    Args:
        scores: Of each candidate, one a seed.
        least: Of :func:`least_difference`.
        higher: Whether more is better.

    >>> grouped({"a": [70.0, 71.0], "b": [75.0, 76.0], "c": [70.5, 71.5], "d": [74.0, 75.0]}, 2.0)
    [['b', 'd'], ['c', 'a']]
    """
    sign = 1 if higher else -1
    means, groups = {name: sign * float(np.mean(values)) for name, values in scores.items()}, list[list[str]]()
    for name in sorted(means, key=lambda name: -means[name]):
        if groups and (math.isnan(least) or means[groups[-1][0]] - means[name] <= least):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
