"""What an optimiser step depends on besides the gradient: parameter groups, learning rate, random state."""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lookfar.data._base import derive_seed
from lookfar.training.settings import Settings


def create_optimizer(network: nn.Module, settings: Settings, blocks: Sequence[str] = ()) -> torch.optim.Optimizer:
    """AdamW or SGD; norms, biases and scalars are not decayed, the backbone has its own learning rate.

    Each group's ``peak_lr`` is what the schedule's factor multiplies.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        inserted = any(name.startswith(f"{block}.") for block in blocks)
        backbone = name.startswith("backbone.") and not inserted
        decayed = parameter.ndim > 1 and parameter.numel() > 1
        groups.setdefault((backbone, decayed), []).append(parameter)
    if not groups:
        raise ValueError("the network has no parameter to train: all are frozen")
    peak = {True: settings.lr * settings.backbone_lr_factor, False: settings.lr}
    options = [
        {
            "params": groups[key],
            "peak_lr": peak[key[0]],
            "lr": peak[key[0]],
            "weight_decay": settings.weight_decay if key[1] else 0.0,
        }
        for key in sorted(groups, reverse=True)  # the backbone first: the last group has the full learning rate
    ]
    # a fused optimiser unscales gradients by itself, which leaves Fabric nothing to clip
    fused = settings.precision != "16-mixed"
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=settings.lr, fused=fused)
    return torch.optim.SGD(options, lr=settings.lr, momentum=settings.momentum, fused=fused)


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest."""
    if schedule == "onecycle":
        up = max(round(0.3 * steps), 1)
        if step < up:
            return _cosine(1 / 25, 1.0, (step + 1) / up)
        return _cosine(1.0, 0.0, (step + 1 - up) / (steps - up + 1))
    done = step / steps
    return _cosine(1.0, 0.0, done) if schedule == "cosine" else (1 - done) ** 0.9


def learning_rate_sum(settings: Settings) -> float:
    """The learning rates of all steps, summed up: about as far as AdamW can move a parameter."""
    steps = settings.steps
    some = range(0, steps, max(steps // 4096, 1))  # of a long schedule enough of them
    return settings.lr * steps * sum(schedule_factor(settings.schedule, step, steps) for step in some) / len(some)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def set_random_state(seed: int, step: int, rank: int = 0) -> None:
    """Random state of torch, numpy and Python as a function of its arguments."""
    derived = derive_seed(seed, step, rank)
    torch.manual_seed(derived)  # of every device
    np.random.seed(derived % 2**32)
    random.seed(derived)
