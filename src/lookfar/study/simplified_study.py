"""What `lookfar simplify` writes: a study of the network as it was and of the new one, and ``simplified.json``.

{"trial": which trial is the new one, "of": {"candidate", "seed"}, "to", "steps", "label_steps",
 "loss": {"mean", "low", "high"}, "margin", "verdict", "groups", "images", "errors": {NAME: of what is added},
 "before" and "after": {"score", "parameters", "flops", "ms", "memory_mb", "block_memory_mb"}}
"""

import copy
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study._files import read_if_whole, read_json, write_json
from lookfar.study.candidates import Candidate
from lookfar.study.continuing import decisive
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.trained import SIMPLIFIED, load_trial
from lookfar.study.words import plus_minus

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lookfar.data import Data
    from lookfar.diagnostics.simplifying import Errors
    from lookfar.tasks import Task
    from lookfar.tasks._base import Judged


@dataclass(frozen=True)
class Origin:
    """A trial, and the network that it made.

    Attributes:
        trial: Its folder.
        study: The folder of its study.
        config: What its ``config.json`` holds.
        plan: Of the study.
        seed: Of the trial.
        task: Of the plan.
        candidate: As the plan writes it.
        network: On the CPU, in evaluation.
        data: Of the plan.
        names: Of its blocks.
        judged: What the task keeps of every validation sample.
    """

    trial: Path
    study: Path
    config: Mapping[str, Any]
    plan: Plan
    seed: int
    task: "Task"
    candidate: Candidate
    network: "nn.Module"
    data: "Data"
    names: tuple[str, ...]
    judged: "Judged"


@dataclass(frozen=True)
class Made:
    """A simpler network.

    Attributes:
        to: One of ``LADDER``, or ``global_context``.
        network: On the CPU, in evaluation.
        candidate: As a plan writes it.
        names: Of its blocks.
        judged: What the task keeps of every validation sample.
        errors: Of what each block adds; None without a block.
    """

    to: str
    network: "nn.Module"
    candidate: Candidate
    names: tuple[str, ...]
    judged: "Judged"
    errors: "Errors | None" = None


def write_study(origin: Origin, made: Made, what: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the network before and after as a study, there in full or not at all; what ``simplified.json`` holds.

    Args:
        origin: The network as it was.
        made: The new one.
        what: Of how it was made and judged: steps, loss, margin, verdict, groups.
        out: The folder, which is not there, or empty.
    """
    return write_whole(out, lambda place: _fill(origin, made, what, place))


def write_whole(out: Path, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fill a folder that is there in full or not at all; what ``fill`` gives.

    Args:
        out: The folder, which is not there, or empty.
        fill: Makes the folder that it is given.
    """
    place = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    try:
        facts = fill(place)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            out.rmdir()  # empty
        place.replace(out)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return facts


def _fill(origin: Origin, made: Made, what: Mapping[str, Any], place: Path) -> dict[str, Any]:
    from lookfar.cost import measure_in_turn
    from lookfar.study.latency import device_name, load_latency, save_latency

    before, after = str(origin.candidate), str(made.candidate)
    plan = replace(
        origin.plan, blocks=tuple(dict.fromkeys([before, after if made.names else before])), seeds=1, controls=()
    )
    place.mkdir(parents=True)
    plan.save(place / "study.yaml")
    for name in ("data.json", "environment.json"):
        if (origin.study / name).is_file():
            shutil.copy(origin.study / name, place / name)
    if (origin.study / "sources").is_dir():
        shutil.copytree(origin.study / "sources", place / "sources")
    _keep(origin.trial, place, plan, before)
    baseline = trial_folder(origin.study, "baseline", origin.seed)
    networks = {before: origin.network, after: made.network}
    if made.names and read_if_whole(baseline / "result.json").get("status") == "done":
        _keep(baseline, place, plan, "baseline")
        networks["baseline"] = load_trial(baseline, data=origin.data).network
    config = _as_seed_0({**origin.config, "plan": plan.to_dict(), "candidate": after})
    note = f"made of {before} seed {origin.seed} by `lookfar simplify`, not trained as a trial"
    network = copy.deepcopy(made.network)
    folder = write_trial(
        place, config, network, made.names, made.judged, origin.data, origin.task, what["label_steps"], note
    )
    save_latency(place, measure_in_turn(networks, origin.data.example()), device_name("cpu"))
    times = load_latency(place).of
    facts = {
        "trial": folder.relative_to(place).as_posix(),
        "of": {"candidate": before, "seed": origin.seed},
        "to": made.to,
        **what,
        "images": len(origin.data.val),
        "errors": errors_in(made),
        "before": numbers(origin.network, origin.names, origin.judged, times[before].ms, origin.data, origin.task),
        "after": numbers(made.network, made.names, made.judged, times[after].ms, origin.data, origin.task),
    }
    write_json(place / SIMPLIFIED, facts)
    return facts


def _keep(trial: Path, place: Path, plan: Plan, candidate: str) -> None:
    """A copy of a trial without its checkpoints, as seed 0 of the new study."""
    folder = trial_folder(place, candidate, 0)
    shutil.copytree(trial, folder, ignore=shutil.ignore_patterns("step-*", ".*", "tensorboard"))
    config = _as_seed_0({**read_json(trial / "config.json"), "plan": plan.to_dict()})
    write_json(folder / "config.json", config)
    result = read_json(trial / "result.json")
    write_json(folder / "result.json", {**result, "trained_with": decisive(config)})


def _as_seed_0(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a trial that is the new study's only seed: the seed that its network was drawn under stays known."""
    return {**config, "seed": 0, "initial_seed": config.get("initial_seed", config["seed"])}


def numbers(
    network: "nn.Module", names: Sequence[str], judged: "Judged", ms: float, data: "Data", task: "Task"
) -> dict[str, Any]:
    """Score and cost of a network, measured here and now."""
    from lookfar.cost import measure_network
    from lookfar.study.worker import block_memory

    example = data.example()
    cost = measure_network(network, example, repeats=1)
    facts = task.facts(judged)
    return {
        "score": float(task.score(facts, _ones(facts))[0]),
        "parameters": cost.parameters,
        "flops": cost.flops,
        "ms": ms,
        "memory_mb": cost.memory_mb,
        "block_memory_mb": block_memory(network, names, example) if names else 0.0,
    }


def write_trial(
    study: Path,
    config: Mapping[str, Any],
    network: "nn.Module",
    names: Sequence[str],
    judged: "Judged",
    data: "Data",
    task: "Task",
    steps: int,
    note: str,
) -> Path:
    """Write a network as a finished trial of a study, as if it had been trained there; the trial's folder.

    Args:
        study: The folder.
        config: What ``config.json`` holds: plan, candidate, seed and what they were made of.
        network: In evaluation, with the weights; it may be changed.
        names: Of its inserted blocks.
        judged: What the task keeps of every validation sample.
        data: Of the plan.
        task: Of the plan.
        steps: Of training.
        note: Where it comes from.
    """
    from lookfar.study.worker import measure_trial
    from lookfar.training.checkpoints import save_arrays, save_tensors

    folder, plan = trial_folder(study, config["candidate"], config["seed"]), Plan.from_dict(config["plan"])
    folder.mkdir(parents=True)
    write_json(folder / "config.json", dict(config))
    save_tensors(network.state_dict(), folder / "final.safetensors")
    save_arrays(folder / f"{task.file}.npz", **judged)
    made = {**task.scores(judged), "step": steps, "seconds": None, "notes": [note]}
    result = measure_trial(network, list(names), data, task, plan, folder, made, decisive(config))
    write_json(folder / "result.json", {"status": "done", "reason": "", **result})
    return folder


def _ones(facts: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.ones((1, len(facts)))


def errors_in(made: Made) -> dict[str, float | None] | None:
    """Errors of what a new block adds; None without one."""
    if made.errors is None:
        return None
    errors = made.errors
    known = {"floor": errors.floor, "mean map": errors.mean_map, **errors.of}
    return {name: value if math.isfinite(value) else None for name, value in known.items()}


def table_of(facts: Mapping[str, Any], task: "Task") -> str:
    """Before and after, from what ``simplified.json`` holds."""
    from lookfar._tables import table

    units = {
        "score": task.words.title,
        "parameters": "parameters",
        "flops": "MFLOPs",
        "ms": "ms an image",
        "memory_mb": "MB, network",
        "block_memory_mb": "MB, block",
    }
    rows: list[list[Any]] = []
    for key, title in units.items():
        b, a = (facts[side][key] / (1e6 if key == "flops" else 1) for side in ("before", "after"))
        b, a = (int(b), int(a)) if key == "parameters" else (b, a)
        rows.append([title, b, a, "" if key == "score" or not b else f"{100 * (a / b - 1):+.1f} %"])
    mean, half = facts["loss"]["mean"], (facts["loss"]["high"] - facts["loss"]["low"]) / 2
    lines = [table(["", "before", "after", "change"], rows)]
    changes = f"{'gains' if round(mean, 1) < 0 else 'loses'} {plus_minus(abs(mean), half)}"
    lines.append(f"It {changes} points over {facts['groups']}; margin {facts['margin']:g}.")
    if facts["errors"]:
        found = ", ".join(f"{name} {value:.3f}" for name, value in facts["errors"].items() if value is not None)
        lines.append(f"Relative error of what the block adds, on unseen images (it decides nothing): {found}.")
    return "\n".join(lines)
