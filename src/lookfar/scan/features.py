"""A network from one of its modules on, and data whose images are what that module gives: computed once, used often.

The module gives what it is told to, and what ran before it is not run: zeros of the same shape take its place. That is
right where nothing behind the module reads what stood before it, which is tried: a network with skips from before is
run as a whole instead.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.data import Data
from lookfar.data._base import Sample, Samples, keep
from lookfar.diagnostics._undisturbed import undisturbed

BATCH = 32
Shapes = tuple[int, ...] | list[tuple[int, ...]]  # of a tensor, or of a list of them, without the batch


class Behind(nn.Module):
    """What a network does from a module on.

    Args:
        network: Some of its modules no longer do what they did.
        spot: Name of the module.
        before: Modules that need not run -> the shapes of what they give for an image.
        image: Shape of an image.

    Shape: what the module gives ``(B, ...)`` to what the network gives
    """

    def __init__(self, network: nn.Module, spot: str, before: dict[str, Shapes], image: Sequence[int]) -> None:
        super().__init__()
        self.network, self.image = network, tuple(image)
        self._given = torch.empty(0)
        network.get_submodule(spot).forward = lambda *_, **__: self._given  # hooks behind it run as ever
        for name, shape in before.items():
            network.get_submodule(name).forward = lambda *_, shape=shape, **__: self._zeros(shape)

    def _zeros(self, shapes: Shapes) -> Any:
        if isinstance(shapes, list):
            return [self._zeros(shape) for shape in shapes]
        return self._given.new_zeros(len(self._given), *shapes)

    def forward(self, given: Tensor) -> Tensor:
        self._given = given
        return self.network(self._zeros(self.image))


def behind(network: nn.Module, spot: str, images: Tensor) -> Behind | None:
    """A network from a module on; None where more than that module's output is read from before it.

    Args:
        network: In evaluation; it is left to :class:`Behind`, or as it was where that is None.
        spot: Name of the module.
        images: ``(B, C, ...)``, two or more: an example.
    """
    with undisturbed(network):
        wanted, given, before = _watched(network, spot, images)
        if given is None or before is None:
            return None
        cut = Behind(network, spot, before, images.shape[1:])
        try:
            got = cut(given)
            same = isinstance(got, Tensor) and got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-5)
        except Exception:  # of a module of anybody's, which was given zeros
            same = False
    if same:
        return cut
    for name in (spot, *before):
        del network.get_submodule(name).forward
    return None


def _watched(network: nn.Module, spot: str, images: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Shapes] | None]:
    """What a network gives, what the module gives, and the modules that are over when it begins; None without such."""
    over: dict[str, Any] = {}  # name -> what it gave, until the module begins
    again: set[str] = set()
    calls: list[Tensor] = []

    def ended(name: str, output: Any) -> None:
        if name == spot:
            calls.append(output)
        elif not calls:
            over[name] = output
        else:
            again.add(name)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            see = lambda _, __, output, name=name: ended(name, output)  # noqa: E731
            hooks.callback(module.register_forward_hook(see, prepend=True).remove)  # before a block that hangs there
        wanted = network(images)
    if len(calls) != 1 or not isinstance(calls[0], Tensor):
        return wanted, None, None
    outermost = {
        name: output
        for name, output in over.items()
        if not any(parent in over for parent in _parents(name)) and not name.startswith(f"{spot}.")
    }
    still = {name for name in outermost if any(one == name or one.startswith(f"{name}.") for one in again)}
    shapes = {name: _shapes(output, len(images)) for name, output in outermost.items() if name not in still}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    return wanted, calls[0].clone(), known if len(known) == len(shapes) else None


def _shapes(output: Any, batch: int) -> Shapes | None:
    """Of a tensor or a list of tensors; None for anything else."""
    if isinstance(output, Tensor):
        return tuple(output.shape[1:]) if output.dim() and len(output) == batch else None
    parts = [_shapes(one, batch) for one in output] if isinstance(output, list | tuple) else [None]
    found = [shape for shape in parts if isinstance(shape, tuple)]
    return found if len(found) == len(parts) else None


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@dataclass
class Cached(Data):
    """Data whose images are features, which nothing is to be done to."""

    def normalise(self, images: Tensor) -> Tensor:
        return images


class Part:
    """Some samples of a set, their images as they are or features in their place.

    Args:
        data: Whose set it is.
        samples: The set.
        indices: Which of it.
        inputs: ``(len(indices), ...)``; None for the images.
    """

    def __init__(self, data: Data, samples: Samples, indices: Sequence[int], inputs: Tensor | None = None) -> None:
        self.data, self.samples, self.indices, self.inputs = data, samples, list(indices), inputs
        self.names = [samples.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        image, target = self.samples[self.indices[index]]
        return (image if self.inputs is None else self.inputs[index]), target

    def own_target(self, index: int) -> Tensor:
        """At the size of its file."""
        return self.data.own_target(self.indices[index], self.samples)


def part_of(data: Data, train: Sequence[int], val: Sequence[int]) -> Data:
    """The same data with some of the images, none of which training changes."""
    train_part, val_part = Part(data, data.train, train), Part(data, data.val, val)
    return replace(data, train=train_part, val=val_part, augment=keep, threads=False, also_val=None)


def cached(network: nn.Module, spot: str, data: Data) -> Cached:
    """Data of :func:`part_of` with what a module gives for its images.

    Args:
        network: In evaluation, as :func:`behind` took it before it was cut.
        spot: Name of the module.
        data: Of both sets.
    """
    values: dict[str, Any] = {field.name: getattr(data, field.name) for field in fields(data) if field.init}
    for which in ("train", "val"):
        part = values[which]
        values[which] = Part(part.data, part.samples, part.indices, _features(network, spot, data, part))
    return Cached(**values)


def _features(network: nn.Module, spot: str, data: Data, samples: Samples) -> Tensor:
    device = next(network.parameters()).device
    found: list[Tensor] = []
    hook = network.get_submodule(spot).register_forward_hook(lambda _, __, output: found.append(output.clone().cpu()))
    try:
        with undisturbed(network):
            for start in range(0, len(samples), BATCH):
                images, _ = data.collate([samples[i] for i in range(start, min(start + BATCH, len(samples)))])
                network(images.to(device))
    finally:
        hook.remove()
    return torch.cat(found)
