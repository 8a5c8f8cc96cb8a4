"""A trained network whose blocks have to do without something: the query in their maps, their image, their maps.

Each of these is a ``with``; inside it the network computes otherwise, outside it is what it was. What is taken away:

- :func:`mean_map`: every query gets the mean of the image's maps in the place of its own. A block whose maps depend on
  the query by their window alone changes too, so this says little of such a block.
- :func:`uniform_map`: every query gets the plain average of the values of all keys that it may see.
- :func:`map_of_others`: every query gets the map that it would have in another image, with the values of its own.
- :func:`one_term`: of a softmax of dot products, the pairwise or the unary term alone.
- :func:`constant`: the block adds the same vector everywhere: what it adds on average; :func:`nothing`: nothing.

All are ``finish(x, other_map @ values(x))``, and none holds the maps of all queries.

Layers behind a block are used to what it added on average, so that the loss without it mixes use with habit; the
constant leaves them the habit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info
from lookfar.blocks._layers import keeps_input
from lookfar.blocks._mixers import NoMixer
from lookfar.diagnostics._undisturbed import first
from lookfar.diagnostics.decomposition import NO_DOT_PRODUCT, decompose
from lookfar.diagnostics.maps import inner_block, query_size, why_no_maps
from lookfar.ops.attention import attention

Hook = Callable[[nn.Module, Any, Any, Any], Any]

WEIGHTS = 2**23  # numbers of all maps of a batch that are there at a time
SEE_ALL = ("pairwise", "global", "low_rank", "pyramid", "external")  # families whose queries see every key
SEE_BY_PLACE = ("local", "sparse")  # those whose queries see some keys, by where they are


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
    values = block.values(x)  # pyright: ignore[reportCallIssue]
    mixed = (mean_weights(block, x, values) @ values).expand(-1, -1, _queries(block, x), -1).contiguous()
    return block.finish(x, mixed)  # pyright: ignore[reportCallIssue]


def mean_weights(block: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """The mean of an image's maps, ``(B, h, 1, M)``, from the block's input and its values ``(B, h, M, E)``."""
    total = torch.zeros(*values.shape[:2], 1, values.shape[2], dtype=values.dtype, device=values.device)
    for weights in _maps(block, x, values):
        total += weights.sum(-2, keepdim=True)
    return total / _queries(block, x)


def replay_uniform(block: nn.Module, x: Tensor) -> Tensor:
    """As :func:`replay`, with equal weights on all keys that a query may see: all, or those of its window or its lines.

    A saturated softmax has weights of exactly zero on keys that it sees. What a block sees is told by its family, of
    windows and lines also by what they see in an input of zeros, and only else by the weights alone.
    """
    values, queries = block.values(x), _queries(block, x)  # pyright: ignore[reportCallIssue]
    if block_info(block).family in SEE_ALL and not getattr(block, "masked", False):
        mixed = values.mean(-2, keepdim=True).expand(-1, -1, queries, -1).contiguous()
    else:
        fixed = torch.zeros_like(x) if block_info(block).family in SEE_BY_PLACE else x
        portions = zip(_maps(block, x, values), _maps(block, fixed, values))
        seen = (((weights != 0) | (by_place != 0)).to(values) for weights, by_place in portions)
        mixed = torch.cat([some @ values / some.sum(-1, keepdim=True).clamp(min=1) for some in seen], -2)
    return block.finish(x, mixed)  # pyright: ignore[reportCallIssue]


def replay_term(block: nn.Module, x: Tensor, term: Literal["pairwise", "unary"]) -> Tensor:
    """As :func:`replay`, by one term of the logits alone, see :mod:`lookfar.diagnostics.decomposition`.

    Raises:
        ValueError: The block's weights are no softmax of dot products.
    """
    parts = decompose(block, x)
    if parts is None:
        raise ValueError(f"no {term} map: {block_info(block).name}: {NO_DOT_PRODUCT}")
    values, mean = block.values(x), parts.mean_query()  # pyright: ignore[reportCallIssue]
    q = parts.q - mean if term == "pairwise" else mean
    mixed = attention(q, parts.k, values, scale=parts.scale)
    return block.finish(x, mixed.expand(-1, -1, _queries(block, x), -1).contiguous())  # pyright: ignore[reportCallIssue]


def _queries(block: nn.Module, x: Tensor) -> int:
    """How many: as many as positions, but for blocks with a stride."""
    return math.prod(query_size(block, x.shape[2:]))


def _maps(block: nn.Module, x: Tensor, values: Tensor) -> Iterator[Tensor]:
    """All maps ``(B, h, Q, M)``, some queries at a time."""
    some = max(WEIGHTS // max(values.shape[:3].numel(), 1), 1)
    for queries in torch.arange(_queries(block, x), device=x.device).split(some):
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
        """Take in one call: an input, and what the block added to it."""
        self.inputs.setdefault(name, []).append(x)
        added = y.float().sum([d for d in range(x.dim()) if d != 1]).cpu().double()
        self.sums[name] = self.sums[name] + added if name in self.sums else added
        self.counts[name] = self.counts.get(name, 0) + x.numel() // x.shape[1]

    def means(self) -> dict[str, Tensor]:
        """What each block adds on average, ``(C,)``."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def is_branch(block: nn.Module) -> bool:
    """Whether what a module gives is added elsewhere, as that of a transformer's attention or of a mixer is."""
    if stands_for_none(block):
        return True
    if not _is_block(block):
        return False
    inner = inner_block(block)
    return getattr(inner, "branch", False) or (inner is block and not keeps_input(block))  # a gate adds around it


def stands_for_none(module: nn.Module) -> bool:
    """Whether a module stands where the network keeps a place for a mixer: without it nothing is added there."""
    return isinstance(getattr(getattr(module, "inserted", None), "replaced", None), NoMixer)


def added(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a block adds, from its input and its output."""
    return y.detach() if is_branch(block) else y.detach().float() - x.detach().float()


def _is_block(module: nn.Module) -> bool:
    try:
        inner_block(module)
    except ValueError:  # a module of the user's own
        return False
    return True


@contextmanager
def watched(network: nn.Module, names: Sequence[str], seen: Seen | None = None) -> Iterator[Seen]:
    """Remember in ``seen``, or something new, what goes into the inserted blocks ``names`` and what they add."""
    seen = Seen() if seen is None else seen

    def hook_of(name: str) -> Hook:
        # copies: a later layer may work in place
        def hook(block: nn.Module, args: Any, named: Any, output: Any) -> None:
            x = first(args, named)
            seen.add(name, x.detach().clone(), added(block, x, output))

        return hook

    with ExitStack() as hooks:
        for name in names:
            _hang(hooks, network.get_submodule(name), hook_of(name))
        yield seen


@contextmanager
def mean_map(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the ``with`` every query of the blocks ``names`` has the mean of its image's maps."""
    with _instead(network, names, lambda name, call, block, x: replay_mean(block, x)):
        yield


@contextmanager
def uniform_map(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the ``with`` the queries of the blocks ``names`` weigh all keys that they may see alike."""
    with _instead(network, names, lambda name, call, block, x: replay_uniform(block, x)):
        yield


@contextmanager
def one_term(network: nn.Module, names: Sequence[str], term: Literal["pairwise", "unary"]) -> Iterator[None]:
    """Inside the ``with`` the blocks ``names`` have maps of the pairwise or the unary term of their logits alone."""
    with _instead(network, names, lambda name, call, block, x: replay_term(block, x, term)):
        yield


@contextmanager
def nothing(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the ``with`` the modules ``names`` give back their input, those that are branches zeros."""

    def hook(block: nn.Module, args: Any, named: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output) if is_branch(block) else first(args, named)

    with ExitStack() as hooks:
        for name in names:
            _hang(hooks, network.get_submodule(name), hook)
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
        def hook(block: nn.Module, args: Any, named: Any, output: Tensor) -> Tensor:
            x = torch.zeros_like(output) if is_branch(block) else first(args, named)
            return (x + vector.to(x).view(-1, *[1] * (x.dim() - 2))).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for name, vector in added.items():
            _hang(hooks, network.get_submodule(name), plus(vector))
        yield


@contextmanager
def _instead(
    network: nn.Module, names: Sequence[str], output_of: Callable[[str, int, nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Other outputs for the blocks themselves, within the gates that some stand in."""

    def hook_of(name: str) -> Hook:
        call = -1

        def hook(block: nn.Module, args: Any, named: Any, output: Tensor) -> Tensor:
            nonlocal call
            call += 1
            return output_of(name, call, block, first(args, named)).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for name in names:
            module = network.get_submodule(name)
            if reason := why_no_maps(module):
                raise ValueError(f"no maps to replace: {reason}")
            _hang(hooks, inner_block(module), hook_of(name))
        yield


def _hang(hooks: ExitStack, module: nn.Module, hook: Hook) -> None:
    """Until the stack is left."""
    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
