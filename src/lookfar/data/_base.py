"""What a data set is to the rest of lookfar: raw samples, names of classes, and batches that depend on (seed, step)."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

IGNORE = 255  # the label that neither the loss nor a score sees

Target = Literal["mask", "class"]
Sample = tuple[Tensor, Tensor]


class Samples(Protocol):
    """A sequence of ``(image uint8 (C, H, W), mask uint8 (H, W))``, all of one size.

    Where an image has one label, that is a number ``()``, int64; inputs and targets of other tasks may have any number
    of axes.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Augment(Protocol):
    """A random change of an image and its target; draws from ``generator``, by default torch's global one."""

    def __call__(self, image: Tensor, target: Tensor, /, generator: torch.Generator | None = None) -> Sample: ...


def keep(image: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Sample:
    """The augmentation that changes nothing."""
    return image, mask


class MemorySamples:
    """Samples that lie in two tensors, ``(S, C, ...)`` and ``(S, ...)``."""

    def __init__(self, inputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        self.inputs, self.targets, self.names = inputs, targets, names

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int, /) -> Sample:
        return self.inputs[index], self.targets[index]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool a process: the threads of a parent are not there after a fork."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="lookfar-data")


def derive_seed(*numbers: int) -> int:
    """A seed from several numbers; neighbouring numbers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


@dataclass
class Data:
    """A data set, as :func:`lookfar.data.open_data` gives it.

    Attributes:
        name: The spec it was opened with, as in ``"scenes:lookup"``.
        train: Raw training samples: ``train[i]`` is ``(image uint8 (C, H, W), mask uint8 (H, W))``, ``train.names[i]``.
        val: Raw validation samples.
        classes: Names; the index is the label. 255 is ignored.
        in_chans: Bands of an image.
        size: Of what the network sees: height and width of an image; any number of axes.
        mean: Mean of each band, for values in [0, 1].
        std: Standard deviation of each band.
        question: One or two sentences that say what is to be learned.
        target: What is labelled: each pixel, ``mask``, or each image, ``class``.
        facts: Counts, what was skipped, what the scan of the masks found; one line each.
        augment: Random change of a training sample.
        threads: Decode and augment in a pool of threads, one batch ahead.
        also_val: A second set to judge by, used for nothing else; None without one.
        ordered: Whether positions that lie side by side belong together; those of a cloud's points do not.
    """

    name: str
    train: Samples
    val: Samples
    classes: list[str]
    in_chans: int
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    question: str
    target: Target = "mask"
    facts: list[str] = field(default_factory=list)
    augment: Augment = keep
    threads: bool = False
    also_val: Samples | None = None
    ordered: bool = True
    _ahead: dict[Any, list[Future[Sample]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": {}}  # what is being decoded stays with the process that asked for it

    def normalise(self, images: Tensor) -> Tensor:
        """``(B, C, ...)``, uint8 or floats in [0, 1], to zero mean and unit deviation of each band.

        Bands are axis 1, however many axes follow: three frames of three bands would else be taken for one another.

        Raises:
            ValueError: Another number of bands.
        """
        if images.ndim < 2 or images.shape[1] != len(self.mean):
            raise ValueError(f"want (B, {len(self.mean)}, ...), bands in axis 1, got {tuple(images.shape)}")
        scale = 1.0 / 255.0 if images.dtype == torch.uint8 else 1.0
        bands = (-1, *[1] * (images.ndim - 2))
        mean, std = (torch.tensor(t, device=images.device).view(bands) for t in (self.mean, self.std))
        return (images.float() * scale - mean) / std

    def example(self, batch: int = 1) -> Tensor:
        """Noise of the shape that networks are given, ``(batch, C, *size)``, from torch's global generator."""
        return torch.randn(batch, self.in_chans, *self.size)

    def batch(self, seed: int, step: int, batch_size: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """The training batch of a step: a function of its arguments alone, whatever was asked before.

        An epoch is a permutation drawn from ``(seed, epoch)``; a batch that meets its end continues in the next one.
        The augmentation of a sample is drawn from ``(seed, position)``, so that several processes see what one would.

        Args:
            seed: Of order and augmentation.
            step: Counted from 0.
            batch_size: Samples in the step, of all processes together.
            rank: Which share of the batch is wanted.
            world: Into how many shares it is cut.

        Returns:
            Images ``(B, C, H, W)``, float and normalised, and masks ``(B, H, W)`` or labels ``(B,)``, int64; B is
            ``batch_size / world``. Targets that are floats stay so.

        Raises:
            ValueError: The batch cannot be cut into equal shares.
        """
        if batch_size < 1 or batch_size % world or not 0 <= rank < world:
            raise ValueError(f"a batch of {batch_size} has no share {rank} of {world} equal ones")
        share = batch_size // world

        def positions(step: int) -> range:
            start = step * batch_size + rank * share
            return range(start, start + share)

        if not self.threads:
            return self.collate([self._train_sample(seed, p) for p in positions(step)])
        wanted, following = (seed, positions(step)), (seed, positions(step + 1))
        running = self._ahead.pop(wanted, None) or self._submit(*wanted)
        self._ahead = {following: self._submit(*following)}
        return self.collate([future.result() for future in running])

    def val_batches(self, batch_size: int, samples: Samples | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """A set in order, by default ``val``: normalised images and int64 masks; the last batch may be smaller."""
        judged = self.val if samples is None else samples
        get: Callable[[int], Sample] = judged.__getitem__
        for start in range(0, len(judged), batch_size):
            indices = range(start, min(start + batch_size, len(judged)))
            batch = _pool(os.getpid()).map(get, indices) if self.threads else map(get, indices)
            yield self.collate(list(batch))

    def own_target(self, index: int, samples: Samples | None = None) -> Tensor:
        """The target of a sample at its file's own size, such as a mask ``(H, W)``; without files as it is."""
        judged = self.val if samples is None else samples
        read: Callable[[int], Tensor] | None = getattr(judged, "own_target", None)
        return judged[index][1] if read is None else read(index)

    def own_image(self, index: int, samples: Samples | None = None) -> Tensor:
        """The image ``(C, H, W)``, uint8, of a sample at its file's own size; of samples without files as they are."""
        judged = self.val if samples is None else samples
        read: Callable[[int], Tensor] | None = getattr(judged, "own_image", None)
        return judged[index][0] if read is None else read(index)

    def _submit(self, seed: int, positions: range) -> list[Future[Sample]]:
        return [_pool(os.getpid()).submit(self._train_sample, seed, p) for p in positions]

    def _train_sample(self, seed: int, position: int) -> Sample:
        epoch, index = divmod(position, len(self.train))
        image, mask = self.train[_permutation(seed, epoch, len(self.train))[index]]
        generator = torch.Generator().manual_seed(derive_seed(seed, position, 1))
        return self.augment(image, mask, generator)

    def collate(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Raw samples as a batch: normalised inputs, and targets, int64 unless they are floats."""
        images, targets = (torch.stack(parts) for parts in zip(*samples))
        return self.normalise(images), targets if targets.is_floating_point() else targets.long()
