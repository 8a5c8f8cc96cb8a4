"""A trained network whose block gives way to a cheaper one, or to none, where the score says that nothing is lost.

``simplify`` tries, from the cheapest on: ``none`` (the block is removed), ``average`` (the plain average of its values)
and ``one-map`` (one learned map for all queries); :mod:`lookfar.diagnostics.simplifying` makes them without training.
Masks are fitted on training samples, and the score is compared on validation samples, which the fit has not seen. A
network is *equivalent* where the whole 95 % interval of what it loses lies below the margin, as in a verdict.

What is written is a study of its own, see :mod:`lookfar.study.simplified_study`.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lookfar._options import Natural, NotNegative, check, choice, positive
from lookfar.study._files import read_json
from lookfar.study.candidates import Candidate
from lookfar.study.groups import groups_of_data
from lookfar.study.ladder import tell
from lookfar.study.plan import Plan
from lookfar.study.rungs import Rung
from lookfar.study.simplified_study import Made, Origin, table_of, write_study
from lookfar.study.trained import SIMPLIFIED, load_trial
from lookfar.study.words import half_width, plus_minus, points, signed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data
    from lookfar.diagnostics.simplifying import Errors

To = Literal["auto", "none", "average", "one-map", "global_context"]
LADDER: tuple[To, ...] = ("none", "average", "one-map")
IMAGES = 64  # training samples that masks are fitted on
NUMBERS = 2**26  # of features that are kept for that, at most: 256 MB
BATCH = 8
NAMES = {
    "none": "without the block",
    "average": "a plain average of the values",
    "one-map": "one map for all queries",
    "global_context": "global context",
}


KINDS = {"none": "off", "average": "uniform", "one-map": "mean", "global_context": "mean"}  # of the ladder


@dataclass(frozen=True)
class Tried:
    """A simpler network, and what it loses.

    Attributes:
        made: The network.
        loss: With its interval and margin, in points of the score.
        where: Restricts what is said, as in ``on this one sequence``; else empty.
    """

    made: Made
    loss: Rung
    where: str

    @property
    def verdict(self) -> str:
        """``equivalent``, ``needed`` (what it lacks is), or ``open``."""
        if self.loss.equivalent:
            return "equivalent"
        return "needed" if self.loss.needed else "open"

    def __str__(self) -> str:
        loss, to = self.loss, self.made.to
        half = loss.high - loss.loss
        most = f"{points(max(loss.high, 0.0), half)} lost at most, margin {points(loss.margin, half)}"
        more = f"; about {loss.images} images would decide" if loss.images else ""
        what = {
            "equivalent": f"equivalent: {most}",
            "needed": "the block's own maps are needed" if to != "none" else "the block is needed",
            "open": f"open: {most}{more}",
        }[self.verdict]
        where = f" {self.where}" if self.where else ""
        return f"{to} ({NAMES[to]}): {signed(-loss.loss, half)}{half_width(half)}{where}; {what}"


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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give another --out, nothing is overwritten")
    if to == "global_context" and not steps:
        raise ValueError("global_context has a norm and a ReLU inside, so it is learned, not copied: give --steps 300")
    work = _Work(trial, data, margin, images, steps, label_steps)
    tried = work.judge_all([work.make(one) for one in (LADDER if to == "auto" else (to,))])
    for one in tried:
        say(str(one))
    chosen = next((one for one in tried if one.loss.equivalent), tried[-1])
    if not (chosen.loss.equivalent or force):
        return Simplified(tried)
    return Simplified(tried, chosen, out, work.write(chosen, out))


def simplify_command(trial: Path, out: Path, **options: Any) -> int:
    """What `lookfar simplify` does: prints what was tried and what it saves; 1 where the score refuses it."""
    choice("to", options["to"], ("auto", *LADDER, "global_context"))
    for name in ("steps", "label_steps"):
        check(name, options[name], Natural)
    positive("images", options["images"])
    check("margin", options["margin"], NotNegative | None)
    found = simplify(trial, out, **options, say=lambda line: print(line, flush=True))
    if found.folder is None:
        last = found.tried[-1]
        where = f" {last.where}" if last.where else ""
        more = "" if last.loss.needed else ", which is not shown to be practically nothing"
        lost = plus_minus(last.loss.loss, last.loss.high - last.loss.loss)
        print(f"Refused, nothing is written: {last.made.to} loses {lost} points{where}{more}. --force writes it.")
        return 1
    task = Plan.load(out / "study.yaml").find_task(out)
    print(f"\n{table_of(found.facts, task)}\n\nWritten to {out / found.facts['trial']}")
    return 0


def _kept(block: "nn.Module", to: str) -> list["nn.Parameter"]:
    """What no training of a new block changes: the masks of an average, which would be one map for all queries then."""
    mask = getattr(block, "mask", None)
    return [*mask.parameters()] if to == "average" and mask is not None else []


class _Work:
    """A trial's network as it is, and simpler ones made of it."""

    def __init__(self, trial: Path, data: Any, margin: float | None, images: int, steps: int, label_steps: int) -> None:
        from lookfar.diagnostics.simplifying import options_of, why_not_simple
        from lookfar.training import evaluate

        self.steps, self.label_steps = steps, label_steps
        self.network, self.data, self.names = load_trial(trial, data=data)
        if (trial / SIMPLIFIED).is_file():
            trial = trial / read_json(trial / SIMPLIFIED)["trial"]
        self.trial, self.study, self.config = trial, trial.resolve().parents[2], read_json(trial / "config.json")
        self.plan, self.seed = Plan.from_dict(self.config["plan"]), int(self.config["seed"])
        self.task = self.plan.find_task(self.study)
        self.candidate = Candidate.parse(self.config["candidate"])
        self.margin = self.plan.margin if margin is None else margin
        if not self.names:
            raise ValueError(f"{trial}: the {self.config['candidate']} has no block to make simpler")
        modules = [self.network.get_submodule(name) for name in self.names]
        if reason := next(filter(None, map(why_not_simple, modules)), ""):
            raise ValueError(reason)
        every = [options_of(module) for module in modules]
        if any(options != every[0] for options in every):
            raise ValueError(
                f"{self.candidate} stands at {len(every)} places of different width: one at a time, please"
            )
        self.options = {name: value for name, value in every[0].items() if name != "dims"}
        self.inputs = self._inputs(self.data.train, images)
        self.unseen = self._inputs(self.data.val, min(images, 32))
        options = {name: getattr(self.plan.settings(), name) for name in ("batch_size", "precision", "score")}
        self.judge: Callable[[nn.Module], Any] = lambda network: evaluate(network, self.data, self.task, **options)
        self.judged = self.judge(self.network)
        names = [str(name) for name in self.data.val.names]
        classes = self.plan.task == "classification"
        self.groups = groups_of_data(names, self.plan.data, self.plan.groups, classes=classes)

    def _inputs(self, samples: Any, images: int) -> dict[str, list["Tensor"]]:
        """What goes into each block for some samples, evenly spread, batch by batch."""
        from lookfar.diagnostics import choose_images
        from lookfar.diagnostics._undisturbed import inputs_of, undisturbed

        with undisturbed(self.network), inputs_of(self.network, self.names) as one:
            self.network(self.data.example())
        numbers = max(sum(x.numel() for x in of) for of in one.values())
        chosen = choose_images(len(samples), max(min(images, NUMBERS // numbers), 1))
        with undisturbed(self.network), inputs_of(self.network, self.names) as seen:
            for start in range(0, len(chosen), BATCH):
                inputs, _ = self.data.collate([samples[index] for index in chosen[start : start + BATCH]])
                self.network(inputs)
        return seen

    def make(self, to: str) -> Made:
        """A simpler network; what is drawn on the way is the trial's seed's."""
        from lookfar.study.build import drawn_apart

        with drawn_apart(self.seed):
            return self._make(to)

    def _make(self, to: str) -> Made:
        if to == "none":
            candidate, blocks, errors = Candidate("baseline"), [], None
        else:
            name = "global_context" if to == "global_context" else "simplified_nonlocal"
            options = {} if to == "global_context" else self.options
            candidate = Candidate(name, tuple(sorted(options.items())), self.candidate.place)
            blocks, errors = self._blocks(to)
        network, names = self._with(candidate, blocks)
        if self.label_steps and names:
            self._train(network, names, to)
        return Made(to, network, candidate, tuple(names), self.judge(network), errors)

    def judge_all(self, made: Sequence[Made]) -> tuple[Tried, ...]:
        """What each of them loses, with intervals that hold together."""
        facts = {KINDS[one.to]: {0: self.task.facts(one.judged)} for one in made}
        told = tell(
            {0: self.task.facts(self.judged)}, facts, self.task.score, self.groups, list(facts), self.margin,
            higher=self.task.higher,
        )  # fmt: skip
        of = {rung.kind: rung for rung in told.verdict.rungs}
        if len(of) < len(made) or any(math.isnan(rung.high) for rung in of.values()):
            raise ValueError(f"{len(self.data.val)} validation samples are too few for an interval: want two or more")
        return tuple(Tried(one, of[KINDS[one.to]], told.where) for one in made)

    def _blocks(self, to: str) -> tuple[list["nn.Module"], "Errors"]:
        """A new block for each of the network's, and the errors of the first."""
        from lookfar.diagnostics import simplifying

        blocks: list[nn.Module] = []
        found: Errors | None = None
        for name in self.names:
            old, inputs = self.network.get_submodule(name), self.inputs[name]
            others: dict[str, nn.Module] = {}
            if to == "global_context":
                from lookfar.blocks import create_block

                new: nn.Module = create_block("global_context", inputs[0].shape[1], dims=inputs[0].dim() - 2).eval()
            else:
                new = others["average"] = average = simplifying.average_of(old)
                if to == "one-map":
                    start = simplifying.start_masks(old, inputs)
                    others["copied"] = simplifying.with_masks(average, start)
                    fitted = simplifying.fit_masks(old, inputs, start)
                    new = others["fitted"] = simplifying.with_masks(average, fitted)
            if self.steps:
                new = copy.deepcopy(new)
                for parameter in _kept(new, to):
                    parameter.requires_grad_(False)
                simplifying.distil(new, old, inputs, self.steps)
                others["distilled"] = new
            blocks.append(new)
            found = found or simplifying.errors_of(old, others, self.unseen[name])
        assert found is not None
        return blocks, found

    def _with(self, candidate: Candidate, blocks: Sequence["nn.Module"]) -> tuple["nn.Module", list[str]]:
        """A copy of the network with other blocks in the place of its own."""
        from lookfar.insertion import remove
        from lookfar.study.build import put_in

        network = copy.deepcopy(self.network)
        remove(network, list(self.names))
        names = put_in(network, self.plan, candidate, self.data, self.seed, control_parameters=0, study=self.study)
        for name, block in zip(names, blocks, strict=True):
            network.get_submodule(name).load_state_dict(block.state_dict())
        return network.eval(), names

    def _train(self, network: "nn.Module", names: Sequence[str], to: str) -> None:
        """Train new blocks with labels, weighed and drawn as the trial's; all else stays, statistics of norms too."""
        import torch

        from lookfar.training.optimization import set_random_state

        settings = self.plan.settings()
        weights = None if settings.class_weights is None else torch.tensor(settings.class_weights)
        blocks = [network.get_submodule(name) for name in names]
        kept = {id(parameter) for block in blocks for parameter in _kept(block, to)}
        parameters = [p for block in blocks for p in block.parameters() if p.requires_grad and id(p) not in kept]
        optimizer = torch.optim.Adam(parameters, 1e-3)
        for step in range(self.label_steps):
            set_random_state(self.seed, step)
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / self.label_steps)
            inputs, targets = self.data.batch(self.seed, step, settings.batch_size)
            total, count = self.task.learn(network, inputs, targets, weights)
            optimizer.zero_grad()
            (total / count.clamp(min=1e-6)).backward()
            optimizer.step()
        for parameter in network.parameters():
            parameter.grad = None

    def write(self, tried: Tried, out: Path) -> dict[str, Any]:
        """Write it; what ``simplified.json`` holds."""
        loss = tried.loss
        what = {
            "steps": self.steps,
            "label_steps": self.label_steps,
            "loss": {"mean": loss.loss, "low": loss.low, "high": loss.high},
            "margin": self.margin,
            "verdict": tried.verdict,
            "groups": str(self.groups),
        }
        origin = Origin(
            self.trial, self.study, self.config, self.plan, self.seed, self.task, self.candidate, self.network,
            self.data, self.names, self.judged,
        )  # fmt: skip
        return write_study(origin, tried.made, what, out)
