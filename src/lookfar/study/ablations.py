"""What a trial's network scores when its blocks have to do without something, from its final weights.

``ablations.npz`` of a trial with a block holds the facts of every validation sample as its task gives them, for a
segmentation counts ``(images, 3, K)``: ``mean_map``, ``other_map``, ``constant`` and ``off``, and in ``reason`` why the
first two are missing where they are. Nothing is concluded from them here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookfar._arrays import read_arrays
from lookfar._modes import modes_restored

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lookfar.data import Data, Samples
    from lookfar.study.plan import Plan
    from lookfar.tasks import Task

FILES = ("ablations.npz", "also-ablations.npz")  # on the validation images, on the second set to judge by
KINDS = ("mean_map", "other_map", "constant", "off")


def ablate(network: "nn.Module", names: Sequence[str], data: "Data", task: "Task", plan: "Plan", trial: Path) -> None:
    """Measure a trial's network on each set that judges; what cannot be measured costs no trial its result."""
    settings = plan.settings()
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("batch_size", "precision", "score")}
    for name, samples in zip(FILES, (data.val, data.also_val)):
        if samples is None:
            continue
        try:
            facts, reason = measure_ablations(network, names, data, task, samples, **options)
        except Exception as error:  # of a module of the user's, or memory
            facts, reason = {}, f"not measured: {' '.join(str(error).split()) or type(error).__name__}"
        save_ablations(trial / name, facts, reason)


def has_ablations(trial: Path, plan: "Plan") -> bool:
    """Whether all that :func:`ablate` writes is there."""
    wanted = FILES if plan.also_val else FILES[:1]
    return all(any(load_ablations(trial / name)) for name in wanted)


class Shifted:
    """The same samples, each in the place of the one so many before it."""

    def __init__(self, samples: Any, by: int) -> None:
        self.samples, self.by = samples, by

    @property
    def names(self) -> list[str]:
        return [self.samples.names[self._at(index)] for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Any:
        return self.samples[self._at(index)]

    def _at(self, index: int) -> int:
        return (index + self.by) % len(self.samples)


def measure_ablations(
    network: "nn.Module",
    names: Sequence[str],
    data: "Data",
    task: "Task",
    samples: "Samples",
    *,
    batch_size: int,
    precision: str,
    score: str,
) -> tuple[dict[str, np.ndarray], str]:
    """Facts of all samples of a set by what the blocks ``names`` do without, and why some are missing.

    The other sample is the one half the set further on: neighbours are often frames of one video. A kind whose outputs
    are not finite is left out.
    """
    from lookfar.diagnostics import replacing as ablations
    from lookfar.diagnostics import why_no_maps
    from lookfar.insertion import switched_off
    from lookfar.training.evaluation import judge_batch, predict

    reason = next(filter(None, (why_no_maps(network.get_submodule(name)) for name in names)), "")
    found: dict[str, list[np.ndarray]] = {}
    bad: set[str] = set()
    everything = ablations.Seen()

    def judge(kind: str, inputs: "torch.Tensor", targets: "torch.Tensor", start: int) -> None:
        output = predict(network, inputs, precision)
        if not output.isfinite().all():
            bad.add(kind)
        if kind not in bad:
            judged = judge_batch(task, output, targets, data, range(start, start + len(inputs)), score, samples)
            found.setdefault(kind, []).append(task.facts({name: of.cpu().numpy() for name, of in judged.items()}))

    with modes_restored(network):
        network.eval()
        others = Shifted(samples, len(samples) // 2)
        start = 0
        for (inputs, targets), (of_others, _) in zip(
            data.val_batches(batch_size, samples), data.val_batches(batch_size, others), strict=True
        ):
            everything.inputs.clear()
            with ablations.watched(network, names, everything):
                predict(network, of_others, precision)
            with switched_off(network, list(names)):
                judge("off", inputs, targets, start)
            if not reason:
                with ablations.mean_map(network, names):
                    judge("mean_map", inputs, targets, start)
            if not reason and others.by:
                with ablations.map_of_others(network, names, everything.inputs):
                    judge("other_map", inputs, targets, start)
            start += len(inputs)
        start = 0
        with ablations.constant(network, everything.means()):
            for inputs, targets in data.val_batches(batch_size, samples):
                judge("constant", inputs, targets, start)
                start += len(inputs)
    return {kind: np.concatenate(found[kind]) for kind in KINDS if kind in found and kind not in bad}, reason


def save_ablations(path: Path, facts: Mapping[str, np.ndarray], reason: str) -> None:
    """Write ``ablations.npz``; counts as whole numbers, which pack better."""
    from lookfar.training.checkpoints import save_arrays

    whole = {kind: of.astype(np.int64) if (of == np.floor(of)).all() else of for kind, of in facts.items()}
    save_arrays(path, reason=np.array(reason), **whole)


def load_ablations(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What :func:`save_ablations` wrote; nothing where there is no file, or none that can be read."""
    arrays = read_arrays(path)
    if "reason" not in arrays:  # damaged: the study measures it again
        return {}, ""
    return {kind: arrays[kind].astype(np.float64) for kind in KINDS if kind in arrays}, str(arrays["reason"])
