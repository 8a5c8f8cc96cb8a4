"""A network is looked at in evaluation, and is afterwards what it was."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._modes import modes_restored

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Inside, evaluation without gradients; afterwards the modes and the random state from before."""
    devices = {p.device.index for p in network.parameters() if p.device.type == "cuda"}
    with modes_restored(network), torch.random.fork_rng([*devices]), torch.no_grad():
        network.eval()
        yield


def pairs(network: nn.Module, batches: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images on the network's device, and labels or None, of one batch, or of several, with or without labels."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        images, labels = (batch, None) if isinstance(batch, Tensor) else batch
        yield images.to(device), labels


@contextmanager
def inputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, what goes into these modules at each call is kept, by name; the hooks go afterwards."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as hooks:
        for name in names:
            # copies: a later layer may work in place
            keep = lambda _, args, kept=seen[name]: kept.append(args[0].detach().clone())  # noqa: E731
            hooks.callback(network.get_submodule(name).register_forward_pre_hook(keep).remove)
        yield seen
