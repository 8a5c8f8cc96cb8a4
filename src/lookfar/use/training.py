"""One network trained on one data set: a study of a single trial, with mmsegmentation's schedules as presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookfar._options import choice

# SGD and poly down from 0.01 over so many steps, on crops; batches of 8 for Cityscapes, 16 for others in the table
_ZOO: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "poly",
    "batch_size": 8,
    "crop": (512, 1024),
    "backbone_lr_factor": 1.0,
    "score": "original",
}
PRESETS: dict[str, dict[str, Any]] = {f"{k}k": {**_ZOO, "steps": 1000 * k} for k in (20, 40, 80, 160)}


@dataclass(frozen=True)
class Trained:
    """What was trained.

    Attributes:
        trial: Its folder.
        result: What the trial recorded; empty where it failed.
        reason: Why it failed.
    """

    trial: Path
    result: Mapping[str, Any]
    reason: str = ""


def train_network(
    network: str, data: str, out: str | Path, *, preset: str | None = None, quiet: bool = False, **options: Any
) -> Trained:
    """Train a network; the same call goes on where it was stopped, and returns at once where all is done.

    Args:
        network: A name of :func:`lookfar.list_networks`, ``small``, a timm model, or ``my.py:build``.
        data: As for :func:`lookfar.data.open_data`.
        out: The folder: a study's, with one trial.
        preset: One of ``PRESETS``, ``40k`` or ``80k`` for instance: steps, optimiser, schedule, crops.
        quiet: Show no progress.
        **options: Entries of :class:`lookfar.study.Plan`, such as ``steps``, ``size``, ``crop``, ``lr``, ``precision``;
            they count before the preset's.

    Raises:
        ValueError: Something cannot work, or the folder holds another training.
        FileNotFoundError: Data or weights are not there.
        Stopped: Interrupted, after a checkpoint.

    >>> train_network("small", "scenes:cue", "runs/cue", preset="41k")
    Traceback (most recent call last):
    ValueError: preset must be 20k, 40k, 80k or 160k, got '41k'. Did you mean 40k?
    """
    from lookfar.study import Plan, run
    from lookfar.study._files import read_if_whole
    from lookfar.study.plan import trial_folder

    if preset is not None:
        choice("preset", preset, tuple(PRESETS))
    given = {name: value for name, value in options.items() if value is not None}
    values = {"task": "segmentation", **PRESETS.get(preset or "", {}), **given}
    plan = Plan.from_dict({"data": data, "host": network, "blocks": (), "controls": (), "seeds": 1, **values})
    run(plan, out, quiet=quiet)
    folder = trial_folder(Path(out), "baseline", 0)
    found = read_if_whole(folder / "result.json")
    if found.get("status") != "done":
        return Trained(folder, {}, str(found.get("reason") or "it was stopped"))
    return Trained(folder, found)
