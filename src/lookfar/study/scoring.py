"""The score of a segmentation: mean IoU of weighted sets of images, over the classes that the validation masks show.

The truth decides which classes count, the same for all candidates, seeds and resamples: a class that no mask shows has
no IoU, so one stray pixel of it costs what one wrong pixel costs. A set of images that lacks a class leaves it out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def load_counts(path: Path) -> np.ndarray:
    """What IoU needs of a file's ``confusion`` (images, K, K), rows truth: :func:`counts_of`, (images, 3, K)."""
    with np.load(path, allow_pickle=False) as file:
        confusion = file["confusion"]
    return counts_of(confusion)


def sum_confusion(paths: Sequence[Path]) -> np.ndarray:
    """``confusion`` (images, K, K) of files, summed over images and files: (K, K), rows truth."""
    total = 0
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            total = total + file["confusion"].astype(np.int64).sum(0)
    return np.asarray(total)


def counts_of(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) with rows truth -> (..., 3, K): hits, pixels of the class, pixels predicted as the class."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(-1), confusion.sum(-2)], -2).astype(np.float64)


def mean_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean IoU in per cent of R weighted sets of images.

    Args:
        counts: ``(images, 3, K)``.
        weights: ``(R, images)``.

    Returns:
        ``(R,)``; nan for a set without a labelled pixel.
    """
    iou = iou_of(counts, weights)
    shown = ~np.isnan(iou)
    mean = np.full(len(iou), np.nan)
    np.divide(np.where(shown, iou, 0).sum(1), shown.sum(1), out=mean, where=shown.any(1))
    return mean


def iou_of(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """IoU in per cent of each class ``(R, K)``, nan where the truth of the set does not show it."""
    images, _, K = counts.shape
    hits, truth, predicted = np.moveaxis((weights @ counts.reshape(images, 3 * K)).reshape(-1, 3, K), 1, 0)
    iou = np.full(hits.shape, np.nan)
    # the union is at least the truth
    np.divide(100 * hits, truth + predicted - hits, out=iou, where=truth > 0)
    return iou


def accuracy(counts: np.ndarray) -> float:
    """Share of labelled pixels that are right, in per cent; nan without any."""
    hits, truth, _ = counts.sum((0, 2))
    return float(100 * hits / truth) if truth else float("nan")


def commonest_class(counts: np.ndarray) -> float:
    """Mean IoU in per cent of always naming the commonest class."""
    truth = counts[:, 1].sum(0)
    return float(100 * truth.max() / truth.sum() / (truth > 0).sum()) if truth.any() else float("nan")
