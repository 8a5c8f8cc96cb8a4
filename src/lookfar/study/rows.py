"""What the tables of a study hold: a trial's row and a candidate's row. Scores in the unit of their task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lookfar.study.comparisons import Difference
from lookfar.study.intervals import Interval
from lookfar.study.latency import Latency
from lookfar.study.prospects import Once
from lookfar.study.told import Told
from lookfar.study.verdicts import Word
from lookfar.study.words import capital


@dataclass(frozen=True)
class Without:
    """The score of a trained network whose block has to do without something; None where that is not known.

    Attributes:
        mean: Every query has the mean of its image's maps.
        uniform: Every query weighs all keys that it may see alike.
        other: Every query has the map that it has in another image.
        pairwise: The maps of a softmax of dot products without what is the same for every query.
        unary: Every query has the one map of that part alone.
        constant: The block adds the same vector everywhere, what it adds on average.
        off: The block adds nothing.
        reason: Why there are no maps to replace; empty where there are.
    """

    mean: float | None = None
    uniform: float | None = None
    other: float | None = None
    pairwise: float | None = None
    unary: float | None = None
    constant: float | None = None
    off: float | None = None
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return any(value is not None for name, value in vars(self).items() if name != "reason")


@dataclass(frozen=True)
class Trial:
    """One candidate under one seed, a row of ``results.csv``.

    ``further`` holds the task's further columns, ``of_class`` the score of each class, ``without`` what remains when
    the block has to do without something; ``contribution`` is what it adds at the end of training, as a share of its
    input, ``block_memory_mb`` the peak of the block alone; ``replaces`` a layer in the place of a convolution.
    """

    candidate: str
    seed: int
    status: Literal["done", "failed", "missing"]
    reason: str = ""
    score: float | None = None
    further: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    of_class: tuple[float | None, ...] = ()
    without: Without = Without()
    parameters: int | None = None
    flops: float | None = None
    memory_mb: float | None = None
    block_memory_mb: float | None = None
    seconds: float | None = None
    step: int | None = None
    contribution: float | None = None
    folder: str = ""
    replaces: bool = False


@dataclass(frozen=True)
class Summary:
    """One candidate over its seeds, a row of the table. What could not be measured is None or empty.

    Attributes:
        candidate: Its name.
        done: Number of its finished trials.
        failed: Number of those that failed.
        reason: Why the first one failed.
        score: Mean over seeds.
        difference: To the baseline.
        verdict: On the difference, in a word.
        short: The verdict for a cell of a table.
        sentence: The verdict in a sentence without its subject.
        without: What remains when the block has to do without something, means over seeds.
        further: Means of the task's further columns.
        of_class: Mean of each class; None for one that the validation samples do not show.
        parameters: Of the whole network.
        flops: Of one image.
        latency: Of one image, measured alone after the last trial.
        memory_mb: Peak memory of the whole network on one image, median.
        block_memory_mb: That of the block alone.
        seconds: Of training, mean.
        control: The control of its size.
        over_control: Difference to the control: what is not explained by parameters alone.
        against_control: The same in words.
        once: What it means for whoever trains once.
        trained_once: The same in words.
        came_in: Says so where the block added next to nothing at the end of training.
        off_and_constant: What remains without the block and with a constant in its place, in words.
        told: What could take the block's place in the trained networks; None for references, and where it is not known.
    """

    candidate: str
    done: int
    failed: int
    reason: str
    score: Interval | None
    difference: Difference | None
    verdict: Word | Literal[""]
    short: str
    sentence: str
    without: Without
    further: Mapping[str, float | None] = field(hash=False)
    of_class: tuple[float | None, ...]
    parameters: int | None
    flops: float | None
    latency: Latency | None
    memory_mb: float | None
    block_memory_mb: float | None
    seconds: float | None
    control: str | None = None
    over_control: Difference | None = None
    against_control: str = ""
    once: Once | None = None
    trained_once: str = ""
    came_in: str = ""
    off_and_constant: str = ""
    told: Told | None = None

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds of one image; None where they were not measured."""
        return self.latency and self.latency.ms

    @property
    def judged(self) -> str:
        """What one set of images says of it, without full stop."""
        beside = self.against_control if self.verdict == "better" else ""
        return ", ".join(filter(None, [self.sentence, beside]))

    @property
    def said(self) -> str:
        """All that is concluded about it, the same on the terminal and in the report."""
        parts = [self.judged, self.trained_once and f"it {self.trained_once}", self.came_in and f"it {self.came_in}"]
        return " ".join(f"{capital(part) if at else part}." for at, part in enumerate(filter(None, parts)))
