"""A training step of a study's network with a block beside one without: what a block adds to a study's time.

    python benchmarks/steps.py [--only criss_cross,nonlocal] [--again]

The host `small` of `scenes:lookup`, the block where a study puts it, batches and optimiser as a study takes them, one
thread. Both take steps in turn, round by round; a round is the fastest of three, by the processor's time. Rows are
written as they are measured, to benchmarks/results/steps-cpu.json and docs/speed.md; a second run adds what is missing,
``--again`` measures anew what is chosen.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from blocks import machine
from kept import fill

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


def measure(name: str) -> Any:
    plan = Plan("scenes:lookup", (name,), controls=(), steps=100, seeds=1, accelerator="cpu").resolved()
    steps = {"without": taken(plan, "baseline"), "with": taken(plan, plan.blocks[0])}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(ROUNDS + 1):
        for kind in reversed(steps) if number % 2 else steps:
            found = []
            for _ in range(STEPS):
                begin = time.process_time()
                steps[kind]()
                found.append(1e3 * (time.process_time() - begin))
            times[kind].append(min(found))
    return {kind: found[1:] for kind, found in times.items()}  # the first round warms up


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    ratios = sorted(a / b for a, b in zip(row["with"], row["without"]))
    reach = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"`{row['key'][0]}`", min(row["without"]), min(row["with"]), statistics.median(ratios), reach


def section(rows: list[Any]) -> str:
    return (
        f"`python benchmarks/steps.py`: {machine('cpu')}, one thread, torch {torch.__version__}, float32, the host "
        f"`small` on `scenes:lookup`, default options, {ROUNDS} rounds in turn.\n\n"
        f"{markdown_table(['block', 'ms without', 'ms with', 'ratio', 'range'], [line(row) for row in rows])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="blocks, divided by commas")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--dry", action="store_true", help="print alone, write nothing")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fill(
        "steps",
        [(name,) for name in (args.only.split(",") if args.only else list_blocks(kind="context"))],
        measure=measure,
        line=line,
        section=section,
        order=lambda key: key,
        again=args.again,
        keep=not args.dry,
    )


if __name__ == "__main__":
    main()
