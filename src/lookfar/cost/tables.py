"""Costs as tables, on a terminal and in a notebook."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from lookfar._notebooks import Shown, html_table
from lookfar._tables import by_size, table
from lookfar.blocks import block_info, parse_block


def cost_table(costs: Sequence[Any]) -> Shown:
    """What :func:`~lookfar.cost.measure_cost` gave for several blocks under the same conditions, as text."""
    rows = [(c.name, c.parameters, c.flops / 1e9, c.latency_ms, c.memory_mb) for c in costs]
    sizes = " and ".join(dict.fromkeys(by_size(cost.size) for cost in costs))
    conditions, heads = f"{_conditions(costs[0])}, {sizes}", ["block", "parameters", "GFLOP", "time ms", "memory MB"]
    return Shown(f"{conditions}\n{table(heads, rows)}", html_table(heads, rows, below=[conditions]))


def growth_table(grown: Any) -> Shown:
    """The points of a ``Growth`` and its exponents beside the formulas that the block declares, as text."""
    rows = [(by_size(p.size), math.prod(p.size), p.flops / 1e9, p.latency_ms, p.memory_mb) for p in grown.points]
    heads, lines = ["size", "N", "GFLOP", "time ms", "memory MB"], []
    conditions = f"{grown.name}: {_conditions(grown.points[0])}"
    if grown.time_exponent is not None and grown.memory_exponent is not None:
        line = f"time grows as N^{grown.time_exponent:.2f}, memory as N^{grown.memory_exponent:.2f}"
        with contextlib.suppress(ValueError, TypeError):  # a module that is no block of ours declares nothing
            info = block_info(parse_block(grown.name)[0])
            line += f" (formula: time {info.complexity}, memory {info.memory})"
        lines.append(line)
    if grown.skipped:
        lines.append(f"not measured, one call would take too long: {', '.join(map(by_size, grown.skipped))}")
    return Shown(
        "\n".join([conditions, table(heads, rows), *lines]), html_table(heads, rows, below=[conditions, *lines])
    )


def _conditions(cost: Any) -> str:
    passes = "forward and backward" if cost.backward else "forward"
    images = f", batch {cost.batch}" if cost.batch > 1 else ""
    return f"{passes}, {cost.channels} channels, float32{images}, {cost.device}"
