"""What other seeds (training again) and other samples (validating on others) do to scores."""

import math

import numpy as np


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


def sample_degrees(draws: np.ndarray, drawn: np.ndarray | None, groups: int) -> float:
    """Degrees of freedom of the samples' part: fewer than groups - 1 where a few groups decide.

    A score follows the number of times that each group is drawn about linearly; the slopes are the groups' influences
    u. The relative variance of their sum of squares is kappa - 1 over G with kappa their kurtosis, and that of a chi
    squared over its f degrees is 2 / f. One large image among small ones leaves few.

    Args:
        draws: ``(C, S, R)``, differences or scores.
        drawn: ``(R, G)``, how often each draw holds each group.
        groups: Of samples, at least 2.
    """
    if drawn is None or 2 * drawn.shape[1] > len(drawn):
        return groups - 1  # so many that a few decide nothing
    influence = draws.mean(1) @ (drawn - drawn.mean(0))  # (C, G), but for a factor
    influence -= influence.mean(1, keepdims=True)
    squares = (influence**2).sum(1)
    some = squares > 0
    if not some.any():
        return groups - 1
    share = float(((influence[some] ** 4).sum(1) / squares[some] ** 2).mean())  # kappa / G; 3 / (G + 2) for normal ones
    return math.floor(10 * min(2 / max(share - 1 / groups, 1e-9), groups - 1)) / 10


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
