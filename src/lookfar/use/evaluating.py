"""A network judged on data: mean IoU at the size of the files, by one confusion matrix over all images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookfar._options import choice
from lookfar._tables import listed
from lookfar.use.opening import Opened

if TYPE_CHECKING:
    from lookfar.data import Data

SCORES = ("training", "original")  # as a trial was judged, or at the size of each file


@dataclass(frozen=True)
class Evaluation:
    """How a network did.

    Attributes:
        confusion: Pixels ``(K, K)`` of all images, rows truth.
        classes: Names of the classes.
        images: How many there were.
        data: What they were of, as the user wrote it.
        network: As the user called it.
        score: At which size: ``of the files``, or as a trial was judged.
        published: The figure that the network was published with, in a sentence.
        notes: What else the reader should know.
    """

    confusion: NDArray
    classes: tuple[str, ...]
    images: int
    data: str
    network: str
    score: str
    published: str = ""
    notes: tuple[str, ...] = ()

    @property
    def absent(self) -> list[str]:
        """Classes that no mask shows: they are left out of the mean."""
        return [name for name, truth in zip(self.classes, self.confusion.sum(1)) if not truth]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; scores are shares."""
        from lookfar.tasks.segmentation import scores

        found = scores(self.confusion)
        return {
            "network": self.network,
            "data": self.data,
            "images": self.images,
            "score": self.score,
            "miou": found["miou"],
            "accuracy": found["accuracy"],
            "iou": dict(zip(self.classes, found["iou"])),
            "absent": self.absent,
            "published": self.published or None,
            "notes": list(self.notes),
            "confusion": self.confusion.tolist(),
        }

    def __str__(self) -> str:
        from lookfar._tables import table
        from lookfar.tasks.segmentation import scores

        found = scores(self.confusion)
        truth = self.confusion.sum(1)
        rows = [
            [name, None if iou is None else f"{100 * iou:.2f}", f"{100 * share:.2f}"]
            for name, iou, share in zip(self.classes, found["iou"], truth / max(truth.sum(), 1))
        ]
        cells = [[cell if cell is not None else "–" for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [["class", "IoU, %", "pixels, %"], *cells]) for i in (1, 2)]
        cells = [[name, iou.rjust(widths[0]), share.rjust(widths[1])] for name, iou, share in cells]
        miou, accuracy = found["miou"], found["accuracy"]
        lines = [table(["class", "IoU, %".rjust(widths[0]), "pixels, %".rjust(widths[1])], cells), ""]
        if miou is None:
            lines.append("no labelled pixel: there is no score")
        else:
            of = f"{self.images} image{'s' * (self.images != 1)} of {self.data}, {self.score}"
            lines.append(f"mIoU {100 * miou:.2f} %, accuracy {100 * accuracy:.2f} %: {of}")
        if self.absent:
            lines.append(f"left out of the mean, since no mask shows them: {listed(self.absent, 12)}")
        if self.published:
            lines.append(f"published: {self.published}")
        return "\n".join([*lines, *self.notes])


def evaluate(
    opened: Opened,
    data: "Data",
    *,
    score: str = "original",
    done: Callable[[int], None] = lambda index: None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Evaluation:
    """Predict every image of ``data.val`` and count its pixels.

    Args:
        opened: The network.
        data: With as many classes, in the same order.
        score: ``original``: at the size of each file; ``training``: as the trial was judged while it was trained.
        done: Called with the number of images so far.
        notes: Of the evaluation, for the reader.
        **options: Of :func:`lookfar.networks.predict`.

    Raises:
        ValueError: Other classes, or the same in another order; other bands; ``training`` of what is no trial.
    """
    choice("score", score, SCORES)
    different = check_classes(opened, data.classes)
    if score == "training":
        if opened.trial is None:
            raise ValueError("score 'training' is for the trial of a study: others have none, want 'original'")
        if options:
            raise ValueError(f"{', '.join(options)}: a trial is judged as it was trained; score 'original' takes them")
        confusion, how = _as_trained(opened, data)
    else:
        confusion, how = _at_own_size(opened, data, options, done), "at the size of the files"
    said = (*notes, *different)
    source = opened.source
    return Evaluation(confusion, opened.classes, len(data.val), data.name, source, how, opened.published, said)


def _at_own_size(opened: Opened, data: "Data", options: dict[str, Any], done: Callable[[int], None]) -> NDArray:
    from lookfar.networks import predict
    from lookfar.tasks.confusion import confusion_matrix

    K = len(opened.classes)
    total = np.zeros((K, K), np.int64)
    for index in range(len(data.val)):
        labels = predict(opened.network, data.own_image(index), **options)
        total += confusion_matrix(data.own_target(index)[None], labels[None], K)[0].numpy()
        done(index + 1)
    return total


def _as_trained(opened: Opened, data: "Data") -> tuple[NDArray, str]:
    """By the same code, in batches of the same size."""
    from lookfar.study._files import read_json
    from lookfar.study.plan import Plan
    from lookfar.training import evaluate as judge

    assert opened.trial is not None
    plan = Plan.from_dict(read_json(opened.trial / "config.json")["plan"])
    settings = plan.settings()
    task = plan.find_task(opened.trial.resolve().parents[2])
    how = {"batch_size": settings.batch_size, "precision": settings.precision, "score": settings.score}
    network = opened.network.double() if settings.precision == "64-true" else opened.network
    judged = judge(network, data, task, **how)
    size = "at the size of the files" if settings.score == "original" else f"at {data.size[0]}×{data.size[1]}"
    return judged["confusion"].sum(0), f"{size}, as it was trained"


def check_classes(opened: Opened, classes: Sequence[str]) -> list[str]:
    """Refuse other classes, or an order of their own; lines on names that differ otherwise.

    Raises:
        ValueError: What differs.
    """
    K = len(opened.classes)
    if len(classes) != K:
        raise ValueError(f"{opened.source} has {K} classes, the data have {len(classes)}: {listed(classes, 6)}")
    if not opened.named or all(re.fullmatch(r"class \d+", name) for name in classes):
        return []
    ours, theirs = ([re.sub(r"[^a-z0-9]", "", name.lower()) for name in names] for names in (opened.classes, classes))
    moved = [n for n, name in enumerate(theirs) if name != ours[n] and name in ours]
    if moved:
        n = moved[0]
        raise ValueError(
            f"the classes stand in another order: {n} is {opened.classes[n]} in the network, {classes[n]} in the data, "
            f"whose place in the network is {ours.index(theirs[n])}"
        )
    other = [f"{n} {opened.classes[n]} / {classes[n]}" for n in range(K) if ours[n] != theirs[n]]
    return [f"names of classes differ (network / data): {listed(other, 6)}"] if other else []
