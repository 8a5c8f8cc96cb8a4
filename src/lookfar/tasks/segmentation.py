"""Segmentation: every pixel one of K classes, judged by mean IoU over the classes that the validation masks show.

The truth decides which classes count, the same for all candidates, seeds and resamples: a class that no mask shows has
no IoU, so one stray pixel of it costs what one wrong pixel costs. A set of images that lacks a class leaves it out.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lookfar.tasks._base import Host, Judged, Task, Words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data


class Segmentation(Task):
    """Images ``(B, C, H, W)`` to logits ``(B, K, H, W)``; 255 in a mask counts nowhere."""

    name = "segmentation"
    metric = "miou"
    words = Words(
        score="mIoU",
        unit=" %",
        long="mean IoU",
        of_class="IoU",
        amount="pixels",
        blind="always naming the commonest class",
    )
    target = "mask"
    columns: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy, %"}
    scale = 100.0
    original = True
    file = "confusion"

    def host(self, wanted: Host, data: "Data") -> "nn.Module":
        """A backbone with a head for labels of pixels; of the user's own, logits or feature maps."""
        from lookfar.networks import build_network, build_own
        from lookfar.networks.creating import is_network

        options: dict[str, Any] = {"in_chans": data.in_chans, "width": wanted.width}
        options |= {"pretrained": wanted.pretrained, "weights": wanted.weights}
        if wanted.own is not None:
            return build_own(wanted.own, len(data.classes), size=data.size, **options)
        if is_network(wanted.name):
            return _published(wanted, data)
        return build_network(wanted.name, len(data.classes), output_stride=wanted.output_stride or 8, **options)

    def learn(
        self, network: "nn.Module", inputs: "Tensor", targets: "Tensor", weights: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """The loss, and those of further logits that a network gives in training, times its ``auxiliary_weights``."""
        output: Any = network(inputs)
        total, count = self.loss(getattr(output, "logits", output), targets, weights)
        shares: Any = getattr(network, "auxiliary_weights", ())
        for share, further in zip(shares, getattr(output, "auxiliary", ())):
            total = total + share * self.loss(further, targets, weights)[0]
        return total, count

    def loss(self, output: "Tensor", targets: "Tensor", weights: "Tensor | None") -> "tuple[Tensor, Tensor]":
        """Cross-entropy over the labelled pixels."""
        from torch.nn import functional as F

        from lookfar.data import IGNORE

        total = F.cross_entropy(output, targets, weights, ignore_index=IGNORE, reduction="sum")
        labelled = targets != IGNORE
        return total, labelled.sum() if weights is None else weights[targets[labelled]].sum()

    def check_weights(self, weights: tuple[float, ...], data: "Data") -> None:
        """One for each class."""
        if len(weights) != len(data.classes):
            raise ValueError(f"{len(weights)} class_weights for {len(data.classes)} classes")

    def judge(self, output: "Tensor", targets: "Iterable[Tensor]") -> "Mapping[str, Tensor]":
        """One confusion matrix an image, ``(B, K, K)`` int64, rows truth: of masks as large as the logits, or not."""
        import torch

        from lookfar.tasks.confusion import confusion_at_own_size, confusion_matrix

        if isinstance(targets, torch.Tensor):
            matrices = confusion_matrix(targets, output.argmax(1), output.shape[1])
        else:
            matrices = torch.stack([confusion_at_own_size(one, mask) for one, mask in zip(output, targets)])
        return {"confusion": matrices}

    def show(self, output: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor]":
        """Maps of labels."""
        return target, output.argmax(0)

    def fits(self, judged: Judged, samples: int | None = None, classes: int | None = None) -> bool:
        """Square matrices of counts of which some are not zero."""
        confusion = judged.get("confusion")
        if confusion is None or confusion.ndim != 3 or confusion.dtype.kind not in "iu" or not confusion.size:
            return False
        K = classes or confusion.shape[1]
        wanted = (samples or len(confusion), K, K)
        return confusion.shape == wanted and bool(confusion.min() >= 0) and bool(confusion.any())

    def scores(self, judged: Judged) -> dict[str, Any]:
        """``miou``, ``accuracy`` and ``iou``, as shares; see :func:`scores`."""
        return scores(judged["confusion"])

    def facts(self, judged: Judged) -> np.ndarray:
        """Counts of every image, see :func:`counts_of`: with many classes a hundredth of the matrices."""
        return counts_of(judged["confusion"])

    def score(self, facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Mean IoU in per cent."""
        return mean_iou(facts, weights)

    def further(self, facts: np.ndarray) -> dict[str, float]:
        """The share of labelled pixels that are right."""
        return {"accuracy": accuracy(facts)}

    def blind(self, facts: np.ndarray) -> float:
        """Mean IoU of always naming the commonest class."""
        return commonest_class(facts)

    def classes(self, facts: np.ndarray) -> int:
        """Those of the matrices."""
        return facts.shape[-1]

    def truth(self, facts: np.ndarray, k: int) -> np.ndarray:
        """Pixels of the class."""
        return facts[:, 1, k]

    def of_class(self, facts: np.ndarray, k: int) -> np.ndarray:
        """Counts that hold no other class, whose mean IoU is that of the class."""
        return facts[:, :, k : k + 1]

    def confusion(self, judged: Judged) -> np.ndarray:
        """Pixels of each class by what they are taken for."""
        return judged["confusion"].astype(np.int64).sum(0)


def _published(wanted: Host, data: "Data") -> "nn.Module":
    """A published network by its name, as a host."""
    from lookfar.networks import create_network
    from lookfar.networks.creating import fixes_stride
    from lookfar.networks.segmentation import load_backbone

    options: dict[str, Any] = {"in_chans": data.in_chans, "pretrained": wanted.pretrained}
    if not fixes_stride(wanted.name):
        options["output_stride"] = wanted.output_stride or 8
    network: Any = create_network(wanted.name, len(data.classes), **options)
    if wanted.weights is not None:
        if not hasattr(network, "backbone"):
            raise ValueError(f"host_weights are for a backbone, and {wanted.name} has none")
        load_backbone(network.backbone, wanted.weights)
    return network


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
