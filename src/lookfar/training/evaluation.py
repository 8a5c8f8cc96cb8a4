"""Validation: what a network says of every sample of a set, judged by its task."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lookfar._modes import modes_restored
from lookfar._options import choice
from lookfar.training.settings import SCORES

if TYPE_CHECKING:
    from lookfar.data import Data, Samples
    from lookfar.tasks._base import Judged, Task


def judge_batch(
    task: "Task",
    output: Tensor,
    targets: Tensor,
    data: "Data",
    indices: Sequence[int],
    score: str = "resized",
    samples: Any = None,
) -> Mapping[str, Tensor]:
    """What a task keeps of a batch, numbers ``(B, ...)`` by name.

    Args:
        task: What judges.
        output: Of the network, ``(B, ...)``.
        targets: As the network's size has them, ``(B, ...)``.
        data: The data set.
        indices: Which samples these are.
        score: One of ``SCORES``.
        samples: The set that they are of; by default ``data.val``.
    """
    if score == "resized":
        return task.judge(output, targets.to(output.device))
    return task.judge(output, (data.own_target(index, samples).to(output.device) for index in indices))


def evaluate(
    network: nn.Module,
    data: "Data",
    task: "Task",
    *,
    batch_size: int = 32,
    precision: str = "32-true",
    score: str = "resized",
    samples: "Samples | None" = None,
    not_finite: list[int] | None = None,
    rank: int = 0,
    world: int = 1,
) -> "Judged":
    """What a task keeps of every validation sample: arrays ``(S, ...)`` by name.

    Args:
        network: Inputs to outputs ``(B, ...)``; evaluated in eval mode on its own device, then as it was.
        data: The data set.
        task: What judges.
        batch_size: Samples at a time.
        precision: As in :class:`Settings`; the mixed ones run under autocast.
        score: ``resized``: targets are brought to the size that the network sees; ``original``: predictions are brought
            to the size of each file.
        samples: Another set to judge by, as ``data.also_val``; by default ``data.val``.
        not_finite: Takes the samples whose outputs are not finite.
        rank: Evaluate the samples of this process alone; of the others there are zeros.
        world: Number of processes.

    >>> from lookfar.data import open_data
    >>> from lookfar.networks import build_network
    >>> from lookfar.tasks import find_task
    >>> data = open_data("scenes:lookup")
    >>> evaluate(build_network("small", classes=5), data, find_task("segmentation"))["confusion"].shape
    (600, 5, 5)
    """
    choice("score", score, SCORES)
    judged = data.val if samples is None else samples
    alone = rank >= len(judged)  # more processes than samples: it looks at one to learn what arrays look like
    mine = range(1) if alone else range(rank, len(judged), world)
    found: Judged = {}
    start = 0
    with modes_restored(network):
        network.eval()
        for inputs, targets in _val_batches(data, judged, batch_size, mine, world):
            indices = mine[start : start + len(inputs)]
            output = predict(network, inputs, precision)
            if not_finite is not None and not alone:
                not_finite += [index for index, one in zip(indices, output) if not one.isfinite().all()]
            for name, values in judge_batch(task, output, targets, data, indices, score, judged).items():
                array = values.cpu().numpy()
                if name not in found:
                    found[name] = np.zeros((len(judged), *array.shape[1:]), array.dtype)
                if not alone:
                    found[name][indices] = array
            start += len(inputs)
    return found


def predict(network: nn.Module, inputs: Tensor, precision: str = "32-true") -> Tensor:
    """Outputs of a batch, on the network's own device and without gradients; its mode is the caller's to set."""
    parameter = next(network.parameters())
    inputs = channels_last(inputs.to(parameter.device, parameter.dtype))
    with torch.no_grad(), _autocast(precision, parameter.device):
        return network(inputs)


def channels_last(inputs: Tensor) -> Tensor:
    """Maps as GPUs and CPUs want them; inputs of other ranks as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _val_batches(
    data: "Data", judged: "Samples", batch_size: int, mine: range, world: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if world == 1:
        yield from data.val_batches(batch_size, judged)
        return
    for start in range(0, len(mine), batch_size):
        yield data.collate([judged[i] for i in mine[start : start + batch_size]])


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else contextlib.nullcontext()
