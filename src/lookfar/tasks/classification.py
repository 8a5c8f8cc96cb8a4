"""Classification: every image one of K classes, judged by how many are named right, or by that of every class alike.

Of every image the class it has and the one it is given are kept, never a matrix: with 1000 classes and 50 000 images
those would fill 400 GB. What is taken for what is a sum over both.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lookfar._options import NotNegative, Share, check, choice
from lookfar.tasks._base import Host, Judged, Task, Words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data

TOP = 5  # guesses that the further column has; it stands where there are more than twice as many classes
BINS = 15  # of the calibration error
UNEVEN = 3.0  # the largest class has so many times the samples of the smallest: accuracy says little of the small ones
COLUMNS = {
    "accuracy": "accuracy, %",
    "balanced": "balanced accuracy, %",
    "top5": "top-5, %",
    "nll": "NLL",
    "ece": "ECE, %",
}
KEPT = {  # of every image, by name, and the kinds of numbers that these are
    "classes": "iu",  # how many there are to choose from
    "truth": "iu",
    "prediction": "iu",
    "log_probability": "f",  # of the truth
    "confidence": "f",  # probability of the prediction
    "top5": "iu",  # whether the truth is among the five likeliest
}


class Classification(Task):
    """Images ``(B, C, ...)`` to logits ``(B, K)``.

    Args:
        metric: ``accuracy``, the share of images that are named right, or ``balanced``, its mean over the classes that
            the validation images show, which counts rare classes like common ones.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Two images are laid over each other in shares drawn from Beta(mixup, mixup); 0: they are not.
        cutmix: A rectangle of another image is pasted in, its share drawn likewise; with both, either by a coin.

    The further columns: accuracy within five guesses, of more than ten classes; the mean negative log-likelihood of the
    truth; the expected calibration error, which is the mean difference between confidence and accuracy in 15 equally
    wide bins of the confidence, weighted by their images; balanced accuracy, where the largest class has over three
    times the images of the smallest.

    Mixup and CutMix are timm's, one pair of shares a batch (Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019,
    arXiv:1905.04899); a batch is mixed with itself backwards, so it needs an even number of images.

    Raises:
        ValueError: A value that the task cannot take.

    >>> Classification(metric="balanced").words.title
    'balanced accuracy, %'
    """

    name = "classification"
    metric = "accuracy"
    words = Words(
        score="accuracy",
        unit=" %",
        of_class="class accuracy",
        amount="images",
        blind="always naming the commonest class",
    )
    target = "class"
    columns: ClassVar[Mapping[str, str]] = {k: v for k, v in COLUMNS.items() if k != "accuracy"}
    note = (
        "NLL is the mean negative log-likelihood of the truth, ECE the expected calibration error: how far "
        f"confidence is from accuracy, on average over {BINS} equally wide bins of it. Of both less is better."
    )
    scale = 100.0
    by_own = True

    def __init__(
        self, *, metric: str = "accuracy", label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        choice("metric", metric, ("accuracy", "balanced"))
        check("label_smoothing", label_smoothing, Share)
        check("mixup", mixup, NotNegative)
        check("cutmix", cutmix, NotNegative)
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        if metric == "balanced":
            self.metric = metric  # type: ignore[misc]
            self.words = Words(  # type: ignore[misc]
                score="balanced accuracy",
                unit=" %",
                of_class="class accuracy",
                amount="images",
                blind="always naming one class",
            )
            self.columns = {k: v for k, v in COLUMNS.items() if k != "balanced"}  # type: ignore[misc]

    # ---- learning ----

    def host(self, wanted: Host, data: "Data") -> "nn.Module":
        """A backbone with pooling and a linear classifier; of the user's own, logits or features."""
        from lookfar.networks import build_classifier, build_own_classifier

        if wanted.width != Host.width:
            raise ValueError(f"width is that of a head for maps, which a classification has not: got {wanted.width}")
        options: dict[str, Any] = {"in_chans": data.in_chans, "size": data.size}
        options |= {"pretrained": wanted.pretrained, "weights": wanted.weights}
        if wanted.own is not None:
            return build_own_classifier(wanted.own, len(data.classes), **options)
        return build_classifier(wanted.name, len(data.classes), output_stride=wanted.output_stride, **options)

    def learn(
        self, network: "nn.Module", inputs: "Tensor", targets: "Tensor", weights: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """The loss of a batch, which is mixed before where the task says so.

        What is mixed, and how, is drawn from numpy's generator, whose state is a function of seed and step.
        """
        if not (self.mixup or self.cutmix):
            return self.loss(network(inputs), targets, weights)
        return self._mixed_loss(network, inputs, targets, weights)

    def loss(self, output: "Tensor", targets: "Tensor", weights: "Tensor | None") -> "tuple[Tensor, Tensor]":
        """Cross-entropy; images count by the weight of their class."""
        from torch.nn import functional as F

        total = F.cross_entropy(output, targets, weights, reduction="sum", label_smoothing=self.label_smoothing)
        return total, self._count(output, targets, weights)

    def _count(self, output: "Tensor", targets: "Tensor", weights: "Tensor | None") -> "Tensor":
        return output.new_tensor(len(targets)) if weights is None else weights[targets].sum()

    def _mixed_loss(
        self, network: "nn.Module", inputs: "Tensor", targets: "Tensor", weights: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        import torch
        from timm.data.mixup import Mixup
        from torch.nn import functional as F

        B = len(inputs)
        # each image as a class of its own: the shares of the images in what comes out, whatever their classes
        mix = Mixup(mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, label_smoothing=0.0, num_classes=B)
        inputs, shares = mix(inputs.clone(), torch.arange(B, device=inputs.device))
        output = network(inputs)
        soft = (shares @ F.one_hot(targets, output.shape[1]).to(shares)).to(output.dtype)
        total = F.cross_entropy(output, soft, weights, reduction="sum", label_smoothing=self.label_smoothing)
        return total, self._count(output, targets, weights)  # mixing gives each image away once, and takes one

    def check_weights(self, weights: tuple[float, ...], data: "Data") -> None:
        """One for each class."""
        if len(weights) != len(data.classes):
            raise ValueError(f"{len(weights)} class_weights for {len(data.classes)} classes")

    def check_batch(self, size: int) -> None:
        """An even number, where images are mixed."""
        if (self.mixup or self.cutmix) and size % 2:
            raise ValueError(
                f"mixup and cutmix lay pairs of images over each other: want an even batch_size, got {size}"
            )

    # ---- judging ----

    def judge(self, output: "Tensor", targets: "Iterable[Tensor]") -> "Mapping[str, Tensor]":
        """Numbers of every image ``(B,)``, see ``KEPT``."""
        import torch

        truth = torch.as_tensor(targets)
        logits = output.to(torch.promote_types(output.dtype, torch.float32))
        log_p = logits.log_softmax(1)
        confidence, prediction = log_p.max(1)
        likeliest = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        within = (likeliest == truth[:, None]).any(1) | (prediction == truth)
        return {
            "classes": torch.full_like(truth, logits.shape[1], dtype=torch.int32),
            "truth": truth.int(),
            "prediction": prediction.int(),
            "log_probability": log_p.gather(1, truth[:, None])[:, 0],
            "confidence": confidence.exp(),
            "top5": within.int(),
        }

    def show(self, output: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor]":
        """Two labels."""
        return target, output.argmax(0)

    def fits(self, judged: Judged, samples: int | None = None, classes: int | None = None) -> bool:
        """Numbers of as many images, their labels within the classes."""
        if set(judged) != set(KEPT) or not super().fits(judged, samples):
            return False
        if any(array.ndim != 1 or array.dtype.kind not in KEPT[name] for name, array in judged.items()):
            return False
        K = int(judged["classes"][0])
        labels = np.concatenate([judged["truth"], judged["prediction"]])
        of_all = (judged["classes"] == K).all() and classes in (None, K)
        return bool(of_all and labels.min() >= 0 and labels.max() < K)

    def scores(self, judged: Judged) -> dict[str, Any]:
        """``accuracy``, ``balanced``, ``top5``, ``ece`` and ``class accuracy`` as shares, and ``nll``.

        None where there is no such number: of a class that no image shows, and of outputs that are not finite.
        """
        facts = self.facts(judged)
        truth, hit = facts[:, TRUTH].astype(int), facts[:, TRUTH] == facts[:, PREDICTION]
        K = self.classes(facts)
        images = np.bincount(truth, minlength=K)
        of_class = np.bincount(truth, hit, minlength=K) / np.maximum(images, 1)
        found = {
            "accuracy": float(hit.mean()),
            "balanced": float(of_class[images > 0].mean()),
            "top5": float(facts[:, WITHIN].mean()) if K > 2 * TOP else None,
            "nll": _finite(-facts[:, LOG_P].mean()),
            "ece": _finite(calibration_error(hit, facts[:, CONFIDENCE])),
        }
        return found | {self.words.of_class: [float(a) if n else None for a, n in zip(of_class, images)]}

    # ---- what statistics ask ----

    def facts(self, judged: Judged) -> np.ndarray:
        """``(S, 6)``: what is kept, in its order."""
        return np.stack([judged[name].astype(np.float64) for name in KEPT], 1)

    def score(self, facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Accuracy in per cent, or its mean over the classes that a set shows."""
        hit = (facts[:, TRUTH] == facts[:, PREDICTION]).astype(np.float64)
        if self.metric == "balanced":
            return balanced_accuracy(facts[:, TRUTH], hit, weights)
        return _ratio(100 * weights @ hit, weights.sum(1))

    def further(self, facts: np.ndarray) -> dict[str, float]:
        """In the unit of the tables; see the class."""
        everything, of_class = np.ones((1, len(facts))), np.bincount(facts[:, TRUTH].astype(int))
        hit = facts[:, TRUTH] == facts[:, PREDICTION]
        shown = of_class[of_class > 0]
        uneven = shown.max() > UNEVEN * shown.min()
        found = {
            "accuracy": float(100 * hit.mean()),
            "balanced": float(balanced_accuracy(facts[:, TRUTH], hit, everything)[0]) if uneven else np.nan,
            "top5": float(100 * facts[:, WITHIN].mean()) if self.classes(facts) > 2 * TOP else np.nan,
            "nll": float(-facts[:, LOG_P].mean()),
            "ece": 100 * calibration_error(hit, facts[:, CONFIDENCE]),
        }
        return {name: found[name] for name in self.columns}

    def blind(self, facts: np.ndarray) -> float:
        """The share of the commonest class; of the mean over classes that of one."""
        images = np.bincount(facts[:, TRUTH].astype(int))
        if self.metric == "balanced":
            return float(100 / (images > 0).sum())
        return float(100 * images.max() / images.sum())

    def classes(self, facts: np.ndarray) -> int:
        """Those that there are to choose from, whether images show them or not."""
        return int(facts[0, CLASSES])

    def truth(self, facts: np.ndarray, k: int) -> np.ndarray:
        """1 for the images of the class."""
        return (facts[:, TRUTH] == k).astype(np.float64)

    def of_class(self, facts: np.ndarray, k: int) -> np.ndarray:
        """Those of the images of the class."""
        return facts[facts[:, TRUTH] == k]

    def confusion(self, judged: Judged) -> np.ndarray:
        """Images of each class by what they are taken for."""
        K = int(judged["classes"][0])
        cells = judged["truth"].astype(np.int64) * K + judged["prediction"]
        return np.bincount(cells, minlength=K * K).reshape(K, K)


CLASSES, TRUTH, PREDICTION, LOG_P, CONFIDENCE, WITHIN = range(len(KEPT))  # columns of the facts


def balanced_accuracy(truth: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean accuracy in per cent over the classes that a weighted set of images shows.

    Args:
        truth: Labels ``(S,)``.
        hit: Whether they are named right, ``(S,)``.
        weights: Of R sets, ``(R, S)``.

    Returns:
        ``(R,)``; nan for an empty set.

    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 0]), np.ones((1, 4))).round(1)
    array([33.3])
    """
    if not len(truth):
        return np.full(len(weights), np.nan)
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=np.nan))
    weights = weights[:, order]
    images = np.add.reduceat(weights, starts, axis=1)  # (R, classes)
    hits = np.add.reduceat(weights * hit[order], starts, axis=1)
    shown = images > 0
    accuracy = np.divide(hits, images, out=np.zeros_like(hits), where=shown)
    return _ratio(100 * accuracy.sum(1), shown.sum(1))


def calibration_error(hit: np.ndarray, confidence: np.ndarray) -> float:
    """The expected calibration error as a share: |accuracy - mean confidence| in equally wide bins of the confidence.

    Args:
        hit: Whether each image is named right, ``(S,)``.
        confidence: Probability of what it is called, ``(S,)``, in (0, 1].

    Reference: Guo et al. 2017, arXiv:1706.04599, with its 15 bins; each holds its upper end.

    >>> round(calibration_error(np.array([1, 0]), np.array([0.9, 0.9])), 3)
    0.4
    """
    if not np.isfinite(confidence).all():
        return float("nan")
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, hit - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(hit))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
