"""The blocks of a network afterwards: off and on, removed, and whether a forward pass calls them."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lookfar.insertion.dry_run import Inputs, Seen, example_inputs, run, watched
from lookfar.insertion.hanging import Insertion, detach, exchange, insertions, is_hung
from lookfar.insertion.layouts import forget_grids


def remove(network: nn.Module, which: str | Sequence[str] | None = None) -> list[str]:
    """Undo :func:`insert` and :func:`replace`: what was replaced comes back with the weights that it had.

    Args:
        network: The network.
        which: Names as :func:`insert` returned them, names of places, or globs of either; all blocks by default.

    Returns:
        Names of the removed modules.

    Raises:
        ValueError: A name that stands for no inserted block; a layer in whose place another block hangs that stays.

    >>> import torch
    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> remove(net)
    ['1.non_local']
    """
    chosen = _chosen(network, which)
    _refuse_to_lose(insertions(network), chosen)
    for found in sorted(chosen, key=lambda one: one.record.order, reverse=True):
        detach(network, found.name)
        del found.module.inserted
    forget_grids(network, [one.record.layout.grid for one in insertions(network) if one.record.layout.grid])
    return [found.name for found in chosen]


@contextlib.contextmanager
def switched_off(network: nn.Module, which: str | Sequence[str] | None = None) -> Iterator[None]:
    """Inside the ``with``, features pass the blocks unchanged; ``which`` as in :func:`remove`.

    In the place of a layer of :func:`replace` stands again what was there before, with the weights that it had.

    >>> import torch
    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> with switched_off(net):
    ...     without = net(x)
    >>> torch.equal(without, net(x))  # the block has just entered, as the identity
    True
    """
    chosen = _chosen(network, which)
    # a layer in a layer that was replaced later is in its place again before that one goes
    layers = [found for found in chosen if found.record.replaced is not None]
    layers.sort(key=lambda found: found.record.order, reverse=True)
    gone: list[Any] = []
    records = [found.record for found in chosen]
    before = [record.off for record in records]
    try:
        for record in records:
            record.off = True
        for found in layers:
            detach(network, found.name)
            gone.append(found)
        yield
    finally:
        for found in reversed(gone):
            exchange(network, found.name, found.module)
        for record, off in zip(records, before):
            record.off = off


def verify(network: nn.Module, example: Any = None) -> dict[str, int]:
    """Run the network once and count how often it calls each inserted block.

    Args:
        network: The network, after whatever was done to it since :func:`insert`: norms converted or folded, stages
            unrolled, checkpointing switched on.
        example: As for :func:`insert`.

    Returns:
        Name of each block that is not called exactly once -> how often it is called; empty where all is well. Blocks
        that were inserted with ``shared=True`` may be called more often.

    Raises:
        ValueError: No example, for a network that does not say what it takes.

    >>> import torch
    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> verify(net, x)
    {}
    """
    seen = count_calls(network, example_inputs(network, example))
    shared = {one.name for one in insertions(network) if one.record.shared}
    return {name: one.calls for name, one in seen.items() if one.calls != 1 and not (name in shared and one.calls)}


def count_calls(network: nn.Module, inputs: Inputs) -> dict[str, Seen]:
    """What each inserted block does in a forward pass in eval; one whose place is gone does nothing."""
    found = insertions(network)
    with watched(one.module for one in found) as seen:
        try:
            run(network, inputs, train=False)  # hangs blocks again where a norm became another norm
            return {one.name: what for one, what in zip(found, seen)}
        except RuntimeError:
            lost = [one.name for one in found if not is_hung(network, one)]
            if not lost:
                raise
    with switched_off(network, lost), watched(one.module for one in found) as seen:
        run(network, inputs, train=False)
    return {one.name: what for one, what in zip(found, seen)}


def _refuse_to_lose(found: list[Insertion], chosen: list[Insertion]) -> None:
    """Raise a ValueError where a block that stays hangs on a layer that goes."""
    gone = {one.name for one in chosen}
    for layer in (one.name for one in chosen if one.record.replaced is not None):
        for one in found:
            inside = any(f"{name}.".startswith(f"{layer}.") for name in (one.spot, one.place, one.holder))
            if one.name not in gone and inside:
                raise ValueError(f"{one.name} stands at {layer}, which would go: remove it first, or both together")


def _chosen(network: nn.Module, which: str | Sequence[str] | None) -> list[Insertion]:
    found = insertions(network)
    if which is None:
        return found
    chosen: set[str] = set()
    for pattern in [which] if isinstance(which, str) else which:
        one = re.compile(r"[^.]*".join(map(re.escape, pattern.split("*"))))
        matches = {f.name for f in found if one.fullmatch(f.name) or one.fullmatch(f.place)}
        if not matches:
            have = ", ".join(f.name for f in found) or "there are none"
            raise ValueError(f"no inserted block is called {pattern!r}; inserted blocks: {have}")
        chosen |= matches
    return [f for f in found if f.name in chosen]
