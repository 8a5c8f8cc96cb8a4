"""What a trial's network scores when its blocks have to do without something, from its final weights.

``ablations.npz`` of a trial with a block holds the counts of every validation image, ``(images, 3, K)`` as
:func:`lookfar.study.scoring.counts_of` gives them: ``mean_map``, ``other_map``, ``constant`` and ``off``, and in
``reason`` why the first two are missing where they are. Nothing is concluded from them here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookfar._modes import modes_restored
from lookfar.study.scoring import counts_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lookfar.data import Data, Samples
    from lookfar.study.plan import Plan

FILES = ("ablations.npz", "also-ablations.npz")  # on the validation images, on the second set to judge by
KINDS = ("mean_map", "other_map", "constant", "off")


def ablate(network: "nn.Module", names: Sequence[str], data: "Data", plan: "Plan", trial: Path) -> None:
    """Measure a trial's network on each set that judges; what cannot be measured costs no trial its result."""
    settings = plan.settings()
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("batch_size", "precision", "score")}
    for name, samples in zip(FILES, (data.val, data.also_val)):
        if samples is None:
            continue
        try:
            counts, reason = measure_ablations(network, names, data, samples, **options)
        except Exception as error:  # of a module of the user's, or memory
            counts, reason = {}, f"not measured: {' '.join(str(error).split()) or type(error).__name__}"
        save_ablations(trial / name, counts, reason)


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
    samples: "Samples",
    *,
    batch_size: int,
    precision: str,
    score: str,
) -> tuple[dict[str, np.ndarray], str]:
    """Counts of all images of a set by what the blocks ``names`` do without, and why some are missing.

    The other image is the one half the set further on: neighbours are often frames of one video. A kind whose logits
    are not finite is left out.
    """
    from lookfar.diagnostics import ablations, why_no_maps
    from lookfar.insertion import switched_off
    from lookfar.training.metrics import judge_batch, predict

    reason = next(filter(None, (why_no_maps(network.get_submodule(name)) for name in names)), "")
    found: dict[str, list[np.ndarray]] = {}
    bad: set[str] = set()
    everything = ablations.Seen()

    def judge(kind: str, images: "torch.Tensor", masks: "torch.Tensor", start: int) -> None:
        logits = predict(network, images, precision)
        if not logits.isfinite().all():
            bad.add(kind)
        if kind not in bad:
            confusion = judge_batch(logits, masks, data, range(start, start + len(masks)), score, samples)
            found.setdefault(kind, []).append(counts_of(confusion))

    with modes_restored(network):
        network.eval()
        others = Shifted(samples, len(samples) // 2)
        start = 0
        for (images, masks), (of_others, _) in zip(
            data.val_batches(batch_size, samples), data.val_batches(batch_size, others), strict=True
        ):
            everything.inputs.clear()
            with ablations.watched(network, names, everything):
                predict(network, of_others, precision)
            with switched_off(network, list(names)):
                judge("off", images, masks, start)
            if not reason:
                with ablations.mean_map(network, names):
                    judge("mean_map", images, masks, start)
            if not reason and others.by:
                with ablations.map_of_others(network, names, everything.inputs):
                    judge("other_map", images, masks, start)
            start += len(masks)
        start = 0
        with ablations.constant(network, everything.means()):
            for images, masks in data.val_batches(batch_size, samples):
                judge("constant", images, masks, start)
                start += len(masks)
    return {kind: np.concatenate(found[kind]) for kind in KINDS if kind in found and kind not in bad}, reason


def save_ablations(path: Path, counts: Mapping[str, np.ndarray], reason: str) -> None:
    """Write ``ablations.npz``."""
    from lookfar.training.checkpoints import save_arrays

    save_arrays(path, reason=np.array(reason), **{kind: of.astype(np.int64) for kind, of in counts.items()})


def load_ablations(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What :func:`save_ablations` wrote; nothing where there is no file, or none that can be read."""
    try:
        # numpy leaves a file open whose archive is damaged
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            counts = {kind: file[kind].astype(np.float64) for kind in KINDS if kind in file}
            return counts, str(file["reason"])
    except Exception:  # zip and numpy raise what they like at a damaged file; the study measures it again
        return {}, ""
