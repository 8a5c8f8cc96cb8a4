"""What a trial's network scores when its blocks have to do without something, from its final weights.

``ablations.npz`` of a trial with a block holds the facts of every validation sample as its task gives them, for a
segmentation counts ``(images, 3, K)``, by what :func:`lookfar.diagnostics.ablations` takes away; in ``reason`` why the
kinds that exchange maps are missing where they are, in ``entropy`` how even its maps are. ``full`` is what was judged
of the trial anyway. Nothing is concluded from them here, see :mod:`lookfar.study.ladder`.

The other image is the one half the set further on, as far away as there is one: neighbours are often frames of one
video, whose maps are nearly the same, and a block that needs its query would seem to need none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lookfar._arrays import read_arrays

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data, Samples
    from lookfar.diagnostics import Ablations
    from lookfar.study.plan import Plan
    from lookfar.tasks import Task

FILES = ("ablations.npz", "also-ablations.npz")  # on the validation images, on the second set to judge by
KINDS = ("mean", "uniform", "other", "pairwise", "unary", "constant", "off")
LOOKED_AT = 12  # samples whose maps say how even they are
FORMERLY = {"mean": "mean_map", "other": "other_map"}  # in files of earlier versions


class Ablated(NamedTuple):
    """What ``ablations.npz`` holds.

    Attributes:
        facts: Of every sample by kind, ``(S, ...)``.
        reason: Why the kinds that exchange maps are missing; empty where they are not.
        entropy: How even the maps are, of ln M: the mean over images, of the block with the least; None where unknown.
        rungs: The kinds by which a verdict is found; empty where an earlier version did not say it.
    """

    facts: Mapping[str, np.ndarray]
    reason: str = ""
    entropy: float | None = None
    rungs: tuple[str, ...] = ()


def ablate(network: "nn.Module", names: Sequence[str], data: "Data", task: "Task", plan: "Plan", trial: Path) -> None:
    """Measure a trial's network on each set that judges; what cannot be measured costs no trial its result."""
    from lookfar.study.rungs import rungs_for

    settings = plan.settings()
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("batch_size", "precision", "score")}
    for name, samples in zip(FILES, (data.val, data.also_val)):
        if samples is None:
            continue
        try:
            facts, reason = measure_ablations(network, names, data, task, samples, **options)
            entropy = None if reason else measure_entropy(network, names, data, samples)
        except Exception as error:  # of a module of the user's, or memory
            facts, reason = {}, f"not measured: {' '.join(str(error).split()) or type(error).__name__}"
            entropy = None
        save_ablations(trial / name, facts, reason, entropy, rungs_for(network.get_submodule(names[0])))


def replaces(network: "nn.Module", names: Sequence[str]) -> bool:
    """Whether blocks stand in the place of convolutions, with which the network without them is compared."""
    from lookfar.blocks._mixers import NoMixer
    from lookfar.insertion import insertions

    gone = (one.record.replaced for one in insertions(network) if one.name in names)
    return any(module is not None and not isinstance(module, NoMixer) for module in gone)


def has_ablations(trial: Path, plan: "Plan") -> bool:
    """Whether all that :func:`ablate` writes is there."""
    wanted = FILES if plan.also_val else FILES[:1]
    found = (load_ablations(trial / name) for name in wanted)
    return all(one.facts or one.reason for one in found)


class Some:
    """Some of a set's samples, in an order of their own."""

    def __init__(self, samples: Any, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    @property
    def names(self) -> list[str]:
        return [self.samples.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Any:
        return self.samples[self.indices[index]]


def shifted(samples: Any, by: int) -> Some:
    """The same samples, each in the place of the one so many before it."""
    return Some(samples, [(index + by) % len(samples) for index in range(len(samples))])


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

    A kind whose outputs are not finite is left out.
    """
    from lookfar.diagnostics import why_no_maps
    from lookfar.training.evaluation import judge_batch, predict

    def call(network: "nn.Module", inputs: "Tensor") -> "Tensor":
        return predict(network, inputs, precision)

    def judge(output: "Tensor", targets: "Tensor", numbers: range) -> list[np.ndarray]:
        judged = judge_batch(task, output, targets, data, numbers, score, samples)
        return [*task.facts({name: of.cpu().numpy() for name, of in judged.items()})]

    options = {"judge": judge, "call": call, "predict": lambda output: output}
    found = ablations_on(network, names, data, samples, KINDS, batch_size, **options)
    reason = next(filter(None, (why_no_maps(network.get_submodule(name)) for name in names)), "")
    if not found.kept:  # a layer without maps: why nothing is left without it says more
        reason = found.reasons.get("off", reason)
    return {kind: np.stack(found.kept[kind]) for kind in KINDS if kind in found.kept}, reason


def ablations_on(
    network: "nn.Module",
    names: Sequence[str],
    data: "Data",
    samples: "Samples",
    kinds: Sequence[str],
    batch_size: int,
    **options: Any,
) -> "Ablations":
    """What a network gives for each sample of a set without parts of its blocks ``names``.

    The other sample is the one half the set further on. The constant is the mean over training samples, as many as
    there are in the set. ``options`` are those of :func:`lookfar.diagnostics.ablations`.
    """
    from lookfar.diagnostics import ablations, choose_images

    away = len(samples) // 2
    training = Some(data.train, choose_images(len(data.train), len(samples)))
    return ablations(
        network,
        names,
        data.val_batches(batch_size, samples),
        others=data.val_batches(batch_size, shifted(samples, away)),
        training=data.val_batches(batch_size, training) if "constant" in kinds else None,
        kinds=[kind for kind in kinds if kind != "other" or away],
        **options,
    )


def measure_entropy(network: "nn.Module", names: Sequence[str], data: "Data", samples: "Samples") -> np.ndarray | None:
    """How even the maps of some samples are, of ln M, ``(images, blocks)``; nan where maps are no distributions.

    None where the queries of a block are not the positions of its input.
    """
    from lookfar.diagnostics import choose_images, statistics

    some, dtype = Some(samples, choose_images(len(samples), LOOKED_AT)), next(network.parameters()).dtype
    found = []
    for name in names:
        batches = (inputs.to(dtype) for inputs, _ in data.val_batches(1, some))
        try:
            found.append(statistics(network, batches, name)["entropy_normalised"].plain.mean(1).numpy())
        except ValueError:
            return None
    return np.stack(found, 1)


def save_ablations(
    path: Path,
    facts: Mapping[str, np.ndarray],
    reason: str,
    entropy: np.ndarray | None = None,
    rungs: Sequence[str] = (),
) -> None:
    """Write ``ablations.npz``; counts as whole numbers, which pack better."""
    from lookfar.training.checkpoints import save_arrays

    whole = {kind: of.astype(np.int64) if (of == np.floor(of)).all() else of for kind, of in facts.items()}
    more = {} if entropy is None else {"entropy": entropy}
    save_arrays(path, reason=np.array(reason), rungs=np.array(rungs, dtype=str), **more, **whole)


def load_ablations(path: Path) -> Ablated:
    """What :func:`save_ablations` wrote; nothing where there is no file, or none that can be read."""
    arrays = read_arrays(path)
    if "reason" not in arrays:  # damaged: the study measures it again
        return Ablated({})
    named = {kind: kind if kind in arrays else FORMERLY.get(kind, kind) for kind in KINDS}
    facts = {kind: arrays[name].astype(np.float64) for kind, name in named.items() if name in arrays}
    entropy = arrays.get("entropy")
    known = entropy is not None and not np.isnan(entropy).any()
    least = float(entropy.mean(0).min()) if entropy is not None and known else None
    return Ablated(facts, str(arrays["reason"]), least, tuple(map(str, arrays.get("rungs", ()))))
