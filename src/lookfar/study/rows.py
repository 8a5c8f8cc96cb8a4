"""What the tables of a study hold: a trial's row and a candidate's row. In percentage points of mIoU."""

from dataclasses import dataclass
from typing import Literal

from lookfar.study.comparisons import Difference
from lookfar.study.intervals import Interval
from lookfar.study.prospects import Once
from lookfar.study.verdicts import Word


@dataclass(frozen=True)
class Trial:
    """One candidate under one seed, a row of ``results.csv``.

    ``miou_off`` is with the block switched off, ``contribution`` what the block adds at the end of training, as a share
    of its input.
    """

    candidate: str
    seed: int
    status: Literal["done", "failed", "missing"]
    reason: str = ""
    miou: float | None = None
    accuracy: float | None = None
    iou: tuple[float | None, ...] = ()
    miou_off: float | None = None
    parameters: int | None = None
    flops: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    seconds: float | None = None
    step: int | None = None
    contribution: float | None = None
    folder: str = ""


@dataclass(frozen=True)
class Summary:
    """One candidate over its seeds, a row of the table. What could not be measured is None or empty.

    Attributes:
        candidate: Its name.
        done: Number of its finished trials.
        failed: Number of those that failed.
        reason: Why the first one failed.
        miou: Mean over seeds.
        difference: To the baseline.
        verdict: On the difference, in a word.
        short: The verdict for a cell of a table.
        sentence: The verdict in a sentence without its subject.
        miou_off: Mean with the block switched off.
        accuracy: Mean share of pixels that are right.
        iou: Mean of each class; None for one that the validation masks do not show.
        parameters: Of the whole network.
        flops: Of one image.
        latency_ms: Of one image, median.
        memory_mb: Peak memory, median.
        seconds: Of training, mean.
        control: The control of its size.
        over_control: Difference to the control: what is not explained by parameters alone.
        against_control: The same in words.
        once: What it means for whoever trains once.
        trained_once: The same in words.
        came_in: Says so where the block added next to nothing at the end of training.
    """

    candidate: str
    done: int
    failed: int
    reason: str
    miou: Interval | None
    difference: Difference | None
    verdict: Word | Literal[""]
    short: str
    sentence: str
    miou_off: float | None
    accuracy: float | None
    iou: tuple[float | None, ...]
    parameters: int | None
    flops: float | None
    latency_ms: float | None
    memory_mb: float | None
    seconds: float | None
    control: str | None = None
    over_control: Difference | None = None
    against_control: str = ""
    once: Once | None = None
    trained_once: str = ""
    came_in: str = ""

    @property
    def said(self) -> str:
        """All that is concluded about it, the same on the terminal and in the report."""
        first = self.sentence
        if self.verdict == "better" and self.against_control:
            first += f", {self.against_control}"
        parts = [first, self.trained_once and f"it {self.trained_once}", self.came_in and f"it {self.came_in}"]
        return " ".join(
            f"{part[0].upper() if at else part[0]}{part[1:]}." for at, part in enumerate(filter(None, parts))
        )
