"""How to train, checked before the first step."""

import math
from dataclasses import dataclass

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("onecycle", "cosine", "poly")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
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
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
            _want(all(w >= 0 for w in self.class_weights or ()), "class_weights", self.class_weights, "none below 0")
        for name, choices in [
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("accelerator", ACCELERATORS),
        ]:
            _want(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            _want(_is_int(getattr(self, name), 1), name, getattr(self, name), "a positive whole number")
        _want(_is_int(self.eval_every, 0), "eval_every", self.eval_every, "a whole number, 0 for the end alone")
        _want(self.threads is None or _is_int(self.threads, 1), "threads", self.threads, "a positive whole number")
        _want(self.devices == "auto" or _is_int(self.devices, 1), "devices", self.devices, "a number, or 'auto'")
        _want(_is_number(self.lr) and self.lr > 0, "lr", self.lr, "a number above 0")
        for name in ("weight_decay", "clip", "backbone_lr_factor"):
            value = getattr(self, name)
            _want(_is_number(value) and value >= 0, name, value, "a number, 0 or more")
        for name in ("ema", "momentum"):
            value = getattr(self, name)
            _want(_is_number(value) and 0 <= value < 1, name, value, "a number from 0 to below 1, such as 0.99")
        cpu_half = self.accelerator == "cpu" and self.precision == "16-mixed"
        _want(not cpu_half, "precision", self.precision, "bf16-mixed or 32-true on a CPU")


def _want(right: bool, name: str, value: object, accepted: str) -> None:
    if not right:
        raise ValueError(f"{name} is {value!r}; want {accepted}")


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
