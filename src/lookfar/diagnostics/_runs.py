"""A network that is run again and again while its blocks do without something, and what goes into them each time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.diagnostics import replacing
from lookfar.diagnostics._undisturbed import inputs_of, pairs

Call = Callable[[nn.Module, Tensor], Any]
Inputs = Mapping[str, list[Tensor]]  # of blocks, call by call


def plainly(network: nn.Module, images: Tensor) -> Any:
    """The network's output."""
    return network(images)


@dataclass
class Batch:
    """Images with what the whole network gives for them, and what goes into its blocks."""

    start: int
    images: Tensor
    labels: Any
    full: Any
    inputs: Inputs

    @property
    def sizes(self) -> tuple[torch.Size, ...]:
        return sizes_of(self.inputs)


@dataclass
class _Waiting:
    """Batches of one size, of which the last waits for its next image."""

    first: Inputs = field(default_factory=dict)
    last: Batch | None = None
    images: int = 0


@dataclass(frozen=True)
class Runs:
    """The network, the names of its blocks, and how it is called."""

    network: nn.Module
    names: Sequence[str]
    call: Call

    def run(self, images: Tensor) -> Any:
        """What draws random numbers draws the same ones every time."""
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return self.call(self.network, images)

    def outputs(
        self, batch: Batch, other: Inputs, means: Mapping[str, Tensor], kinds: Sequence[str]
    ) -> Iterator[tuple[str, Any]]:
        """The network's output by kind."""
        network, names = self.network, self.names
        inside: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "full": nullcontext,
            "mean": lambda: replacing.mean_map(network, names),
            "uniform": lambda: replacing.uniform_map(network, names),
            "other": lambda: replacing.map_of_others(network, names, other),
            "pairwise": lambda: replacing.one_term(network, names, "pairwise"),
            "unary": lambda: replacing.one_term(network, names, "unary"),
            "constant": lambda: replacing.constant(network, means),
            "off": lambda: replacing.nothing(network, names),
        }
        for kind in kinds:
            if kind == "full":
                yield kind, batch.full
                continue
            with inside[kind]():
                yield kind, self.run(batch.images)

    def with_others(self, batches: Any, others: Any) -> Iterator[tuple[Batch, Inputs | None]]:
        """Each batch with what goes into the blocks for other images; None where an image has no other of its size."""
        if others is not None:
            for batch, (images, _) in zip(self.seen(batches), pairs(self.network, others), strict=True):
                with inputs_of(self.network, self.names) as inputs:
                    self.run(images)
                if sizes_of(inputs) != batch.sizes or len(images) != len(batch.images):
                    raise ValueError(
                        f"want others of the same size: {tuple(batch.images.shape)}, got {tuple(images.shape)}"
                    )
                yield batch, inputs
            return
        waiting: dict[tuple[torch.Size, ...], _Waiting] = {}
        for batch in self.seen(batches):
            first = {name: [x[:1] for x in inputs] for name, inputs in batch.inputs.items()}
            of_size = waiting.setdefault(batch.sizes, _Waiting(first))
            if of_size.last is not None:
                yield of_size.last, _shifted(of_size.last, first)
            of_size.last = batch
            of_size.images += len(batch.images)
        for of_size in waiting.values():
            if of_size.last is not None:
                yield of_size.last, _shifted(of_size.last, of_size.first) if of_size.images > 1 else None

    def seen(self, batches: Any) -> Iterator[Batch]:
        """Each batch with what goes into the blocks."""
        start = 0
        for images, labels in pairs(self.network, batches):
            with inputs_of(self.network, self.names) as inputs:
                full = self.run(images)
            for name, calls in inputs.items():
                if not calls:
                    raise ValueError(not_called(self.network, name))
            yield Batch(start, images, labels, full, inputs)
            start += len(images)

    def means_added(self, training: Any) -> dict[str, Tensor]:
        """What each block adds on average over positions and images, ``(C,)``."""
        total = replacing.Seen()
        for images, _ in pairs(self.network, training):
            total.inputs.clear()
            with replacing.watched(self.network, self.names, total):
                self.run(images)
        if not total.sums:
            raise ValueError("want at least one batch of training images, got none")
        return total.means()


def not_called(network: nn.Module, name: str) -> str:
    """That a pass leaves a block out; or why a foreign attention is none that can be asked."""
    wrong = getattr(getattr(network.get_submodule(name), "block", None), "wrong", "")
    return f"{name}: {wrong}" if wrong else f"the network does not call its block {name!r}"


def sizes_of(inputs: Inputs) -> tuple[torch.Size, ...]:
    return tuple(x.shape[1:] for calls in inputs.values() for x in calls)


def _shifted(batch: Batch, following: Inputs) -> Inputs:
    return {
        name: [torch.cat([x[1:], after]) for x, after in zip(batch.inputs[name], following[name])] for name in following
    }
