"""Every block at every place of a trained network, the network frozen, each block alone for a few steps.

A block enters as the identity, so that it begins where the network stands, and what it gains is its own. The network
stays in evaluation and changes nothing; what it computes before a place is computed once for all blocks there. Gains
are those of a scan: a block that is trained with its network gains more, or less, and other blocks may do so.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lookfar.diagnostics import choose_images
from lookfar.insertion import insertions
from lookfar.scan.features import behind, cached, part_of
from lookfar.scan.guide import Guide, guide
from lookfar.scan.separating import grouped, least_difference
from lookfar.study._files import read_json
from lookfar.study.build import added_parameters, default_place, drawn_apart, find_place, map_at, put_in
from lookfar.study.candidates import Candidate, is_reference, place_of
from lookfar.study.ladder import unlearned
from lookfar.study.plan import Plan
from lookfar.study.preflight import controls_for, slow_norms
from lookfar.study.trained import load_trial
from lookfar.training import Settings, evaluate
from lookfar.training.optimization import create_optimizer, schedule_factor, set_random_state

if TYPE_CHECKING:
    from lookfar.data import Data
    from lookfar.tasks import Task

STEPS, SEEDS = 200, 2
NUMBERS = 2**27  # of features of each of the two sets that are kept: 512 MB
NOTHING = "nothing"


@dataclass(frozen=True)
class Row:
    """A candidate of a scan.

    Attributes:
        candidate: As a plan writes it, with its place; ``nothing`` for the network as it is.
        scores: Of the seeds.
        gain: Over ``nothing``, in the scan; positive where it is better.
        group: 1 for the best: seeds do not tell a group's members from its first.
        reason: Why there are no scores.
    """

    candidate: str
    scores: tuple[float, ...]
    gain: float
    group: int
    reason: str = ""


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        host: The folder of the network's trial.
        study: The folder of its study, which can grow by the leaders.
        data: As the plan has it.
        title: What scores are called.
        rows: Best first.
        least: What two means must differ by to be told apart; nan with one seed.
        steps: Of each block.
        train: Images that blocks were trained on.
        val: Images that judged, of so many.
        of_val: How many there are.
        known: How scans did before; None where that was not measured.
    """

    host: Path
    study: Path
    data: str
    title: str
    rows: tuple[Row, ...]
    least: float
    steps: int
    train: int
    val: int
    of_val: int
    known: Guide | None

    @property
    def leaders(self) -> tuple[str, ...]:
        """The best block of every group that is better than nothing; of the best group, where none is."""
        blocks = [row for row in self.rows if row.candidate != NOTHING and not is_reference(row.candidate)]
        end = next(row.group for row in self.rows if row.candidate == NOTHING)
        firsts = {row.group: row.candidate for row in reversed(blocks) if row.scores}
        better = tuple(name for group, name in sorted(firsts.items()) if group < end)
        return better or tuple(name for _, name in sorted(firsts.items())[:1])

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = asdict(self) | {"rows": [{**asdict(row), "gain": _or_none(row.gain)} for row in self.rows]}
        values |= {"host": str(self.host), "study": str(self.study), "leaders": list(self.leaders)}
        return values | {"least": _or_none(self.least)}


def _or_none(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def scan(
    trial: str | Path,
    blocks: Sequence[str],
    places: Sequence[str] = (),
    *,
    seeds: int = SEEDS,
    steps: int = STEPS,
    data: "str | Path | Data | None" = None,
    say: Callable[[str], None] = lambda line: None,
) -> Scan:
    """Try blocks at places of a trained network.

    Args:
        trial: Folder of a baseline's trial.
        blocks: As a plan has them; one that names a place stands there alone.
        places: Where the others go; by default where the plan's go.
        seeds: How often each is drawn and trained.
        steps: Of training.
        data: Where the data lie now, as for :func:`lookfar.study.load_trial`.
        say: Takes a line for every candidate.

    Raises:
        ValueError: The trial has a block, a block cannot go there or does not enter as the identity, the same twice.
        FileNotFoundError: No trial, or no data.
    """
    with drawn_apart(0):
        return _scan(Path(trial), blocks, places, seeds, steps, data, say)


def _scan(
    trial: Path,
    blocks: Sequence[str],
    places: Sequence[str],
    seeds: int,
    steps: int,
    data: Any,
    say: Callable[[str], None],
) -> Scan:
    work = _Work(trial, data, steps)
    names = work.candidates(blocks, places, say)
    spots: dict[str, list[str]] = {}
    for name in names:
        spots.setdefault(place_of(name), []).append(name)
    work.choose(list(spots))
    scores: dict[str, tuple[float, ...]] = {}
    reasons: dict[str, str] = {}
    for there in spots.values():
        at = work.at(there[0])
        if NOTHING not in scores:
            value, unlearned = at.nothing()
            scores[NOTHING] = (value,) * seeds
            say(f"{NOTHING}: {value:.1f}")
            if unlearned:
                say(f"Nothing was learned that blocks could add to: {unlearned}. Train it longer first.")
        for name in there:
            found = [at.score(name, seed) for seed in range(seeds)]
            if not all(map(math.isfinite, found)):
                reasons[name] = "its loss or its score is not finite"
                say(f"{name}: {reasons[name]}")
                continue
            scores[name] = tuple(found)
            say(f"{name}: {', '.join(f'{one:.1f}' for one in found)}")
    return _conclude(work, trial, scores, reasons, seeds)


def _conclude(
    work: "_Work", trial: Path, scores: dict[str, tuple[float, ...]], reasons: dict[str, str], seeds: int
) -> Scan:
    task = work.task
    # the network as it is does not scatter, and would make the others seem to
    least = least_difference({name: of for name, of in scores.items() if name != NOTHING}) if seeds > 1 else math.nan
    groups = grouped(scores, least, higher=task.higher)
    sign, nothing = 1 if task.higher else -1, scores[NOTHING][0]
    rows = [
        Row(name, scores[name], sign * (float(np.mean(scores[name])) - nothing), number)
        for number, group in enumerate(groups, 1)
        for name in group
    ]
    rows += [Row(name, (), math.nan, len(groups) + 1, reason) for name, reason in reasons.items()]
    return Scan(
        trial, work.called, work.plan.data, task.words.title, tuple(rows), least, work.settings.steps,
        len(work.part.train), len(work.part.val), len(work.data.val), guide(),
    )  # fmt: skip


class _Work:
    """A trained network and its data."""

    def __init__(self, trial: Path, data: Any, steps: int) -> None:
        config, self.study = read_json(trial / "config.json"), trial.resolve().parents[2]
        self.called = trial.parents[2] if len(trial.parents) > 3 else self.study  # as the user wrote it
        if config.get("candidate", "baseline") != "baseline":
            raise ValueError(f"{trial} has a block already: give the trial of the baseline")
        self.network, self.data, _ = load_trial(trial, data=data)
        self.plan = Plan.from_dict(config["plan"])
        self.task: Task = self.plan.find_task(self.study)
        settings = self.plan.settings()
        self.settings: Settings = replace(settings, steps=steps, precision="32-true", ema=0.0)
        self.device = torch.device(self.plan.accelerator or "cpu")
        self.network.to(self.device)
        self.part: Data = self.data

    def candidates(self, blocks: Sequence[str], places: Sequence[str], say: Callable[[str], None]) -> list[str]:
        """All that is tried but ``nothing``: blocks at places, and controls of their size.

        Says which of them have norms that so few steps are not enough for.

        Raises:
            ValueError: See :func:`scan`.
        """
        wanted = [*places] or [self.plan.place or default_place(self.network)]
        found: list[Candidate] = []
        for text in blocks:
            one = Candidate.parse(text)
            if is_reference(str(one)):
                raise ValueError(f"{one} is compared in any case: name blocks")
            if one.replaces:
                raise ValueError(
                    f"{one.name} takes the place of a convolution and does not begin as the identity, so a scan cannot "
                    "tell: compare it by `lookfar study`"
                )
            found += [one] if one.place else [replace(one, place=place) for place in wanted]
        # under one name each, so that nothing is tried twice
        found = [replace(one, place=find_place(self.network, str(one.place))) for one in found]
        names = [str(one) for one in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: the same candidate is named twice")
        if not names:
            raise ValueError("name at least one block, as in --blocks nonlocal,global_context")
        sizes = {}
        for name, candidate in zip(names, found):
            built = self.built(name, 0)
            sizes[name] = added_parameters(*built)
            if line := slow_norms(candidate, *built, self.settings.steps):
                say(line)
        return [*controls_for(sizes, self._parameters, {}), *names]

    def _parameters(self, name: str, aim: int = 0) -> int:
        return added_parameters(*self.built(name, 0, aim))

    def built(self, name: str, seed: int, aim: int = 0) -> tuple[nn.Module, list[str]]:
        """A copy of the network with a candidate in it, all else frozen.

        Raises:
            ValueError: It cannot go there.
        """
        network, candidate = copy.deepcopy(self.network), Candidate.parse(name)
        try:
            names = put_in(network, self.plan, candidate, self.data, seed, control_parameters=aim, study=self.study)
        except (AssertionError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{name} cannot go into {self.plan.host}: {' '.join(str(error).split())}") from error
        network.requires_grad_(False)
        for one in names:
            network.get_submodule(one).requires_grad_()
        return network.eval(), names

    def choose(self, places: Sequence[str]) -> None:
        """So many images, evenly spread, that the features of the largest place can be kept."""
        most = 1
        for place in places:
            channels, size = map_at(copy.deepcopy(self.network), place, self.data)
            most = max(most, channels * math.prod(size))
        fits = max(NUMBERS // most, 1)
        train, val = (choose_images(len(of), min(len(of), fits)) for of in (self.data.train, self.data.val))
        self.part = part_of(self.data, train, val)

    def at(self, name: str) -> "_Place":
        """The place of a candidate."""
        return _Place(self, name)


class _Place:
    """A place, with its features for all images where the rest of the network reads nothing else."""

    def __init__(self, work: _Work, name: str) -> None:
        self.work, self.spot, self.data = work, "", work.part
        network, names = work.built(name, 0)
        if len(names) == 1:  # several places of one candidate change one another's features
            (one,) = [one for one in insertions(network) if one.name in names]
            if behind(network, one.spot, self._example()) is not None:
                self.spot = one.spot
                self.data = cached(work.network, one.spot, work.part)

    def _example(self) -> torch.Tensor:
        return self.work.data.example(2).to(self.work.device)

    def _cut(self, network: nn.Module) -> nn.Module:
        if not self.spot:
            return network
        found = behind(network, self.spot, self._example())
        assert found is not None  # the same network took another block at this place
        return found

    def nothing(self) -> tuple[float, str]:
        """The score of the network as it is, and why it says nothing; else an empty string."""
        facts = self._facts(self._cut(copy.deepcopy(self.work.network)))
        return self._score(facts), unlearned(self.work.task, {0: facts})

    def score(self, name: str, seed: int) -> float:
        """The score with a candidate that was trained; nan where its loss was not finite."""
        work, settings, task = self.work, self.work.settings, self.work.task
        network, names = work.built(name, seed)
        blocks = [network.get_submodule(one) for one in names]
        weights = None
        if settings.class_weights is not None:
            weights = torch.tensor(settings.class_weights, device=work.device)
        optimizer = create_optimizer(network, settings, names)
        cut = self._cut(network)
        loss = torch.zeros(())
        for block in blocks:
            block.train()
        with drawn_apart(seed):
            for step in range(settings.steps):
                set_random_state(seed, step)
                inputs, targets = self.data.batch(seed, step, settings.batch_size)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * schedule_factor(settings.schedule, step, settings.steps)
                total, count = task.loss(cut(inputs.to(work.device)), targets.to(work.device), weights)
                loss = total / count.clamp(min=1e-6)
                optimizer.zero_grad()
                loss.backward()
                if settings.clip:
                    nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], settings.clip)
                optimizer.step()
        return self._judge(cut) if loss.isfinite() else math.nan

    def _judge(self, network: nn.Module) -> float:
        return self._score(self._facts(network))

    def _facts(self, network: nn.Module) -> np.ndarray:
        work, batch_size = self.work, self.work.settings.batch_size
        judged = evaluate(network, self.data, work.task, batch_size=batch_size, score=work.settings.score)
        return work.task.facts(judged)

    def _score(self, facts: np.ndarray) -> float:
        return float(self.work.task.score(facts, np.ones((1, len(facts))))[0])
