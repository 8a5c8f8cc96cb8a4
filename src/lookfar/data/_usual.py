"""How data sets are learned where a plan does not say it."""

from dataclasses import dataclass

from lookfar.data._base import Target


@dataclass(frozen=True)
class Usual:
    """What is usual for a data set.

    Attributes:
        host: Of a study.
        steps: Optimiser steps.
        batch_size: Images a step.
    """

    host: str = "resnet18"
    steps: int = 2000
    batch_size: int = 8


OF_TARGET: dict[Target, Usual] = {"mask": Usual(), "class": Usual(batch_size=32)}
EMBEDDED = {
    "scenes:lookup": Usual("small", 1000, 32),
    "scenes:cue": Usual("small", 1200, 32),
    "scenes:red": Usual("small", 500, 32),
    "scenes:match": Usual("patch", 400, 256),
    "scenes:points": Usual("points", 600, 64),
}
