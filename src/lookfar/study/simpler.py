"""A network whose block gives way to a cheaper one, or to none: what is tried, what it loses, what is taken."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lookfar.study.candidates import Candidate
from lookfar.study.groups import Groups
from lookfar.study.ladder import tell, unlearned
from lookfar.study.rungs import Rung
from lookfar.study.simplified_study import Made
from lookfar.study.told import rounded
from lookfar.study.words import half_width, points, signed, thousands

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data
    from lookfar.diagnostics.simplifying import Errors
    from lookfar.tasks import Task
    from lookfar.training import Settings

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

Exchange = Callable[[Candidate, "Sequence[nn.Module]"], "tuple[nn.Module, list[str]]"]


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
        lost, margin = max(loss.high, 0.0), loss.margin
        fine = half  # with as many decimals as tell the two apart, where they are apart
        while 0 < fine > 1e-3 and lost > margin and points(lost, fine) == points(margin, fine):
            fine /= 10
        most = f"{points(lost, fine)} lost at most, margin {points(margin, fine)}"
        more = f"; about {thousands(rounded(loss.images))} images would decide" if loss.images else ""
        what = {
            "equivalent": f"equivalent: {most}",
            "needed": "the block's own maps are needed" if to != "none" else "the block is needed",
            "open": f"open: {most}{more}",
        }[self.verdict]
        where = f" {self.where}" if self.where else ""
        return f"{to} ({NAMES[to]}): {signed(-loss.loss, half)}{half_width(half)}{where}; {what}"


def _kept(block: "nn.Module", to: str) -> list["nn.Parameter"]:
    """What no training of a new block changes: the masks of an average, which would be one map for all queries then."""
    mask = getattr(block, "mask", None)
    return [*mask.parameters()] if to == "average" and mask is not None else []


class Work:
    """A network as it is, and simpler ones made of it.

    Args:
        network: On the CPU, in evaluation.
        data: Masks are fitted on its ``train``, and ``val`` judges.
        names: Of the blocks, all alike.
        task: What judges.
        groups: Which validation samples belong together.
        exchange: From what takes the blocks' place, and the new blocks, to a network and their names in it; to
            ``baseline`` and none.
        called: The blocks, in a message.
        margin: In points of the score.
        settings: Batch size, precision, score, weights of the classes.
        seed: Of what is drawn.
        images: Training samples that new blocks are fitted on, at most.
        steps: Of distillation.
        label_steps: Of training with labels.
        place: Of the new candidate in a plan.

    Raises:
        ValueError: A block that cannot be simplified, several that differ.
    """

    def __init__(
        self,
        network: "nn.Module",
        data: "Data",
        names: Sequence[str],
        task: "Task",
        groups: Groups,
        exchange: Exchange,
        *,
        called: str,
        margin: float,
        settings: "Settings",
        seed: int,
        images: int,
        steps: int,
        label_steps: int,
        place: str | None = None,
    ) -> None:
        from lookfar.diagnostics.simplifying import options_of, why_not_simple
        from lookfar.training import evaluate

        self.network, self.data, self.names, self.task = network, data, tuple(names), task
        self.groups, self.margin, self.settings, self.seed = groups, margin, settings, seed
        self.steps, self.label_steps, self.place, self._exchange = steps, label_steps, place, exchange
        modules = [network.get_submodule(name) for name in names]
        if reason := next(filter(None, map(why_not_simple, modules)), ""):
            raise ValueError(reason)
        every = [options_of(module) for module in modules]
        if any(options != every[0] for options in every):
            raise ValueError(f"{called} stands at {len(every)} places of different width: name one at a time")
        self.options = {name: value for name, value in every[0].items() if name != "dims"}
        self.inputs = self._inputs(data.train, images)
        self.unseen = self._inputs(data.val, min(images, 32))
        how: dict[str, Any] = {name: getattr(settings, name) for name in ("batch_size", "precision", "score")}
        self.judge: Callable[[nn.Module], Any] = lambda network: evaluate(network, data, task, **how)
        self.judged = self.judge(network)

    def try_all(self, to: To, say: Callable[[str], None]) -> "tuple[tuple[Tried, ...], Tried]":
        """Every network that was asked for, from the cheapest on, and the one that is to be taken."""
        if reason := unlearned(self.task, {0: self.task.facts(self.judged)}):
            say(f"Nothing was learned that a block could be needed for: {reason}.")
        tried = self.judge_all([self.make(one) for one in (LADDER if to == "auto" else (to,))])
        for one in tried:
            say(str(one))
        return tried, next((one for one in tried if one.loss.equivalent), tried[-1])

    def said_of(self, tried: Tried) -> dict[str, Any]:
        """How it was made and judged, for ``simplified.json``."""
        loss = tried.loss
        return {
            "steps": self.steps,
            "label_steps": self.label_steps,
            "loss": {"mean": loss.loss, "low": loss.low, "high": loss.high},
            "margin": self.margin,
            "verdict": tried.verdict,
            "groups": str(self.groups),
        }

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
            candidate = Candidate(name, tuple(sorted(options.items())), self.place)
            blocks, errors = self._blocks(to)
        network, names = self._exchange(candidate, blocks)
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

    def _train(self, network: "nn.Module", names: Sequence[str], to: str) -> None:
        """Train new blocks with labels, weighed and drawn as the trial's; all else stays, statistics of norms too."""
        import torch

        from lookfar.training.optimization import set_random_state

        settings = self.settings
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
