"""What a block costs beyond arithmetic: a call on a map of 7x7 beside the calls of torch that it makes.

    python benchmarks/overheads.py [--only criss_cross,nonlocal] [--again]

On ImageNet's last map with 64 channels arithmetic is nearly nothing, and what is left is Python and torch's dispatcher.
The floor is the same work without the block: every function of torch that a forward pass in evaluation calls, recorded
with its tensors and called again in a bare loop. What is above it is the block's own: modules, checks, questions to
tensors. Both are timed in turn, by the processor time of one thread, with warm caches; of each the fastest round. Rows
are written as they are measured, to benchmarks/results/overheads-cpu.json and docs/speed.md; a second run adds what is
missing, ``--again`` measures anew what is chosen.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kept import fill_by_block, in_turn, machines
from torch.overrides import TorchFunctionMode

from lookfar._drawing import randomise
from lookfar._tables import markdown_table
from lookfar.blocks import create_block, list_blocks, sample_inputs

CHANNELS, SIZE, ROUNDS, CALLS = 64, (7, 7), 9, 50
# of a tensor, computed by nobody: they cost a block as little as it asks for
QUESTIONS = {"__get__", "dim", "size", "numel", "stride", "is_floating_point", "is_contiguous", "__len__", "is_complex"}


class Recorder(TorchFunctionMode):
    """Every function of torch that is called, ready to be called again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if f.__name__ not in QUESTIONS:
            self.calls.append(partial(f, *args, **(kwargs or {})))
        return f(*args, **(kwargs or {}))


def replayed(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def microseconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - begin) / CALLS * 1e6


@torch.no_grad()
def measure(name: str) -> Any:
    torch.manual_seed(0)
    block = randomise(create_block(name, CHANNELS)).eval()
    inputs = sample_inputs(block, CHANNELS, SIZE, batch=1)
    block(*inputs)
    with Recorder() as recorder:
        block(*inputs)
    times = in_turn(
        {"block": partial(block, *inputs), "floor": partial(replayed, recorder.calls)}, ROUNDS, microseconds
    )
    return {"calls": len(recorder.calls), "us": min(times["block"]), "floor_us": min(times["floor"])}


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    over = row["us"] - row["floor_us"]
    return f"`{row['key'][0]}`", row["calls"], row["us"], row["floor_us"], over, row["us"] / row["floor_us"]


def section(rows: list[Any]) -> str:
    headers = ["block", "calls of torch", "µs", "floor, µs", "above it, µs", "ratio"]
    return (
        f"`python benchmarks/overheads.py`: {machines(rows)}, one thread, torch {torch.__version__}, float32, a map of "
        f"{SIZE[0]}×{SIZE[1]} with {CHANNELS} channels, default options, evaluation.\n\n"
        f"{markdown_table(headers, [line(row) for row in rows])}"
    )


if __name__ == "__main__":
    fill_by_block("overheads", __doc__, list_blocks(), measure=measure, line=line, section=section)
