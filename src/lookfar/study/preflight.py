"""The whole plan tried before the first step: names, options, data, host, places, every candidate for real."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lookfar._tables import shorten
from lookfar.study.candidates import Candidate
from lookfar.study.groups import groups_of
from lookfar.study.plan import Plan
from lookfar.study.verdicts import SHORT

if TYPE_CHECKING:
    from lookfar.data import Data
    from lookfar.tasks import Task


USUAL = 0.1  # momentum of torch's norms
STALE = 0.1  # of a norm's statistics, those that it started with, at the end of training
FEW = 16  # positions of a map below which a block has next to nothing to look at


@dataclass(frozen=True)
class ReadyPlan:
    """A plan that can run.

    Attributes:
        plan: With every entry filled in.
        question: What is to be learned, in a sentence or two.
        control_parameters: What the first control is sized to.
        facts: What ``environment.json`` says of data, place and candidates.
        data: The fingerprint of the data, for ``data.json``.
        host: Equal for hosts that start from equal weights; empty where these are drawn from the seed.
        expected: Candidates -> seconds of a trial of each, by a measured step; see :mod:`lookfar.study.timing`.
    """

    plan: Plan
    question: str
    control_parameters: int
    facts: dict[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    expected: Callable[[Sequence[str]], dict[str, float]] = lambda _: {}

    @property
    def made_of(self) -> dict[str, Any]:
        """What a trial is made of beside its plan, for ``config.json``."""
        from lookfar.data.fingerprint import digest

        known = {"host": self.host, "data": digest(self.data) if self.data else None}
        return {"control_parameters": self.control_parameters, **known}


def preflight(
    plan: Plan, note: Callable[[str], None] = lambda _: None, controls: Mapping[str, int] | None = None
) -> ReadyPlan:
    """Resolve a plan and build all of it once.

    Args:
        plan: As the user gave it.
        note: Takes what is found on the way, one line each.
        controls: Those that the study has already, and the number of parameters that each aims at.

    Raises:
        ValueError: Something cannot work; the message names it.
        TypeError: An option that a block does not have.
        FileNotFoundError: Data or weights are not there.
    """
    plan = plan.resolved()
    plan.settings()  # checks its values
    task = plan.find_task()
    if plan.score == "original" and not task.original:
        raise ValueError(f"--score original is for maps of labels: {task.name} has no size of files, want resized")
    candidates = [Candidate.parse(text) for text in plan.candidates]
    for candidate in candidates:
        _refuse_other_kinds(candidate)

    from lookfar.data.fingerprint import fingerprint
    from lookfar.insertion.replacing import takes_mixers
    from lookfar.study.build import (
        added_parameters,
        build_host,
        default_place,
        find_place,
        map_at,
        open_plan_data,
        put_in,
        weights_digest,
    )
    from lookfar.study.promises import check_block, check_host, check_task
    from lookfar.training.optimization import learning_rate_sum

    data = open_plan_data(plan)
    _refuse_other_labels(plan, task, data)
    question = task.question(data)
    for line in data.facts:
        note(line)
    if len(data.train) < 1 or len(data.val) < 1:
        raise ValueError(
            f"{plan.data} has {len(data.train)} images to train on and {len(data.val)} to validate: want both"
        )
    val_names = [str(name) for name in data.val.names]
    if plan.groups is not None:
        note(f"Validation images by --groups: {groups_of(val_names, plan.groups)}.")
    if plan.class_weights is not None:
        task.check_weights(plan.class_weights, data)
    task.check_batch((plan.batch_size or 1) // plan.devices)
    check_host(plan, data)
    reach = learning_rate_sum(plan.settings())
    if reach < SHORT and plan.blocks:
        how = "" if plan.optimizer == "adamw" else " times its gradient"
        note(
            f"The learning rates of all steps add up to {reach:.2g}. A block comes in by a factor that starts at 0 and "
            f"moves about that far{how} at most, so it may never come in. More steps or a higher lr help."
        )
    host = build_host(plan, data, seed=0)
    check_task(plan, task, host, data)
    plan = replace(plan, place=find_place(host, plan.place or default_place(host)))

    if task.target == "class" and math.prod(size := map_at(copy.deepcopy(host), str(plan.place), data)[1]) < FEW:
        note(
            f"The map at {plan.place} is {'×'.join(map(str, size))}: few positions to look at. An earlier --place or a "
            "larger --size give more, with some timm hosts --output-stride too."
        )

    def built(candidate: Candidate, control_parameters: int = 0) -> tuple[Any, list[str]]:
        """The host with a candidate in it, and the names of what was put in."""
        network = copy.deepcopy(host)
        try:
            return network, put_in(network, plan, candidate, data, seed=0, control_parameters=control_parameters)
        except (AssertionError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(
                f"{shorten(str(candidate), 40)} cannot go into {plan.host}: {' '.join(str(error).split())}"
            ) from error

    def added(candidate: Candidate, control_parameters: int = 0) -> int:
        """Parameters that a candidate adds to the host, by putting it in."""
        return added_parameters(*built(candidate, control_parameters))

    promised = {}
    for candidate in candidates:
        if candidate.own is not None:
            place = find_place(host, candidate.place or str(plan.place))
            promised[str(candidate)] = check_block(candidate, *map_at(copy.deepcopy(host), place, data))
    sizes = {}
    for candidate in candidates:
        if candidate.name != "control":
            network, names = built(candidate)
            sizes[str(candidate)] = added_parameters(network, names)
            if line := promised.get(str(candidate)):  # said of a block that could be put in, too
                note(line)
            if line := slow_norms(candidate, network, names, plan.settings().steps):
                note(line)
    # the control of a layer is the baseline's convolution
    layers = {str(c) for c in candidates if c.replaces and not takes_mixers(host, c.place or str(plan.place))}
    blocks = {name: size for name, size in sizes.items() if name != "baseline" and name not in layers}
    wanted = controls_for(blocks, lambda name, size: added(Candidate.parse(name), size), controls or {})
    sizes |= {name: added(Candidate.parse(name), size) for name, size in wanted.items()}
    plan = replace(plan, controls=tuple(wanted))
    parameters = {name: sizes[name] for name in plan.candidates}
    first = wanted.get("control", 0)  # the others say in their names what they aim at
    facts = {
        "place": plan.place,
        "sum_of_learning_rates": reach,
        "pooled": bool(getattr(host, "pooled", False)),
        "parameters": parameters,
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "val_names": val_names,
            "also_val_names": [] if data.also_val is None else [str(name) for name in data.also_val.names],
            "size": list(data.size),
            "in_chans": data.in_chans,
            "mean": list(data.mean),
            "std": list(data.std),
            "peak": getattr(data.train, "peak", None),  # the largest value of images that do not hold bytes
            "target": data.target,
            "ordered": data.ordered,
            "question": question,
            "facts": list(data.facts),
        },
    }

    def expected(names: Sequence[str]) -> dict[str, float]:
        from lookfar.study.timing import expected_seconds

        return expected_seconds(names, lambda name: built(Candidate.parse(name), first)[0], plan, data)

    return ReadyPlan(plan, question, first, facts, fingerprint(data), weights_digest(plan, host), expected)


def slow_norms(candidate: Candidate, network: Any, names: Sequence[str], steps: int) -> str:
    """Says so where norms of a block end near the statistics that they start with; empty elsewhere.

    Such a block is judged with other numbers than it was trained with: with the momentum of 0.0003 that was published
    for EMANet it learned ``scenes:match`` in 200 steps, and was judged to be at chance.
    """
    from torch.nn.modules.batchnorm import _NormBase

    modules = (module for name in names for module in network.get_submodule(name).modules())
    momenta = [m.momentum for m in modules if isinstance(m, _NormBase) and m.track_running_stats and m.momentum]
    slowest = min(momenta, default=USUAL)
    stale = (1 - slowest) ** steps
    if slowest >= USUAL or stale < STALE:
        return ""
    return (
        f"{candidate}: a norm in it moves its statistics by {slowest:g} of a batch's at each step, so after {steps} "
        f"steps {100 * stale:.0f} % of them are those it started with, and it is judged with other numbers than it was "
        "trained with. Train longer, or give it norm_layer=nn.BatchNorm2d, which follows faster."
    )


def _refuse_other_labels(plan: Plan, task: "Task", data: "Data") -> None:
    """Refuse a task that cannot be learned from what is labelled in the data."""
    if task.target in (None, data.target):
        return
    from lookfar.tasks import task_for

    labelled = {"mask": "every pixel is labelled", "class": "images have one label each"}[data.target]
    raise ValueError(
        f"{task.name} cannot be learned from {shorten(plan.data, 60)}, where {labelled}: "
        f"want --task {task_for(data.target)}, or other data"
    )


def controls_for(
    blocks: Mapping[str, int], parameters_of: Callable[[str, int], int], kept: Mapping[str, int]
) -> dict[str, int]:
    """The controls of a study and the number of parameters that each aims at.

    Of the blocks of a place the smallest opens a class, whose control serves all up to twice its size; the next larger
    block opens another. No control is smaller than its one channel allows. Where a study grows, its controls stay as
    they are, and open no others for blocks of up to half or twice their size.

    Args:
        blocks: Parameters of each block.
        parameters_of: Those that a control by this name has when it aims at so many.
        kept: Controls that are there already, and what they aim at.
    """
    places: dict[str | None, list[int]] = {}
    for name, size in blocks.items():
        places.setdefault(Candidate.parse(name).place, []).append(size)
    found = dict(kept)
    served: dict[str | None, list[tuple[float, int]]] = {}
    for name, aim in kept.items():
        size = parameters_of(name, aim)
        served.setdefault(Candidate.parse(name).place, []).append((min(aim, size / 2), 2 * max(aim, size)))
    for place in sorted(places, key=lambda place: place is not None):
        most = -1
        for size in sorted(places[place]):
            if size <= most or any(low <= size <= high for low, high in served.get(place, ())):
                continue
            end = f"@{place}" if place else ""
            name = f"control(parameters={size}){end}" if found or place else "control"
            found[name] = size
            most = 2 * max(size, parameters_of(name, size))
    return found


def _refuse_other_kinds(candidate: Candidate) -> None:
    from lookfar.blocks import block_info
    from lookfar.blocks._mixers import is_layer

    if candidate.name in ("baseline", "control") or candidate.own is not None:
        return
    info = block_info(candidate.name)
    kind = info.kind
    if kind not in ("context", "layer") and not is_layer(info, dict(candidate.options)):
        raise ValueError(
            f"{candidate.name} is of kind {kind}: a study compares blocks that keep the shape of a feature map "
            "(`lookfar blocks --kind context`), and layers in the place of convolutions (--kind layer)"
        )
