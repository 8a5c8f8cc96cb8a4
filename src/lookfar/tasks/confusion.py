"""Confusion matrices of labelled maps, one for each image, of logits at any size.

One matrix an image is what the paired bootstrap of a study needs: matrices are summed over any choice of images, and
the scores follow from the sum.
"""

import torch
from torch import Tensor

from lookfar.data import IGNORE
from lookfar.networks.resizing import between

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
    columns, after_column, share_column = between(w, W, False, logits)
    rows, after_row, share_row = between(h, H, False, logits)
    result = torch.zeros(K, K, dtype=torch.int64, device=logits.device)
    for some in torch.arange(H, device=logits.device).split(max(STRIP // (K * max(w, W)), 1)):
        strip = logits[:, rows[some]].lerp(logits[:, after_row[some]], share_row[some, None])  # (K, some, w)
        strip = strip[..., columns].lerp(strip[..., after_column], share_column)  # (K, some, W)
        result += confusion_matrix(truth[None, some], strip.argmax(0)[None], K)[0]
    return result
