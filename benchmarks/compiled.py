"""``torch.compile`` beside eager for every block: time and peak memory, forward and with the backward pass.

    python benchmarks/compiled.py [--only criss_cross,nonlocal] [--again]

Compiled by inductor with its defaults, for one size; both gave the same output and the same gradient of the input
before they were timed, in turn, by the processor time of one thread. Ratios are eager / compiled, so above 1 compiling
pays. Inductor runs all convolutions of a CPU in channels_last, and copies maps into it and back, which in a block by
itself can take longer than compiling saves: rows below 1 are measured again, both on maps in channels_last, as a
network that is compiled whole has them, and both on plain maps with
``torch._inductor.config.layout_optimization = False`` (plain layout). A block takes up to a minute to compile. Rows are
written as they are measured, to benchmarks/results/compiled-cpu.json and docs/speed.md; a second run adds what is
missing, ``--again`` measures anew what is chosen.
"""

import copy
import itertools
import statistics
import time
import warnings
from typing import Any

import torch
from kept import command, fill, machines
from torch import Tensor, nn

from lookfar._drawing import randomise
from lookfar._tables import markdown_table
from lookfar.blocks import create_block, list_blocks, sample_inputs
from lookfar.check.subject import pull, twin
from lookfar.cost import keep_pages, measure_in_turn, peak_memory
from lookfar.cost.measure import Inputs, caller

CHANNELS, SIZE, ROUNDS = 256, (64, 64), 7
DRAWN = ("hard_attention", "both")  # compiled programs draw other numbers in training: nothing to compare


class Called(nn.Module):
    """A block with all its inputs but the first; of several outputs the first."""

    def __init__(self, block: nn.Module, *others: Tensor) -> None:
        super().__init__()
        self.block, self.others = block, others

    def forward(self, x: Tensor) -> Any:
        y = self.block(x, *self.others)
        return y[0] if isinstance(y, tuple) else y


def pair(name: str, backward: bool, backend: str) -> tuple[dict[str, nn.Module], Tensor]:
    """The block eager and compiled, with random parameters, and its first input."""
    torch.manual_seed(0)
    block = randomise(create_block(name, CHANNELS)).train(backward)
    x, *others = sample_inputs(block, CHANNELS, SIZE, batch=2 if backward else 1)
    compiled = torch.compile(Called(twin(block), *others), backend=backend)
    return {"eager": Called(block, *others), "compiled": compiled}, x


def same(modules: dict[str, nn.Module], x: Tensor, backward: bool) -> float:
    """Seconds that compiling took.

    Raises:
        AssertionError: The two differ in the output or in the gradient of the input, by more than float32 explains.
    """
    exact: Any = copy.deepcopy(modules["eager"]).double()
    exact.others = [t.double() if t.is_floating_point() else t for t in exact.others]
    eager, begin = _found(modules["eager"], x, backward), time.perf_counter()
    compiled, took = _found(modules["compiled"], x, backward), time.perf_counter() - begin
    if max(map(_off, compiled, eager)) > 1e-3:  # random parameters can make a block that sharp
        want = _found(exact, x.double(), backward)
        for got, usual, right in zip(compiled, eager, want):
            off, allowed = _off(got, right), 10 * _off(usual, right)
            assert off < max(allowed, 1e-3), f"off by {off:.1e}, eager a tenth of {allowed:.1e}"
    return took


def _found(module: nn.Module, x: Tensor, backward: bool) -> list[Tensor]:
    torch.manual_seed(1)
    at = x.clone().requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        y = module(at)
        if backward:
            pull([y]).backward()
    return [y.detach(), *([] if at.grad is None else [at.grad])]


def _off(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-9)).item()


def measure(name: str, backward: bool, backend: str = "inductor") -> Any:
    found = _measured(name, backward, backend)
    if statistics.median(_ratios(found)) < 1:
        within = _measured(name, backward, backend, torch.channels_last)
        with torch._inductor.config.patch(layout_optimization=False):
            plain = _measured(name, backward, backend)
        found |= {f"channels_last_{key}": within[key] for key in ("ms", "eager_ms")}
        found |= {f"plain_{key}": plain[key] for key in ("ms", "eager_ms")}
    return found


def _measured(
    name: str, backward: bool, backend: str, layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Any]:
    torch._dynamo.reset()
    modules, x = pair(name, backward, backend)
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    took = same(modules, x, backward)
    begin = time.process_time()
    memory = {which: peak_memory(caller(m, Inputs((x,)), backward=backward)) / 1e6 for which, m in modules.items()}
    long = time.process_time() - begin > 1
    rounds = 3 if long else ROUNDS
    times = measure_in_turn(modules, x, backward=backward, rounds=rounds, calls=3, warm_up=not long, budget=0.3)
    return {
        "seconds": took,
        "ms": times["compiled"],
        "eager_ms": times["eager"],
        "mb": memory["compiled"],
        "eager_mb": memory["eager"],
    }


def _ratios(row: Any, prefix: str = "") -> list[float]:
    return sorted(eager / compiled for eager, compiled in zip(row[f"{prefix}eager_ms"], row[f"{prefix}ms"]))


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    r = _ratios(row)
    name, passes = row["key"]
    shown = (f"`{name}`", passes, min(row["eager_ms"]), statistics.median(r))
    others = [f"{name}_" for name in ("channels_last", "plain")]
    layouts = [statistics.median(_ratios(row, which)) if f"{which}ms" in row else "" for which in others]
    ends = row["eager_mb"], row["eager_mb"] / row["mb"], row["seconds"]
    return *shown, f"{r[0]:.2f} to {r[-1]:.2f}", *layouts, *ends


def section(rows: list[Any]) -> str:
    headers = ["block", "passes", "eager ms", "time", "range", "channels_last", "plain layout", "eager MB", "memory"]
    headers.append("s to compile")
    return (
        f"`python benchmarks/compiled.py`: {machines(rows)}, one thread, torch {torch.__version__}, float32, maps of "
        f"{SIZE[0]}×{SIZE[1]} with {CHANNELS} channels, default options: one in evaluation (forward), two in training "
        f"(both).\n\n{markdown_table(headers, [line(row) for row in rows])}"
    )


def main() -> None:
    parser = command(__doc__, "blocks")
    parser.add_argument("--passes", default="forward,both")
    parser.add_argument("--backend", default="inductor", help="another one is printed alone: aot_eager takes no time")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    keep_pages()
    torch.set_num_threads(1)
    torch.compiler.config.force_disable_caches = True  # a second run would load what the first compiled
    chosen = args.only.split(",") if args.only else list_blocks()
    fill(
        "compiled",
        [(name, p) for p, name in itertools.product(args.passes.split(","), chosen) if (name, p) != DRAWN],
        measure=lambda name, passes: measure(name, passes == "both", args.backend),
        line=line,
        section=section,
        again=args.again,
        keep=args.backend == "inductor",
    )


if __name__ == "__main__":
    main()
