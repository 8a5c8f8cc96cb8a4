"""What ``lookfar cost`` prints."""

import json
from collections.abc import Sequence

from lookfar._options import positive
from lookfar._tables import by_size
from lookfar.blocks._own import find_own, parse_address
from lookfar.cost.growing import GROWTH_CHANNELS, growth
from lookfar.cost.measure import Cost, measure_cost
from lookfar.cost.memory import keep_pages
from lookfar.cost.sizes import parse_size, size_for
from lookfar.cost.tables import cost_table, growth_table


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
