"""What a network costs as it is, and with blocks or layers in it."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from lookfar.blocks import block_info, parse_block
from lookfar.blocks._mixers import is_layer
from lookfar.insertion.inserting import insert
from lookfar.insertion.replacing import replace, takes_mixers


def costs_in(
    network: nn.Module,
    name: str,
    blocks: Sequence[str],
    at: str,
    example: Any,
    *,
    backward: bool = False,
    repeats: int = 10,
) -> list[Any]:
    """The :class:`lookfar.cost.Cost` of a network, then of a copy with each of ``blocks`` in it.

    Layers, and mixers where the network keeps a place for them, take the place of what stands ``at``; other blocks go
    behind it.

    Args:
        network: Of any kind; it stays as it is.
        name: What the network is called.
        blocks: With options or without: ``stand_alone(kernel_size=7)``, ``nonlocal``.
        at: As :func:`insert` and :func:`replace` take it.
        example: An input.
        backward: Forward and backward pass instead of the forward pass.
        repeats: Of the measurement of time.

    Raises:
        ValueError: What :func:`insert` and :func:`replace` refuse.

    >>> import torch
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)), torch.randn(1, 3, 8, 8)
    >>> before, after = costs_in(net, "two", ["stand_alone(heads=4)"], "1", x, repeats=1)
    >>> before.parameters, after.parameters, after.name
    (2768, 1264, 'with stand_alone(heads=4)')
    """
    from lookfar.cost import measure_network

    found = [dataclasses.replace(measure_network(network, example, backward=backward, repeats=repeats), name=name)]
    for text in blocks:
        block, options = parse_block(text)
        changed = copy.deepcopy(network)
        put = replace if is_layer(block_info(block), options) or takes_mixers(changed, at) else insert
        put(changed, block, at, example=example, **options)
        cost = measure_network(changed, example, backward=backward, repeats=repeats)
        found.append(dataclasses.replace(cost, name=f"with {text}"))
    return found
