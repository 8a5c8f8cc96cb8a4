"""What is measured when the last trial is over, a process of its own: ``python -m lookfar.study.afterwards FOLDER``.

Latency, since trials side by side slow one another, and ablations of trials that have none, from their final weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lookfar.study._files import read_json
from lookfar.study.ablations import ablate, has_ablations
from lookfar.study.latency import device_name, is_measured, save_latency
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.trained import load_trial

if TYPE_CHECKING:
    from torch import nn

    from lookfar.data import Data

Trials = Sequence[tuple[str, int]]


def missing(folder: Path, plan: Plan) -> tuple[Trials, Trials]:
    """The trials that lack ablations, and a trial of each candidate whose latency is to be measured."""
    done = [trial for trial in plan.trials if _is_done(trial_folder(folder, *trial))]
    without = [
        trial for trial in done if trial[0] != "baseline" and not has_ablations(trial_folder(folder, *trial), plan)
    ]
    first = {candidate: (candidate, seed) for candidate, seed in reversed(done)}
    timed = [] if is_measured(folder, first, device_name(plan.accelerator or "cpu")) else [*reversed(first.values())]
    return without, timed


def main(folder: Path) -> int:
    """Measure what is missing."""
    import torch

    from lookfar.cost import measure_in_turn
    from lookfar.study.build import open_plan_data

    plan = Plan.load(folder / "study.yaml")
    torch.set_num_threads(plan.threads)
    without, timed = missing(folder, plan)
    data, task = open_plan_data(plan), plan.find_task(folder)
    for trial in without:
        network, names = _trained(folder, plan, data, *trial)
        ablate(network, names, data, task, plan, trial_folder(folder, *trial))
    if timed:
        networks = {trial[0]: _trained(folder, plan, data, *trial)[0].float() for trial in timed}
        times = measure_in_turn(networks, data.example())
        save_latency(folder, times, device_name(plan.accelerator or "cpu"))
    return 0


def _trained(folder: Path, plan: Plan, data: "Data", candidate: str, seed: int) -> tuple["nn.Module", Sequence[str]]:
    """A trial's network with its final weights, where and as precise as it was trained, and the names of its blocks."""
    trained = load_trial(trial_folder(folder, candidate, seed), data=data)
    network = trained.network.double() if plan.precision == "64-true" else trained.network
    return network.to(plan.accelerator or "cpu"), trained.blocks


def _is_done(trial: Path) -> bool:
    return read_json(trial / "result.json").get("status") == "done" and (trial / "final.safetensors").is_file()


if __name__ == "__main__":
    from lookfar.study.worker import end_with_parent

    end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
