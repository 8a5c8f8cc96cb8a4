"""Blocks in a network: how they hang there, which ones there are, without them, and away with them."""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lookfar.blocks import block_info


class Gated(nn.Module):
    """x + gamma (block(x) - x) with a learnable gamma that starts at zero: any block enters as the identity.

    Args:
        block: A module that keeps the shape of its input.

    Shape: that of ``block``
    """

    def __init__(self, block: nn.Module, *, device=None, dtype=None) -> None:
        super().__init__()
        self.block = block
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma.to(x.dtype) * (self.block(x).to(x.dtype) - x)


@dataclass(frozen=True)
class Insertion:
    """A block in a network.

    Attributes:
        name: Name of the block's module in the network; its parameters' keys start with it.
        place: Name of the module on whose output the block works.
        module: The block, inside :class:`Gated` where it needs that to enter as the identity.
    """

    name: str
    place: str
    module: nn.Module = field(repr=False)


def insertions(network: nn.Module) -> list[Insertion]:
    """The blocks that :func:`insert` has put into ``network``, in the network's order."""
    found = []
    for place, module in network.named_modules():
        for path in _paths(module).values():
            name = f"{place}.{path}".lstrip(".")
            found.append(Insertion(name, place, network.get_submodule(name)))
    return found


def remove(network: nn.Module, which: str | Sequence[str] | None = None) -> list[str]:
    """Undo :func:`insert`.

    Args:
        network: The network.
        which: Names as :func:`insert` returned them, names of places, or globs of either; all blocks by default.

    Returns:
        Names of the removed modules.

    Raises:
        ValueError: A name that stands for no inserted block.
    """
    chosen = _chosen(network, which)
    for found in chosen:
        detach(network, found.name, found.place)
    return [found.name for found in chosen]


@contextlib.contextmanager
def switched_off(network: nn.Module, which: str | Sequence[str] | None = None) -> Iterator[None]:
    """Inside the ``with``, features pass the blocks unchanged; ``which`` as in :func:`remove`.

    A network that was compiled before is to be compiled again.
    """
    off = {found.name for found in _chosen(network, which)}
    kept: list[tuple[nn.Module, dict[int, Any], set[int]]] = []
    for place, module in network.named_modules():
        paths = {key: f"{place}.{path}".lstrip(".") for key, path in _paths(module).items()}
        ours = {key for key, name in paths.items() if name in off}
        if ours:
            kept.append((module, dict(module._forward_hooks), ours))
            for key in ours:
                del module._forward_hooks[key]
    try:
        yield
    finally:
        for module, before, ours in kept:  # in their order, and as others have meanwhile added and removed theirs
            now = dict(module._forward_hooks)
            module._forward_hooks.clear()
            module._forward_hooks.update({k: h for k, h in before.items() if k in now or k in ours} | now)


@dataclass
class Slot:
    """A block that is being inserted."""

    place: str
    module: nn.Module
    feature: Tensor
    name: str = ""


def _run_block(module: nn.Module, args: Any, output: Tensor, *, path: str) -> Tensor:
    """The hook. At module level and bound by ``functools.partial``, so that it can be copied and pickled."""
    return module.get_submodule(path)(output)


def _paths(module: nn.Module) -> dict[int, str]:
    """Hook id -> the path from ``module`` to the block that the hook calls."""
    return {
        key: hook.keywords["path"]
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, functools.partial) and hook.func is _run_block
    }


def attach(network: nn.Module, slot: Slot, holder: str) -> None:
    parent, module = network.get_submodule(holder), network.get_submodule(slot.place)
    base = name = _snake(slot.module)
    number = 1
    while hasattr(parent, name):
        number += 1
        name = f"{base}_{number}"
    parent.add_module(name, slot.module)
    slot.name = f"{holder}.{name}"
    while RemovableHandle.next_id in module._forward_hooks:
        RemovableHandle({})  # ids start anew in the process that unpickles a network: a hook in use would be replaced
    path = slot.name[len(slot.place) + 1 :]
    module.register_forward_hook(functools.partial(_run_block, path=path))


def detach(network: nn.Module, name: str, place: str) -> None:
    if not name:
        return
    module = network.get_submodule(place)
    for key, path in _paths(module).items():
        if f"{place}.{path}" == name:
            del module._forward_hooks[key]
    holder, _, child = name.rpartition(".")
    delattr(network.get_submodule(holder), child)


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


def block_name(module: nn.Module) -> str:
    """The registered name of an inserted module's block, or its class's."""
    module = module.block if isinstance(module, Gated) else module
    try:
        return block_info(module).name
    except ValueError:
        return type(module).__name__


def _snake(module: nn.Module) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", block_name(module)).lower()
