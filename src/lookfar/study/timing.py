"""How long trials will take, from a measured step of each candidate."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lookfar.study.plan import Plan

if TYPE_CHECKING:
    from lookfar.data import Data

START = 6.0  # seconds of a trial beside its steps: loading libraries and data, measuring cost, pictures
WORTH = 50  # steps: below that measuring takes longer than what it tells
PATIENCE = 30.0  # seconds of measuring; candidates after that are taken for the mean of those before


def expected_seconds(
    candidates: Sequence[str], build: Callable[[str], nn.Module], plan: Plan, data: "Data"
) -> dict[str, float]:
    """Seconds of a trial of each candidate, alone on this machine; empty where that is not measured.

    On a GPU nothing is: it would keep memory of it for as long as the study lasts.

    Args:
        candidates: Which ones.
        build: Gives the network of one.
        plan: With every entry filled in.
        data: Of the plan.
    """
    if plan.accelerator != "cpu" or plan.devices != 1 or (plan.steps or 0) < WORTH:
        return {}
    found: dict[str, float] = {}
    threads, started = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(plan.threads)
    try:
        for name in candidates:
            if found and time.monotonic() - started > PATIENCE:
                found[name] = sum(found.values()) / len(found)
            else:
                found[name] = _seconds(build(name), plan, data)
    finally:
        torch.set_num_threads(threads)
    return found


def _seconds(network: nn.Module, plan: Plan, data: "Data") -> float:
    batch_size, steps = plan.batch_size or 1, plan.steps or 0
    network.train()
    inputs, targets = data.batch(0, 0, batch_size)
    step, task = 0.0, plan.find_task()
    for k in range(2):  # the first pays for what is made once
        started = time.monotonic()
        inputs, targets = data.batch(0, k, batch_size)
        if data.threads:  # read while the step before is computed
            started = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in plan.precision):
            total, count = task.learn(network, inputs, targets, None)
        (total / count.clamp(min=1)).backward()
        step = time.monotonic() - started
    network.eval()
    with torch.no_grad():
        started = time.monotonic()
        network(inputs)
        image = (time.monotonic() - started) / batch_size
    validations = steps // (plan.eval_every or steps) + 1  # the last with the block switched off
    return START + steps * step + validations * len(data.val) * image
