"""How to train, checked before the first step."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from lookfar._options import Natural, NotNegative, Positive, Range, check, choice

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("onecycle", "cosine", "poly")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
SHARE = Annotated[float, Range(0, math.nextafter(1, 0), why="it stays below 1, as 0.99 does")]
SCORES = ("resized", "original")  # at the size that the network sees, or at that of each file
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True)
class Settings:
    """How to train. Checked when made.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images in a step, of all devices together.
        lr: Highest learning rate.
        backbone_lr_factor: The same for ``network.backbone``, inserted blocks excepted, as a factor of ``lr``.
        weight_decay: Of weights; norms, biases and scalars have none.
        momentum: Of SGD.
        optimizer: ``adamw`` or ``sgd``.
        schedule: ``onecycle`` (up over 30 % of the steps, then down, both by cosine), ``cosine`` or ``poly`` (0.9).
        clip: Largest norm of the gradient; 0 for no limit.
        class_weights: Weight of each class in the loss; None for equal ones.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed`` (GPU) or ``64-true``.
        score: Validate on masks ``resized`` to what the network sees, or at the ``original`` size of each file.
        accelerator: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        devices: How many, or ``"auto"`` for all. Under torchrun and ``fabric run`` theirs counts.
        ema: Decay of the running average of the weights that is evaluated and kept in the end; 0 for none.
        eval_every: Steps between validations; 0 for the end alone.
        log_every: Steps between records.
        checkpoint_every: Steps between checkpoints.
        tensorboard: Write ``tensorboard/`` too.
        threads: CPU threads; None for one on a CPU, and torch's own choice beside a GPU. Sums depend on it.
    """

    steps: int = 1000
    batch_size: int = 32
    lr: float = 3e-3
    backbone_lr_factor: float = 1.0
    weight_decay: float = 0.01
    momentum: float = 0.9
    optimizer: str = "adamw"
    schedule: str = "onecycle"
    clip: float = 0.0
    class_weights: tuple[float, ...] | None = None
    precision: str = "32-true"
    score: str = "resized"
    accelerator: str = "auto"
    devices: int | str = 1
    ema: float = 0.0
    eval_every: int = 200
    log_every: int = 50
    checkpoint_every: int = 200
    tensorboard: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:  # a plan file gives a list
            check("class_weights", self.class_weights, tuple[NotNegative, ...])
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
        for name, accepted in [
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("score", SCORES),
            ("accelerator", ACCELERATORS),
        ]:
            choice(name, getattr(self, name), accepted)
        for name, annotation in [
            *((name, int) for name in ("steps", "batch_size", "log_every", "checkpoint_every")),
            ("eval_every", Natural),
            ("threads", Annotated[int | None, Range(1, 1024)]),
            ("devices", Annotated[int | Literal["auto"], Range(1, 1024)]),
            ("lr", Positive),
            *((name, NotNegative) for name in ("weight_decay", "clip", "backbone_lr_factor")),
            *((name, SHARE) for name in ("ema", "momentum")),
        ]:
            check(name, getattr(self, name), annotation)
        if self.accelerator == "cpu":
            choice(
                "precision",
                self.precision,
                [p for p in PRECISIONS if p != "16-mixed"],
                why="a CPU cannot do it",
            )
