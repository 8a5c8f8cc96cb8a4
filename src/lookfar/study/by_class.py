"""Each class by itself: its share of the validation samples, its score, and its difference to the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lookfar.study.comparisons import Comparisons, Difference
from lookfar.study.groups import Groups
from lookfar.study.intervals import Interval
from lookfar.study.measured import measure
from lookfar.tasks import Task


@dataclass(frozen=True)
class OfClass:
    """A class of the data.

    Attributes:
        name: Of the class.
        share: Of the validation truth, in per cent: of labelled pixels.
        images: How many validation images show it.
        scores: Of each candidate; empty for a class that the validation truth does not show.
        differences: To the baseline, paired by seed. Their ``single`` intervals hold each for itself, not together.
    """

    name: str
    share: float
    images: int
    scores: Mapping[str, Interval]
    differences: Mapping[str, Difference]


def by_class(
    task: Task, names: Sequence[str], facts: Mapping[tuple[str, int], np.ndarray], groups: Groups
) -> tuple[OfClass, ...]:
    """What is known of each class.

    The noise of seeds and samples is estimated class by class, as that of the whole is: the score of a class is that of
    facts that hold no other.

    Args:
        task: What judges.
        names: Of the classes.
        facts: Of each trial that is done, ``(S, ...)``.
        groups: Of the validation samples.
    """
    if not facts:
        return ()
    first = next(iter(facts.values()))  # the truth is the same in all trials
    K = task.classes(first)
    total = max(sum(task.truth(first, k).sum() for k in range(K)), 1)
    found = []
    for k in range(K):
        name = names[k] if k < len(names) else f"class {k}"
        truth = task.truth(first, k)
        showing = np.flatnonzero(truth)
        scores, differences = {}, {}
        if len(showing):
            one = {trial: task.of_class(of, k) for trial, of in facts.items()}
            labels = [groups.labels[i] for i in showing] if task.by_own else groups.labels
            measured = measure(one, task.score, labels)
            # what a class of few images does on others is known no better than from so few
            known = min(measured.groups, len({groups.labels[i] for i in showing}))
            comparisons = Comparisons(replace(measured, groups=known), "baseline", 1, higher=task.higher)
            for candidate in comparisons.measured.candidates:
                if (mean := comparisons.mean(candidate)) is not None:
                    scores[candidate] = mean
                if candidate != "baseline" and (d := comparisons.difference(candidate)) is not None:
                    differences[candidate] = d
        share = float(100 * truth.sum() / total)
        found.append(OfClass(name, share, len(showing), scores, differences))
    return tuple(found)


def is_shown(difference: Difference, groups: Groups) -> bool:
    """Whether the interval of one class leaves zero out: from three seeds on, as for verdicts, and by two images."""
    enough = difference.seeds > 2 and (difference.groups > 1 or groups.number == 1)
    return enough and (difference.single.low > 0 or difference.single.high < 0)


def confusions(matrix: np.ndarray, names: Sequence[str], most: int = 3) -> list[tuple[str, str, float]]:
    """What is taken for what in 1 % or more: the true class, the predicted one, the per cent of the true one's pixels.

    Args:
        matrix: ``(K, K)`` pixels, rows truth.
        names: Of the classes.
        most: How many.

    >>> confusions(np.array([[8, 2], [0, 5]]), ["road", "car"])
    [('road', 'car', 20.0)]
    """
    share = rows(matrix)
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")[:most]
    found = [(int(i) // len(share), int(i) % len(share)) for i in order]
    return [(names[i], names[j], float(share[i, j])) for i, j in found if share[i, j] >= 1]


def rows(matrix: np.ndarray) -> np.ndarray:
    """Counts with rows truth as per cent of each row; zeros for a class that the truth does not show."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
