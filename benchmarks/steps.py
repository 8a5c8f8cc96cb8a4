"""A training step of a study's network with a block beside one without: what a block adds to a study's time.

    python benchmarks/steps.py [--only criss_cross,nonlocal] [--again]

The host `small` of `scenes:lookup`, the block where a study puts it, batches and optimiser as a study takes them, one
thread. Both take steps in turn, round by round; a round is the fastest of three, by the processor's time. Rows are
written as they are measured, to benchmarks/results/steps-cpu.json and docs/speed.md; a second run adds what is missing,
``--again`` measures anew what is chosen.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from kept import fill_by_block, in_turn, machines

from lookfar._tables import markdown_table
from lookfar.blocks import list_blocks
from lookfar.study import Plan
from lookfar.study.build import build_host, open_plan_data, put_in
from lookfar.study.candidates import Candidate
from lookfar.training.optimization import create_optimizer

ROUNDS, STEPS = 9, 3


def taken(plan: Plan, candidate: str) -> Callable[[], None]:
    """Takes one step of a candidate's network."""
    data, task = open_plan_data(plan), plan.find_task()
    network = build_host(plan, data, 0)
    names = put_in(network, plan, Candidate.parse(candidate), data, 0, control_parameters=0)
    optimizer = create_optimizer(network.train(), plan.settings(), names)
    inputs, targets = data.batch(0, 0, plan.settings().batch_size)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        total, count = task.learn(network, inputs, targets, None)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def fastest(step: Callable[[], None]) -> float:
    """Milliseconds."""
    found = []
    for _ in range(STEPS):
        begin = time.process_time()
        step()
        found.append(1e3 * (time.process_time() - begin))
    return min(found)


def measure(name: str) -> Any:
    plan = Plan("scenes:lookup", (name,), controls=(), steps=100, seeds=1, accelerator="cpu").resolved()
    steps = {"without": taken(plan, "baseline"), "with": taken(plan, plan.blocks[0])}
    times = in_turn(steps, ROUNDS + 1, fastest)
    return {kind: found[1:] for kind, found in times.items()}  # the first round warms up


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    ratios = sorted(a / b for a, b in zip(row["with"], row["without"]))
    reach = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"`{row['key'][0]}`", min(row["without"]), min(row["with"]), statistics.median(ratios), reach


def section(rows: list[Any]) -> str:
    return (
        f"`python benchmarks/steps.py`: {machines(rows)}, one thread, torch {torch.__version__}, float32, the host "
        f"`small` on `scenes:lookup`, default options, {ROUNDS} rounds in turn.\n\n"
        f"{markdown_table(['block', 'ms without', 'ms with', 'ratio', 'range'], [line(row) for row in rows])}"
    )


if __name__ == "__main__":
    blocks = list_blocks(kind="context")
    fill_by_block("steps", __doc__, blocks, measure=measure, line=line, section=section)
