"""What the tables of a study hold: an interval, a trial's row, a candidate's row. In percentage points of mIoU."""

from dataclasses import dataclass
from typing import Literal

from lookfar.study.words import counted, plus_minus

Verdict = Literal["", "better", "worse", "no difference"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % half-width.

    Attributes:
        mean: In percentage points.
        half: ``t(0.975, S - 1) sqrt(seed_sd^2 / S + image_variance)``. With one seed the normal quantile times the
            image part alone: how other initialisations would have fared is not in it.
        seeds: S.
        seed_sd: Standard deviation over seeds; nan with one.
        image_variance: Bootstrap variance over validation images of the mean over seeds.
    """

    mean: float
    half: float
    seeds: int
    seed_sd: float
    image_variance: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def seed_noise_measured(self) -> bool:
        return self.seeds > 1

    def __str__(self) -> str:
        return f"{plus_minus(self.mean, self.half)} ({counted(self.seeds, 'seed')})"


@dataclass(frozen=True)
class Trial:
    """One candidate under one seed, a row of ``results.csv``. ``miou_off`` is with the block switched off."""

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
    folder: str = ""


@dataclass(frozen=True)
class Summary:
    """One candidate over its seeds, a row of the table. What could not be measured is None.

    ``difference`` is to the baseline, ``over_control`` to the control: what is not explained by parameters alone.
    """

    candidate: str
    done: int
    failed: int
    reason: str
    miou: Interval | None
    difference: Interval | None
    verdict: Verdict
    sentence: str
    miou_off: float | None
    accuracy: float | None
    iou: tuple[float | None, ...]
    parameters: int | None
    flops: float | None
    latency_ms: float | None
    memory_mb: float | None
    seconds: float | None
    over_control: Interval | None = None
