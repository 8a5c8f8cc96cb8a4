"""Scores of a segmentation, all from one confusion matrix per image.

One matrix an image is what the paired bootstrap of a study needs: matrices are summed over any choice of images, and
the scores follow from the sum.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lookfar._modes import modes_restored
from lookfar._options import choice

if TYPE_CHECKING:
    from lookfar.data import Data, Samples

IGNORE = 255  # label of pixels that count nowhere
SCORES = ("resized", "original")  # at the size that the network sees, or at that of each file
STRIP = 2**24  # logits of a large image that are there at a time


def confusion_matrix(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """One confusion matrix per image.

    Args:
        truth: Labels ``(B, H, W)``; 255 is ignored.
        prediction: Labels ``(B, H, W)``.
        classes: Number of classes K.

    Returns:
        Counts ``(B, K, K)``, int64; rows are the truth, columns the prediction.

    Raises:
        ValueError: Different shapes; a label that belongs to no class.

    >>> confusion_matrix(torch.tensor([[[0, 1, 255]]]), torch.tensor([[[0, 0, 1]]]), classes=2)
    tensor([[[1, 0],
             [1, 0]]])
    """
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise ValueError(f"want truth and prediction (B, H, W), got {tuple(truth.shape)} and {tuple(prediction.shape)}")
    B, K = len(truth), classes
    truth, prediction = truth.flatten(1).long(), prediction.flatten(1).long()  # (B, N)
    valid = truth != IGNORE
    image = torch.arange(B, device=truth.device)[:, None].expand_as(truth)
    t, p = truth[valid], prediction[valid]
    if t.numel() and (bad := torch.stack([t.min(), t.max(), p.min(), p.max()])).numel():
        low, high = int(bad.min()), int(bad.max())
        if low < 0 or high >= K:
            raise ValueError(f"label {low if low < 0 else high} with {K} classes: want 0 to {K - 1}, or {IGNORE}")
    cells = (image[valid] * K + t) * K + p
    return torch.bincount(cells, minlength=B * K * K).reshape(B, K, K)


def scores(confusion: np.ndarray) -> dict[str, Any]:
    """Mean IoU, pixel accuracy and the IoU of each class.

    Args:
        confusion: Counts ``(K, K)``, or ``(images, K, K)`` to be summed; rows are the truth.

    Returns:
        ``miou`` over the classes that the truth shows, ``accuracy``, and ``iou``, a list with None for the other
        classes: a pixel that is predicted as one of them is wrong like any other, and costs no class of its own.
        Without a single labelled pixel ``miou`` and ``accuracy`` are None.

    >>> scores(np.array([[3, 1], [0, 4]]))
    {'miou': 0.775, 'accuracy': 0.875, 'iou': [0.75, 0.8]}
    """
    confusion = np.asarray(confusion)
    if confusion.ndim not in (2, 3) or confusion.shape[-1] != confusion.shape[-2]:
        raise ValueError(f"want a confusion matrix (K, K) or (images, K, K), got {confusion.shape}")
    total = confusion.sum(0) if confusion.ndim == 3 else confusion
    hit = np.diagonal(total)
    truth = total.sum(1)
    iou = [float(h / u) if t else None for h, t, u in zip(hit, truth, total.sum(0) + truth - hit)]
    present = [value for value in iou if value is not None]
    pixels = total.sum()
    return {
        "miou": float(np.mean(present)) if present else None,
        "accuracy": float(hit.sum() / pixels) if pixels else None,
        "iou": iou,
    }


def confusion_at_own_size(logits: Tensor, truth: Tensor) -> Tensor:
    """The confusion matrix of one image whose logits are brought to the size of its truth, ``(K, K)`` int64.

    Bilinear, by the centres of pixels, as ``F.interpolate`` does it; a few rows at a time, since all logits of a large
    image with many classes would fill any memory.

    Args:
        logits: ``(K, h, w)``.
        truth: Labels ``(H, W)``; 255 is ignored.
    """
    K, h, w = logits.shape
    H, W = truth.shape
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    columns, after_column, share_column = _between(w, W, logits)
    rows, after_row, share_row = _between(h, H, logits)
    result = torch.zeros(K, K, dtype=torch.int64, device=logits.device)
    for some in torch.arange(H, device=logits.device).split(max(STRIP // (K * max(w, W)), 1)):
        strip = logits[:, rows[some]].lerp(logits[:, after_row[some]], share_row[some, None])  # (K, some, w)
        strip = strip[..., columns].lerp(strip[..., after_column], share_column)  # (K, some, W)
        result += confusion_matrix(truth[None, some], strip.argmax(0)[None], K)[0]
    return result


def _between(size: int, wanted: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the wanted positions the one before it, the one after it, and how far it is on the way, (wanted,)."""
    centres = torch.arange(wanted, device=like.device, dtype=like.dtype) + 0.5
    at = (centres * (size / wanted) - 0.5).clamp(0, size - 1)
    before = at.long()
    return before, (before + 1).clamp(max=size - 1), at - before


def judge_batch(
    logits: Tensor, masks: Tensor, data: "Data", indices: Sequence[int], score: str = "resized", samples: Any = None
) -> np.ndarray:
    """Confusion matrices of a batch of validation images, ``(B, K, K)`` int64.

    Args:
        logits: ``(B, K, h, w)``.
        masks: Labels ``(B, h, w)``, as the network's size has them.
        data: The data set.
        indices: Which images these are.
        score: One of :data:`SCORES`.
        samples: The set that they are of; by default ``data.val``.
    """
    K = len(data.classes)
    if score == "resized":
        return confusion_matrix(masks.to(logits.device), logits.argmax(1), K).cpu().numpy()
    found = [
        confusion_at_own_size(one, data.own_mask(index, samples).to(logits.device))
        for one, index in zip(logits, indices)
    ]
    return torch.stack(found).cpu().numpy()


def evaluate(
    network: nn.Module,
    data: "Data",
    *,
    batch_size: int = 32,
    precision: str = "32-true",
    score: str = "resized",
    samples: "Samples | None" = None,
    not_finite: list[int] | None = None,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """Confusion matrices of the validation images, ``(images, K, K)`` int64: rows truth, columns prediction.

    Args:
        network: Images to logits; evaluated in eval mode on its own device, then as it was.
        data: The data set.
        batch_size: Images at a time.
        precision: As in :class:`Settings`; the mixed ones run under autocast.
        score: ``resized``: masks are brought to the size that the network sees; ``original``: predictions are brought
            to the size of each file.
        samples: Another set to judge by, as ``data.also_val``; by default ``data.val``.
        not_finite: Takes the images whose logits are not finite.
        rank: Evaluate the images of this process alone; the others' matrices are zero.
        world: Number of processes.

    >>> from lookfar.data import open_data
    >>> from lookfar.networks import build_network
    >>> data = open_data("scenes:lookup")
    >>> evaluate(build_network("small", classes=5), data).shape
    (600, 5, 5)
    """
    choice("score", score, SCORES)
    K = len(data.classes)
    judged = data.val if samples is None else samples
    mine = range(rank, len(judged), world)
    result = np.zeros((len(judged), K, K), dtype=np.int64)
    start = 0
    with modes_restored(network):
        network.eval()
        for images, masks in _val_batches(data, judged, batch_size, rank, world):
            indices = mine[start : start + len(masks)]
            logits = predict(network, images, precision)
            if not_finite is not None:
                not_finite += [index for index, one in zip(indices, logits) if not one.isfinite().all()]
            result[indices] = judge_batch(logits, masks, data, indices, score, judged)
            start += len(masks)
    return result


def predict(network: nn.Module, images: Tensor, precision: str = "32-true") -> Tensor:
    """Logits of a batch, on the network's own device and without gradients; its mode is the caller's to set."""
    parameter = next(network.parameters())
    images = images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
    with torch.no_grad(), _autocast(precision, parameter.device):
        return network(images)


def _val_batches(
    data: "Data", judged: "Samples", batch_size: int, rank: int, world: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if world == 1:
        yield from data.val_batches(batch_size, judged)
        return
    mine = range(rank, len(judged), world)
    for start in range(0, len(mine), batch_size):
        images, masks = zip(*(judged[i] for i in mine[start : start + batch_size]))
        yield data.normalise(torch.stack(images)), torch.stack(masks).long()


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else contextlib.nullcontext()
