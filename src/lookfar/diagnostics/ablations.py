"""A trained network whose blocks have to do without something: the query in their maps, their image, their maps.

Each of these is a ``with``; inside it the network computes otherwise, outside it is what it was. What is taken away:

- :func:`mean_map`: every query gets the mean of the image's maps in the place of its own. A block whose maps depend on
  the query by their window alone changes too, so this says little of such a block.
- :func:`map_of_others`: every query gets the map that it would have in another image, with the values of its own.
- :func:`constant`: the block adds the same vector everywhere: what it adds on average.

:func:`lookfar.insertion.switched_off` takes away the whole block. Layers behind it are used to what it added on
average, so that the loss mixes use with habit; the constant leaves them the habit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.diagnostics.maps import inner_block, why_no_maps

Hook = Callable[[nn.Module, Any, Any], Any]

WEIGHTS = 2**23  # numbers of all maps of a batch that are there at a time


def replay(block: nn.Module, x: Tensor, maps_of: Tensor | None = None) -> Tensor:
    """The output of a block with weights over positions for ``x``, by the maps that it has for ``maps_of``.

    Args:
        block: A block whose mathematics has weights over positions.
        x: ``(B, C, *S)``.
        maps_of: The same shape; ``x`` itself gives the block's own output.
    """
    values = block.values(x)  # pyright: ignore[reportCallIssue]  # (B, h, M, E)
    mixed = [weights @ values for weights in _maps(block, x if maps_of is None else maps_of, values)]
    return block.finish(x, torch.cat(mixed, -2))  # pyright: ignore[reportCallIssue]


def replay_mean(block: nn.Module, x: Tensor) -> Tensor:
    """As :func:`replay`, with the mean of an image's maps for every query."""
    values, positions = block.values(x), x[0, 0].numel()  # pyright: ignore[reportCallIssue]
    mean = sum(weights.sum(-2, keepdim=True) for weights in _maps(block, x, values)) / positions
    mixed = (mean @ values).expand(-1, -1, positions, -1).contiguous()
    return block.finish(x, mixed)  # pyright: ignore[reportCallIssue]


def _maps(block: nn.Module, x: Tensor, values: Tensor) -> Iterator[Tensor]:
    """All maps ``(B, h, Q, M)``, some queries at a time."""
    some = max(WEIGHTS // max(values.shape[:3].numel(), 1), 1)
    for queries in torch.arange(x[0, 0].numel(), device=x.device).split(some):
        yield block.attention(x, queries)  # pyright: ignore[reportCallIssue]


@dataclass
class Seen:
    """What went into blocks, and what they added to it, by module name.

    Attributes:
        inputs: ``(B, C, *S)``, call by call.
        sums: Of what was added, over images, positions and calls, ``(C,)``.
        counts: Of how many summands.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Take in one call."""
        self.inputs.setdefault(name, []).append(x)
        added = (y.float() - x.float()).sum([d for d in range(x.dim()) if d != 1]).cpu().double()
        self.sums[name] = self.sums[name] + added if name in self.sums else added
        self.counts[name] = self.counts.get(name, 0) + x.numel() // x.shape[1]

    def means(self) -> dict[str, Tensor]:
        """What each block adds on average, ``(C,)``."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@contextmanager
def watched(network: nn.Module, names: Sequence[str], seen: Seen | None = None) -> Iterator[Seen]:
    """Remember in ``seen``, or something new, what goes into the inserted blocks ``names`` and what they add."""
    seen = Seen() if seen is None else seen

    def hook_of(name: str) -> Hook:
        # copies: a later layer may work in place
        return lambda _, args, output: seen.add(name, args[0].detach().clone(), output.detach())

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(network.get_submodule(name).register_forward_hook(hook_of(name)).remove)
        yield seen


@contextmanager
def mean_map(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the ``with`` every query of the blocks ``names`` has the mean of its image's maps."""
    with _instead(network, names, lambda name, call, block, x: replay_mean(block, x)):
        yield


@contextmanager
def map_of_others(network: nn.Module, names: Sequence[str], others: Mapping[str, Sequence[Tensor]]) -> Iterator[None]:
    """Inside the ``with`` every query of the blocks ``names`` has the map that it has in another image.

    Args:
        network: The network.
        names: Of inserted blocks.
        others: Their inputs for a batch of other images, call by call, as :func:`watched` sees them.
    """
    with _instead(network, names, lambda name, call, block, x: replay(block, x, others[name][call])):
        yield


@contextmanager
def constant(network: nn.Module, added: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the ``with`` each block adds the same vector ``(C,)`` at every position of every image."""

    def plus(vector: Tensor) -> Hook:
        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            x = args[0]
            return (x + vector.to(x).view(-1, *[1] * (x.dim() - 2))).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for name, vector in added.items():
            hooks.callback(network.get_submodule(name).register_forward_hook(plus(vector)).remove)
        yield


@contextmanager
def _instead(
    network: nn.Module, names: Sequence[str], output_of: Callable[[str, int, nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Other outputs for the blocks themselves, within the gates that some stand in."""

    def hook_of(name: str) -> Hook:
        call = -1

        def hook(block: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal call
            call += 1
            return output_of(name, call, block, args[0]).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for name in names:
            module = network.get_submodule(name)
            if reason := why_no_maps(module):
                raise ValueError(f"no maps to replace: {reason}")
            hooks.callback(inner_block(module).register_forward_hook(hook_of(name)).remove)
        yield
