"""The whole plan tried before the first step: names, options, data, host, places, every candidate for real."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lookfar.study.candidates import Candidate
from lookfar.study.groups import groups_of
from lookfar.study.plan import Plan


@dataclass(frozen=True)
class ReadyPlan:
    """A plan that can run.

    Attributes:
        plan: With every entry filled in.
        task: What is to be learned, in a sentence or two.
        control_parameters: Parameters of the largest candidate: what the control is sized to.
        facts: What ``environment.json`` says of data, place and candidates.
    """

    plan: Plan
    task: str
    control_parameters: int
    facts: dict[str, Any]


def preflight(plan: Plan, note: Callable[[str], None] = lambda _: None) -> ReadyPlan:
    """Resolve a plan and build all of it once.

    Args:
        plan: As the user gave it.
        note: Takes what is found on the way, one line each.

    Raises:
        ValueError: Something cannot work; the message names it.
        TypeError: An option that a block does not have.
        FileNotFoundError: Data or weights are not there.
    """
    plan = plan.resolved()
    plan.settings()  # checks its values
    candidates = [Candidate.parse(text) for text in plan.candidates]
    for candidate in candidates:
        _refuse_other_kinds(candidate)

    from lookfar.networks import resolve_place
    from lookfar.study.build import build_host, open_plan_data, put_in

    data = open_plan_data(plan)
    for line in data.facts:
        note(line)
    if len(data.train) < 1 or len(data.val) < 1:
        raise ValueError(
            f"{plan.data} has {len(data.train)} images to train on and {len(data.val)} to validate: want both"
        )
    val_names = [str(name) for name in data.val.names]
    if plan.groups is not None:
        note(f"Validation images by --groups: {groups_of(val_names, plan.groups)}.")
    host = build_host(plan, data, seed=0)
    plan = replace(plan, place=resolve_place(host, plan.place or host.place))

    parameters = {str(candidate): 0 for candidate in candidates}
    # the control comes last: its size is that of the largest block
    for candidate in sorted(candidates, key=lambda c: c.name == "control"):
        network = copy.deepcopy(host)
        largest = max(parameters.values())
        try:
            names = put_in(network, plan, candidate, data, seed=0, control_parameters=largest)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{candidate} cannot go into {plan.host}: {' '.join(str(error).split())}") from error
        parameters[str(candidate)] = sum(p.numel() for name in names for p in network.get_submodule(name).parameters())
    largest = max(count for name, count in parameters.items() if name != "control")
    facts = {
        "place": plan.place,
        "parameters": parameters,
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "val_names": val_names,
            "size": list(data.size),
            "in_chans": data.in_chans,
            "task": data.task,
            "facts": list(data.facts),
        },
    }
    return ReadyPlan(plan, data.task, largest, facts)


def _refuse_other_kinds(candidate: Candidate) -> None:
    from lookfar.blocks import block_info

    if candidate.name in ("baseline", "control"):
        return
    kind = block_info(candidate.name).kind
    if kind != "context":
        raise ValueError(
            f"{candidate.name} is of kind {kind}: a study compares blocks that keep the shape of a feature map, "
            "`lookfar blocks --kind context` lists them"
        )
