"""A trained network whose block gives way to a cheaper one, or to none, where the score says that nothing is lost.

``simplify`` tries, from the cheapest on: ``none`` (the block is removed), ``average`` (the plain average of its values)
and ``one-map`` (one learned map for all queries); :mod:`lookfar.diagnostics.simplifying` makes them without training.
Masks are fitted on training samples, and the score is compared on validation samples, which the fit has not seen. A
network is *equivalent* where the whole 95 % interval of what it loses lies below the margin, as in a verdict.

What is written is a study of its own, see :mod:`lookfar.study.simplified_study`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study._files import read_json
from lookfar.study.candidates import Candidate
from lookfar.study.groups import Groups, groups_of_data
from lookfar.study.plan import Plan
from lookfar.study.simpler import IMAGES, To, Tried, Work
from lookfar.study.simplified_study import Origin, write_study
from lookfar.study.trained import load_trial, trial_in

if TYPE_CHECKING:
    from torch import nn

    from lookfar.data import Data


@dataclass(frozen=True)
class Simplified:
    """What came of :func:`simplify`.

    Attributes:
        tried: From the cheapest on.
        chosen: The one that was written; None where it was refused.
        folder: Of the study that was written; None where it was refused.
        facts: What ``simplified.json`` holds; empty where it was refused.
    """

    tried: tuple[Tried, ...]
    chosen: Tried | None = None
    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def simplify(
    trial: str | Path,
    out: str | Path,
    *,
    to: To = "auto",
    steps: int = 0,
    label_steps: int = 0,
    force: bool = False,
    margin: float | None = None,
    images: int = IMAGES,
    data: "str | Path | Data | None" = None,
    say: Callable[[str], None] = lambda line: None,
) -> Simplified:
    """Make a trial's network simpler, and write it where its score allows that.

    Args:
        trial: Folder of a trial with a block.
        out: Folder of what is written; it must not be there.
        to: What takes the block's place; ``auto`` takes the cheapest that is equivalent.
        steps: Of distillation to the block's own output.
        label_steps: Of training with labels after that, of the new block alone.
        force: Write it although it is not equivalent; ``auto`` then writes ``one-map``.
        margin: In points of the score; by default the plan's.
        images: Training samples that the new block is fitted on, at most.
        data: Where the data lie now, as for :func:`lookfar.study.load_trial`.
        say: Called with a line for every rung that was tried.

    Raises:
        ValueError: A block that cannot be simplified, several that differ, ``out`` is there.
        FileNotFoundError: No trial there, or no data.
    """
    trial, out = Path(trial), Path(out)
    refuse(out, to, steps)
    origin, groups, margin = _origin(trial, data, margin)
    seed, plan = origin.seed, origin.plan

    def exchange(candidate: Candidate, blocks: "Sequence[nn.Module]") -> "tuple[nn.Module, list[str]]":
        from lookfar.insertion import remove
        from lookfar.study.build import put_in

        network = copy.deepcopy(origin.network)
        remove(network, list(origin.names))
        names = put_in(network, plan, candidate, origin.data, seed, control_parameters=0, study=origin.study)
        for name, block in zip(names, blocks, strict=True):
            network.get_submodule(name).load_state_dict(block.state_dict())
        return network.eval(), names

    work = Work(
        origin.network, origin.data, origin.names, origin.task, groups, exchange, called=str(origin.candidate),
        margin=margin, settings=plan.settings(), seed=seed, images=images, steps=steps, label_steps=label_steps,
        place=origin.candidate.place,
    )  # fmt: skip
    tried, chosen = work.try_all(to, say)
    if not (chosen.loss.equivalent or force):
        return Simplified(tried)
    origin = replace(origin, judged=work.judged)
    return Simplified(tried, chosen, out, write_study(origin, chosen.made, work.said_of(chosen), out))


def refuse(out: Path, to: To, steps: int) -> None:
    """Refuse a folder that is there, and what cannot be had without training.

    Raises:
        ValueError: One of these.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: give another --out, nothing is overwritten")
    if to == "global_context" and not steps:
        raise ValueError("global_context has a norm and a ReLU inside, so it is learned, not copied: give --steps 300")


def _origin(trial: Path, data: Any, margin: float | None) -> tuple[Origin, Groups, float]:
    """A trial, its groups of samples and its margin."""
    network, data, names = load_trial(trial, data=data)
    trial = trial_in(trial) or trial
    study, config = trial.resolve().parents[2], read_json(trial / "config.json")
    if not names:
        raise ValueError(f"{trial}: the {config['candidate']} has no block to make simpler")
    plan = Plan.from_dict(config["plan"])
    called = [str(name) for name in data.val.names]
    groups = groups_of_data(called, plan.data, plan.groups, classes=plan.task == "classification")
    task, candidate = plan.find_task(study), Candidate.parse(config["candidate"])
    origin = Origin(trial, study, config, plan, int(config["seed"]), task, candidate, network, data, names, {})
    return origin, groups, plan.margin if margin is None else margin
