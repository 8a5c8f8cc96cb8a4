"""A network is looked at in evaluation, and is afterwards what it was."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._modes import modes_restored

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Inside, evaluation without gradients, nothing compiled; afterwards the modes and the random state from before."""
    devices = {p.device.index for p in network.parameters() if p.device.type == "cuda"}
    with modes_restored(network), torch.random.fork_rng([*devices]), torch.no_grad(), _eager():
        network.eval()
        yield


def _eager() -> AbstractContextManager[Any]:
    """Inside, what was compiled runs as it was written: programs keep the hooks that were there when they were made."""
    compiles = "torch._dynamo" in sys.modules  # else nothing was compiled, and its import takes a second
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def pairs(network: nn.Module, batches: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images on the network's device, and labels or None, of one batch, or of several, with or without labels."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        if not isinstance(batch, Tensor | tuple | list):
            raise ValueError(f"want batches of images, or of images and labels, got a {type(batch).__name__}")
        images, labels = (batch, None) if isinstance(batch, Tensor) else batch
        yield images.to(device), labels


@contextmanager
def inputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, what goes into these modules at each call is kept, by name; the hooks go afterwards."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as hooks:
        for name in names:
            # copies: a later layer may work in place
            keep = lambda _, *given, kept=seen[name]: kept.append(first(*given).detach().clone())  # noqa: E731
            hooks.callback(network.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield seen


def first(args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """What goes into a module that takes one thing, by its place or by its name."""
    return args[0] if args else next(iter(named.values()))
