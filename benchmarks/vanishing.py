"""Attention whose weights vanish beside attention whose weights do not: each op and its definition.

    python benchmarks/vanishing.py [--only embedded_gaussian,criss_cross] [--again]

Logits have a standard deviation of 1, or of 20, as products of unscaled queries and keys soon do: most weights are then
below the smallest normal number, which many processors (Intel's) take over a hundred times as long to multiply. One
image in float32, forward and backward pass, processor time of one thread, taken in turn. Rows are written as they are
measured, to benchmarks/results/vanishing-cpu.json and docs/speed.md; a second run adds what is missing, ``--again``
measures anew what is chosen.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from kept import fill_by_block, in_turn, machines
from torch import Tensor

from lookfar import ops
from lookfar._tables import markdown_table
from lookfar.ops.criss_cross import PATHS

ROUNDS = 3
SPREADS = (1, 20)


def drawn(spread: float, *sizes: int) -> Tensor:
    """Whose products over the last axis have this standard deviation."""
    return torch.randn(sizes).mul_((spread / sizes[-1] ** 0.5) ** 0.5).requires_grad_()


def pairwise(spread: float) -> tuple[Any, Any, list[Tensor]]:
    q, k = (drawn(spread, 1, 1, 65 * 65, 64) for _ in range(2))
    return ops.embedded_gaussian, ops.embedded_gaussian_reference, [q, k, drawn(1, 1, 1, 65 * 65, 512)]


def criss_cross(spread: float) -> tuple[Any, Any, list[Tensor]]:
    q, k = (drawn(spread, 1, 1, 97, 97, 64) for _ in range(2))
    return ops.criss_cross, PATHS["merged"], [q, k, drawn(1, 1, 1, 97, 97, 512)]


def external(spread: float) -> tuple[Any, Any, list[Tensor]]:
    x, key = drawn(spread, 1, 1, 97 * 97, 64), drawn(spread, 64, 64)
    return ops.external_attention, ops.external_attention_reference, [x, key, drawn(1, 64, 64)]


OPS = {
    "embedded_gaussian": pairwise,
    "criss_cross": criss_cross,
    "external_attention": external,
}


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds."""
    begin = time.process_time()
    call()
    return 1e3 * (time.process_time() - begin)


def step(op: Any, given: list[Tensor]) -> Callable[[], Any]:
    def run() -> None:
        y = op(*given)
        torch.autograd.grad(y, given, torch.ones_like(y))

    return run


def measure(name: str) -> Any:
    torch.manual_seed(0)
    calls: dict[str, Callable[[], Any]] = {}
    for spread in SPREADS:
        fast, slow, given = OPS[name](spread)
        ours, theirs = (op(*given) for op in (fast, slow))
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max(), f"{name} with {spread} is not its definition"
        calls |= {f"{spread} ours": step(fast, given), f"{spread} definition": step(slow, given)}
    found = in_turn(calls, ROUNDS + 1, timed)
    return {kind: ms[1:] for kind, ms in found.items()}  # the first round warms up


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    small, large = (tuple(min(row[f"{s} {who}"]) for who in ("ours", "definition")) for s in SPREADS)
    return f"`ops.{row['key'][0]}`", *small, *large, large[1] / large[0]


def section(rows: list[Any]) -> str:
    headers = [
        "op",
        *(f"{who}, logits of {s}" for s in SPREADS for who in ("ours, ms", "definition, ms")),
        "definition / ours",
    ]
    return (
        f"`python benchmarks/vanishing.py`: {machines(rows)}, one thread, torch {torch.__version__}, float32, both "
        f"passes of one image, logits with standard deviations of {' and '.join(map(str, SPREADS))}.\n\n"
        f"{markdown_table(headers, [line(row) for row in rows])}"
    )


if __name__ == "__main__":
    fill_by_block("vanishing", __doc__, list(OPS), measure=measure, line=line, section=section)
