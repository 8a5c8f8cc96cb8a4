"""What ``lookfar cost`` prints."""

import contextlib
import json
import math
from collections.abc import Sequence

from lookfar._notebooks import Shown, html_table
from lookfar._options import positive
from lookfar._tables import by_size, table
from lookfar.blocks import block_info, parse_block
from lookfar.blocks._own import find_own, parse_address
from lookfar.cost.growing import GROWTH_CHANNELS, Growth, growth
from lookfar.cost.measure import Cost, measure_cost
from lookfar.cost.memory import keep_pages
from lookfar.cost.sizes import parse_size, size_for


def print_costs(
    blocks: Sequence[str],
    size: str | None = None,
    *,
    channels: int | None = None,
    grow: bool = False,
    backward: bool = False,
    device: str = "cpu",
    as_json: bool = False,
) -> None:
    """``lookfar cost``: measure blocks one after the other and print tables, or a JSON object a line.

    With ``grow`` a second part follows, at :data:`~lookfar.cost.GROWTH_SIZES` and, where ``channels`` is None, with
    fewer channels, since quadratic blocks take their time at the largest.
    """
    from rich.console import Console

    given = None if size is None else parse_size(size)
    for address in filter(None, map(parse_address, blocks)):
        find_own(address)
    sizes = [size_for(block, given) for block in blocks]  # what is misspelt is reported before the first measurement
    if channels is not None:
        positive("channels", channels)
    keep_pages()
    console = Console(stderr=True)  # says what it waits for; silent when not a terminal
    costs: list[Cost] = []
    for block, measured in zip(blocks, sizes):
        with console.status(f"measuring {block}"):
            costs.append(
                measure_cost(block, 256 if channels is None else channels, measured, backward=backward, device=device)
            )
        if as_json:
            print(json.dumps(costs[-1].to_dict()), flush=True)
    if not as_json:
        print(cost_table(costs), flush=True)
    for block in blocks if grow else ():
        with console.status(f"measuring {block}") as status:
            grown = growth(
                block,
                GROWTH_CHANNELS if channels is None else channels,
                backward=backward,
                device=device,
                progress=lambda size, s=status, b=block: s.update(f"measuring {b} at {by_size(size)}"),
            )
        print(json.dumps(grown.to_dict()) if as_json else f"\n{growth_table(grown)}", flush=True)


def cost_table(costs: Sequence[Cost]) -> Shown:
    """What :func:`measure_cost` gave for several blocks under the same conditions, as text."""
    rows = [(c.name, c.parameters, c.flops / 1e9, c.latency_ms, c.memory_mb) for c in costs]
    sizes = " and ".join(dict.fromkeys(by_size(cost.size) for cost in costs))
    conditions, heads = f"{_conditions(costs[0])}, {sizes}", ["block", "parameters", "GFLOP", "time ms", "memory MB"]
    return Shown(f"{conditions}\n{table(heads, rows)}", html_table(heads, rows, below=[conditions]))


def growth_table(grown: Growth) -> Shown:
    """The points of a :class:`Growth` and its exponents beside the formulas that the block declares, as text."""
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


def _conditions(cost: Cost) -> str:
    passes = "forward and backward" if cost.backward else "forward"
    images = f", batch {cost.batch}" if cost.batch > 1 else ""
    return f"{passes}, {cost.channels} channels, float32{images}, {cost.device}"
