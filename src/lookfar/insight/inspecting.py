"""What is measured of a block in a trained network: its ladder, its verdict, what its maps are like now and were."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookfar._tables import listed, said
from lookfar.diagnostics import Statistics, blocks_of, choose_images, statistics, why_no_maps
from lookfar.diagnostics._undisturbed import first, inputs_of, undisturbed
from lookfar.diagnostics.adapters import adapted
from lookfar.diagnostics.block_ablations import called
from lookfar.diagnostics.replacing import is_branch
from lookfar.insight.subjects import Subject
from lookfar.study.ablations import KINDS, Some, ablations_on
from lookfar.study.ladder import tell, tell_changes, unlearned
from lookfar.study.rungs import rungs_for
from lookfar.study.told import Told

BATCH = 16
ORDER = ("off", "uniform", "mean", "other", "pairwise", "unary", "constant")  # the ladder, then what explains it
AT_START = 64  # images on which an untrained network is looked at


@dataclass(frozen=True)
class Inspected:
    """One block of a network.

    Attributes:
        subject: The network.
        module: Name of the block in it.
        block: Registered name.
        told: The verdict.
        scores: By what the block does without, and ``full``: the task's score, or without labels per cent of all
            predictions that change.
        statistics: Of its maps; None where it has none.
        untrained: The same before training; None where that is not known.
        missing: Why there is no score, by what the block should have done without.
        calls: How often the network calls it for an image.
    """

    subject: Subject
    module: str
    block: str
    told: Told
    scores: dict[str, float]
    statistics: Statistics | None
    untrained: Statistics | None
    missing: dict[str, str] = field(default_factory=dict)
    calls: int = 1

    @property
    def note(self) -> str:
        """What a reader has to know of the numbers; empty where there is nothing."""
        several = (
            f"the network calls it {self.calls} times for an image: numbers of its maps are those of the last call, "
            "what it does without it does without in all"
        )
        return "; ".join(part for part in (self.subject.note, several if self.calls > 1 else "") if part)

    @property
    def label(self) -> str:
        """The subject's name, with the module's where it alone says which block is meant."""
        several = len(blocks_of(self.subject.network)) > 1
        return f"{self.subject.name} · {self.module}" if several and self.module else self.subject.name

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        rungs = [
            {"kind": r.kind, "loss": r.loss, "low": r.low, "high": r.high, "margin": r.margin, "images": r.images}
            for r in self.told.verdict.rungs
        ]
        return _plain(
            {
                "network": self.subject.name, "module": self.module, "block": self.block, "calls": self.calls,
                "verdict": self.told.word,
                "said": self.told.why, "labels": self.told.labels, "images": len(self.subject.data.val),
                "score": self.subject.task.metric if self.subject.task else None, "ladder": rungs,
                "scores": self.scores, "missing": self.missing, "entropy": self.told.entropy,
                "maps": None if self.statistics is None else list(self.statistics.map_names),
                "statistics": _numbers(self.statistics), "at initialisation": _numbers(self.untrained),
            }
        )  # fmt: skip


def inspect_subject(subject: Subject) -> list[Inspected]:
    """Every block of a network, in the order of its modules; without blocks of ours, its attention.

    Raises:
        ValueError: It has neither.
    """
    subject = replace(subject, network=adapted(subject.network))
    names = blocks_of(subject.network)
    if not names:
        raise ValueError(f"{subject.name} has no block of the registry: nothing to inspect")
    given = _try(subject, names)
    left_out = _left_out(subject, names, given)
    if len(left_out) == len(names):
        raise ValueError(f"{subject.name}: nothing to inspect, {next(iter(left_out.values()))}")
    for reason in dict.fromkeys(left_out.values()):
        of = [name for name, why in left_out.items() if why == reason]
        warnings.warn(f"{listed(of)}: {reason}, so not shown", stacklevel=2)
    start = subject.untrained() if subject.untrained is not None else None
    found = []
    for name in names:
        if name in left_out:
            continue
        module = subject.network.get_submodule(name)
        reason = why_no_maps(module)
        now = None if reason else _statistics(subject, subject.network, name, len(subject.data.val))
        before = None if reason or start is None else _statistics(subject, start, name, AT_START)
        told, scores, missing = _told(subject, name, now, reason)
        of_block = told, scores, now, before, missing, len(given[name])
        found.append(Inspected(subject, name, called(module), *of_block))
    return found


def _try(subject: Subject, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """What blocks are given for one image, by their names; a network of anybody's may take other images than these."""
    inputs, _ = next(iter(subject.data.val_batches(1)))
    try:
        with undisturbed(subject.network), inputs_of(subject.network, names) as given:
            output = subject.network(inputs)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # timm asserts sizes
        raise ValueError(f"{subject.name} cannot take images {tuple(inputs.shape)}: {said(error)}") from None
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        # as networks of transformers and of torchvision do
        part = ".logits" if hasattr(output, "logits") else "['out']" if isinstance(output, dict) else ""
        cure = f": give a network that returns its {part}" if part else ""
        raise ValueError(f"{subject.name} gives {type(output).__name__}, want logits (B, K) or (B, K, h, w){cure}")
    K = output.shape[1]
    if subject.task is not None and len(subject.data.classes) != K:
        raise ValueError(f"{subject.name} has {K} classes, the data {len(subject.data.classes)}")
    return given


def _left_out(subject: Subject, names: Sequence[str], given: Mapping[str, Sequence[Tensor]]) -> dict[str, str]:
    """Why blocks cannot be asked, by their names: they are not called for one image, or called on windows of it."""
    reasons = {}
    for name in names:
        module, calls = subject.network.get_submodule(name), given[name]
        if not calls:
            reasons[name] = why_no_maps(module) or "the network does not call it"
        elif is_branch(module) and len(calls[0]) != 1:
            reasons[name] = "it sees windows of images, each by itself"
    return reasons


def _told(
    subject: Subject, name: str, now: Statistics | None, reason: str
) -> tuple[Told, dict[str, float], dict[str, str]]:
    """The verdict on one block, scores by what it does without, and why some are missing."""
    asked, data, task = rungs_for(subject.network.get_submodule(name)), subject.data, subject.task
    about: dict[str, Any] = {"entropy": _entropy(now), "reason": reason}
    if task is None:
        kinds = ("full", *(kind for kind in KINDS if kind != "constant"))
        found = ablations_on(subject.network, [name], data, data.val, kinds, BATCH)
        _refuse_not_finite(subject, found.reasons)
        about["reason"] = reason or found.reasons.get("off", "")  # which the others are held against
        changed = {kind: of.numpy() for kind, of in found.counts.items()}
        shares = {kind: 100 * float(of[:, 1].sum() / of[:, 0].sum()) for kind, of in changed.items()}
        about["adds"] = "off" not in changed or bool(changed["off"][:, 1].any()) or _adds(subject, name)
        return tell_changes(changed, subject.groups, asked, subject.margin, **about), shares, found.reasons

    from lookfar.training.evaluation import judge_batch

    def judge(output: Tensor, targets: Tensor, numbers: range) -> list[np.ndarray]:
        if output.dim() == 4 and subject.score == "resized" and output.shape[-2:] != targets.shape[-2:]:
            judged = task.judge(output, iter(targets))  # each at the size of its mask
        else:
            judged = judge_batch(task, output, targets, data, numbers, subject.score, data.val)
        return [*task.facts({key: of.cpu().numpy() for key, of in judged.items()})]

    options = {"judge": judge, "predict": lambda output: output}
    found = ablations_on(subject.network, [name], data, data.val, ("full", *KINDS), BATCH, **options)
    _refuse_not_finite(subject, found.reasons)
    if not asked:  # a layer without maps
        about["reason"] = found.reasons["off"]
    facts = {kind: np.stack(of) for kind, of in found.kept.items()}
    everything = np.ones((1, len(data.val)))
    scores = {kind: float(task.score(of, everything)[0]) for kind, of in facts.items()}
    without = {kind: {0: of} for kind, of in facts.items() if kind != "full"}
    noun = f"points of {task.words.score}"
    told = tell(
        {0: facts["full"]}, without, task.score, subject.groups, asked, subject.margin,
        higher=task.higher, noun=noun, unlearned=unlearned(task, {0: facts["full"]}), **about,
    )  # fmt: skip
    return told, scores, found.reasons


def _adds(subject: Subject, name: str) -> bool:
    """Whether a block adds anything at all in any of the images; one whose gate stands at zero does not."""
    module, found = subject.network.get_submodule(name), []

    def look(_: torch.nn.Module, args: Any, named: Any, output: Any) -> None:
        x = first(args, named)
        before = 0 * x if is_branch(module) else x
        found.append(not isinstance(output, Tensor) or not torch.equal(output, before))

    hook = module.register_forward_hook(look, with_kwargs=True)
    try:
        with undisturbed(subject.network):
            for inputs, _ in subject.data.val_batches(BATCH):
                subject.network(inputs)
                if any(found):
                    break
    finally:
        hook.remove()
    return any(found)


def _refuse_not_finite(subject: Subject, reasons: Mapping[str, str]) -> None:
    if "full" in reasons:
        raise ValueError(f"{subject.name} cannot be judged: {reasons['full']}")


def _statistics(subject: Subject, network: torch.nn.Module, name: str, images: int) -> Statistics | None:
    """Of some images, with labels where they are maps of labels; None where the block's input is no map."""
    data = subject.data
    some = Some(data.val, choose_images(len(data.val), images))
    batches = data.val_batches(BATCH, some)
    if not data.labelled or getattr(data, "target", "mask") != "mask":
        batches = (inputs for inputs, _ in batches)
    try:
        return statistics(network, batches, name)
    except ValueError:  # tokens, or a block that changes the size of its map
        return None


def _entropy(found: Statistics | None) -> float | None:
    if found is None:
        return None
    value = found["entropy_normalised"].mean.mean()
    return None if value.isnan() else float(value)


def _numbers(found: Statistics | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        name: {
            "mean": of.mean.tolist(),
            "deviation": of.deviation.tolist(),
            "weighted": None if of.weighted is None else of.weighted.nanmean(0).tolist(),
        }
        for name, of in found.items()
    }


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
