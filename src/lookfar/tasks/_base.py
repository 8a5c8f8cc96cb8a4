"""What a task is: how networks learn it, what is kept of every sample, and the score of weighted samples.

Training, studies and their statistics know no more of a task than what stands here. A task of one's own is a subclass
that says ``metric``, ``words``, ``loss``, ``judge`` and ``score``, and ``host`` where it brings its networks along.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.blocks._own import Target
    from lookfar.data import Data

Judged = dict[str, np.ndarray]  # what is kept of every sample: arrays of numbers (S, ...), as their file holds them


@dataclass(frozen=True)
class Words:
    """What a task's score is called.

    Attributes:
        score: The score, as in ``mIoU``.
        unit: What follows its numbers, as in `` %``; empty where it has no unit.
        long: The score written out, as in ``mean IoU``; by default ``score``.
        of_class: The score of one class, as in ``IoU``; empty where there are no classes.
        amount: What classes are measured by, as in ``pixels``.
        blind: What a network does that has learned nothing, as in ``always naming the commonest class``.
    """

    score: str
    unit: str = ""
    long: str = ""
    of_class: str = ""
    amount: str = "samples"
    blind: str = "always saying the same"

    @property
    def title(self) -> str:
        """The score with its unit, above a column: ``mIoU, %``."""
        return f"{self.score}, {self.unit.strip()}" if self.unit else self.score

    @property
    def described(self) -> str:
        """The score at the beginning of a sentence: ``Mean IoU in per cent``."""
        return self._described(self.long or self.score)

    @property
    def class_described(self) -> str:
        """The same of one class."""
        return self._described(self.of_class)

    def _described(self, score: str) -> str:
        return f"{score[:1].upper()}{score[1:]}{' in per cent' if self.unit.strip() == '%' else ''}"


@dataclass(frozen=True)
class Host:
    """The network that blocks are compared in, as a plan asks for it.

    Attributes:
        name: ``small``, of a timm model, or where a function of the user's own stands.
        own: That function or class.
        output_stride: Of its feature map; None for its own.
        width: Channels of its head.
        pretrained: Start from timm's pretrained weights.
        weights: Start from the weights of this file.
    """

    name: str
    own: "Target | None" = None
    output_stride: int | None = 8
    width: int = 64
    pretrained: bool = False
    weights: str | None = None


class Task:
    """A task; everything that studies do is the same for all of them.

    Attributes:
        name: As a plan writes it, or as a message calls it; by default that of the class, in small letters.
        metric: Key of the score in records and results.
        words: What the score is called.
        higher: Whether more is better.
        target: What of data it can be learned from, as ``Data.target`` says it: ``mask`` or ``class``; None for either.
        columns: Further columns of the tables: names, as :meth:`further` and records have them, and what stands above.
        note: What the further columns are, where their names do not say it.
        scale: A score in tables is so many times the one in records, which hold shares where tables hold per cent.
        original: Whether it can judge at the size of each file, where that is another than the network's.
        by_own: Whether the score of a class follows from the samples that show it, and no other.
        file: Name of the file that keeps what was judged, without its ending.

    >>> from lookfar.tasks import find_task
    >>> task = find_task("segmentation")
    >>> task.metric, task.words.title, task.higher
    ('miou', 'mIoU, %', True)
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    words: ClassVar[Words]
    higher: ClassVar[bool] = True
    target: ClassVar[str | None] = None
    columns: ClassVar[Mapping[str, str]] = {}
    note: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    original: ClassVar[bool] = False
    by_own: ClassVar[bool] = False
    file: ClassVar[str] = "outcomes"

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    # ---- learning ----

    def question(self, data: "Data") -> str:
        """What is to be learned, in a sentence or two; by default as the data say it."""
        return data.question

    def host(self, wanted: Host, data: "Data") -> "nn.Module":
        """A network without a block, under the random state of its trial; by default what the user's function gives.

        It may have ``place``, the name of the module after which blocks go by default, ``places()``, short names of
        others, and ``backbone``, the part that pretrained weights and a learning rate of its own are for.

        Raises:
            ValueError: No such host.
        """
        if wanted.own is None:
            raise ValueError(
                f"{self.name} has no host of its own: give --host FILE.py:NAME, a function or class that builds one"
            )
        return wanted.own.build(data.in_chans)

    def learn(
        self, network: "nn.Module", inputs: "Tensor", targets: "Tensor", weights: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """The summed loss of a batch and what it is to be divided by: here inputs may be changed before, as by attacks.

        Args:
            network: In training.
            inputs: ``(B, C, ...)``, normalised.
            targets: ``(B, ...)``.
            weights: Of the classes, or None.
        """
        return self.loss(network(inputs), targets, weights)

    def loss(self, output: "Tensor", targets: "Tensor", weights: "Tensor | None") -> "tuple[Tensor, Tensor]":
        """The loss summed over all that counts in a batch, and how much that is.

        Sum and count apart: several devices hold unequal shares of what counts, and the loss is the mean over all.

        Args:
            output: Of the network.
            targets: ``(B, ...)``.
            weights: Of the classes, or None.
        """
        raise NotImplementedError

    def check_weights(self, weights: "tuple[float, ...]", data: "Data") -> None:
        """Refuse weights of classes that do not fit the data.

        Raises:
            ValueError: With what would be right.
        """
        raise ValueError(f"class_weights are for classes, and {self.name} has none")

    def check_batch(self, size: int) -> None:
        """Refuse a number of samples that a step cannot have on each device.

        Raises:
            ValueError: With what would be right.
        """

    # ---- judging ----

    def judge(self, output: "Tensor", targets: "Iterable[Tensor]") -> "Mapping[str, Tensor]":
        """What is kept of every sample of a batch, by name: numbers ``(B, ...)``.

        Args:
            output: ``(B, ...)``.
            targets: ``(B, ...)``; for ``original`` tasks also one by one, each at the size of its file.
        """
        raise NotImplementedError

    def show(self, output: "Tensor", target: "Tensor") -> "tuple[Tensor | str, Tensor | str]":
        """What a report shows of one sample, its truth and the prediction: maps of labels ``(h, w)``, labels, or words.

        Args:
            output: ``(...)``, of one sample.
            target: As the data have it.
        """
        truth, said = (
            f"{float(value):.4g}" if value.numel() == 1 else "" for value in (target.double(), output.double())
        )
        return truth, said

    def fits(self, judged: Judged, samples: int | None = None, classes: int | None = None) -> bool:
        """Whether arrays out of a file can be what was judged.

        Args:
            judged: The arrays.
            samples: How many samples there are, where that is known.
            classes: How many classes there are, where that is known.
        """
        lengths = {len(array) if array.ndim else 0 for array in judged.values()}
        whole = len(lengths) == 1 and 0 not in lengths and (samples is None or lengths == {samples})
        return whole and all(array.dtype.kind in "iuf" and np.isfinite(array).all() for array in judged.values())

    def scores(self, judged: Judged) -> dict[str, Any]:
        """What records and results hold of a validation, as JSON: at least ``metric``; None where there is no score."""
        facts = self.facts(judged)
        value = float(self.score(facts, np.ones((1, len(facts))))[0])
        return {self.metric: value / self.scale if np.isfinite(value) else None}

    def unit_of(self, name: str) -> float:
        """A number of records, by its name, is so many times larger in tables: per cent are shares in records."""
        return self.scale if self.columns.get(name, "%").endswith("%") else 1.0

    # ---- what statistics ask ----

    def facts(self, judged: Judged) -> np.ndarray:
        """What the score needs of every sample, ``(S, ...)`` float64; by default the only array that is kept."""
        if len(judged) != 1:
            raise ValueError(f"{self.name} keeps {', '.join(judged)}: facts() must say what of it the score needs")
        (array,) = judged.values()
        return array.astype(np.float64)

    def score(self, facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The score of R re-weighted sets of samples, in the unit of tables.

        Args:
            facts: ``(S, ...)``, as :meth:`facts` gives them.
            weights: ``(R, S)``.

        Returns:
            ``(R,)``; nan for a set without any score.
        """
        raise NotImplementedError

    def further(self, facts: np.ndarray) -> dict[str, float]:
        """What stands in the further columns of the tables, by their names; nan where there is no such number."""
        return {}

    def blind(self, facts: np.ndarray) -> float | None:
        """The score of a network that has learned nothing but what is commonest; None where that says nothing."""
        return None

    def classes(self, facts: np.ndarray) -> int:
        """The number of classes K; 0 where there are none."""
        return 0

    def truth(self, facts: np.ndarray, k: int) -> np.ndarray:
        """How much of a class the truth of every sample shows, ``(S,)``: the same in all trials."""
        raise NotImplementedError

    def of_class(self, facts: np.ndarray, k: int) -> np.ndarray:
        """Facts of the same samples by which :meth:`score` is the score of one class."""
        raise NotImplementedError

    def confusion(self, judged: Judged) -> np.ndarray | None:
        """What is taken for what over all samples, ``(K, K)``, rows truth; None where there are no classes."""
        return None
