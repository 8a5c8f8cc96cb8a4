"""What ``lookfar cost --host`` prints: a network as it is, and with a block or a layer in it."""

import json
from collections.abc import Mapping, Sequence

from lookfar.cost.memory import keep_pages
from lookfar.cost.sizes import parse_size
from lookfar.cost.tables import cost_table


def print_costs_in(
    host: str | None,
    blocks: Sequence[str],
    at: str | None,
    size: str | None,
    *,
    others: Mapping[str, bool],
    backward: bool,
    as_json: bool,
) -> None:
    """Measure a host before and after, and print a table, or a JSON object a line.

    Args:
        host: A network for classification that :func:`lookfar.networks.build_classifier` knows.
        blocks: With options or without.
        at: Where they go.
        size: Of the images; 224x224 by default.
        others: Options of the command that are for blocks alone, and whether they are given.
        backward: Forward and backward pass.
        as_json: Print JSON.

    Raises:
        ValueError: One of host and place without the other, an option for blocks alone, what the host refuses.
    """
    import torch

    from lookfar.insertion.costs import costs_in
    from lookfar.networks import build_classifier

    if host is None or at is None:
        raise ValueError("--host and --at belong together: --host resnet18 --at 'layer3.*.conv2'")
    if given := [option for option, there in others.items() if there]:
        raise ValueError(f"{given[0]} is for a block by itself, not for one in a --host")
    sides = parse_size(size or "224x224")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_classifier(host, 1000, size=sides)
        example = torch.randn(1, 3, *sides)
        keep_pages()
        costs = costs_in(network, host, blocks, at, example, backward=backward)
    if not as_json:
        print(cost_table(costs), flush=True)
    for cost in costs if as_json else ():
        print(json.dumps(cost.to_dict()), flush=True)
