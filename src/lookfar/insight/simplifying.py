"""What `lookfar simplify` does: of a trial a study, of any other network a folder that `open_network` reads."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lookfar._options import Natural, NotNegative, check, choice, positive
from lookfar._tables import listed
from lookfar._warnings import warnings_as_lines
from lookfar.cost import measure_in_turn
from lookfar.cost.sizes import parse_size
from lookfar.diagnostics import blocks_of
from lookfar.diagnostics.simplifying import why_not_simple
from lookfar.insight.subjects import Subject, find_subjects
from lookfar.networks.saving import exchange
from lookfar.study._files import write_json
from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan
from lookfar.study.simpler import BATCH, IMAGES, LADDER, To, Tried, Work
from lookfar.study.simplified import Simplified, refuse, simplify
from lookfar.study.simplified_study import errors_in, numbers, table_of, write_whole
from lookfar.study.trained import SIMPLIFIED, trial_in
from lookfar.study.words import plus_minus
from lookfar.training import Settings

if TYPE_CHECKING:
    from torch import nn

    from lookfar.tasks import Task


def simplify_command(target: str, out: Path, *, data: str | None, size: str | None, **options: Any) -> int:
    """Print what was tried and what it saves; 1 where the score refuses it.

    Args:
        target: A trial, or a network as :func:`lookfar.use.open_network` takes it.
        out: Folder of the new network.
        data: What judges a network; where the data of a trial lie now.
        size: Of the images that judge a network, ``HxW``.
        **options: Of :func:`lookfar.study.simplified.simplify`.
    """
    choice("to", options["to"], ("auto", *LADDER, "global_context"))
    for name in ("steps", "label_steps"):
        check(name, options[name], Natural)
    positive("images", options["images"])
    check("margin", options["margin"], NotNegative | None)

    def say(line: str) -> None:
        print(line, flush=True)

    if (trial := trial_in(target)) is not None:
        if size is not None:
            raise ValueError("a trial is judged at the size that it was trained at: --size is for other networks")
        found = simplify(trial, out, data=data, **options, say=say)
        task: Task | None = Plan.load(out / "study.yaml").find_task(out) if found.folder is not None else None
    else:
        with warnings_as_lines():
            found, task = simplify_network(target, out, data=data, size=size, **options, say=say)
    if found.folder is None or task is None:
        print(_refused(found.tried[-1]))
        return 1
    print(f"\n{table_of(found.facts, task)}\n\nWritten to {out / found.facts.get('trial', '')}")
    return 0


def simplify_network(
    source: str,
    out: str | Path,
    *,
    data: str | None,
    size: str | None = None,
    to: To = "auto",
    steps: int = 0,
    label_steps: int = 0,
    force: bool = False,
    margin: float | None = None,
    images: int = IMAGES,
    say: Callable[[str], None] = lambda line: None,
) -> "tuple[Simplified, Task]":
    """Make a network simpler that is no trial, and write it where its score on labelled data allows that.

    Of several blocks those give way that can, all at once.

    Args:
        source: As for :func:`lookfar.use.open_network`.
        out: Folder of what is written, as ``save_pretrained`` does; it must not be there.
        data: Labelled, as for :func:`lookfar.data.open_data`: ``train`` for the fit, ``val`` to judge.
        size: Of the images, ``HxW``; by default the data's.
        to, steps, label_steps, force, margin, images, say: As for :func:`lookfar.study.simplified.simplify`.

    Raises:
        ValueError: No data, no block that can be simplified, blocks that differ, ``out`` is there.
        FileNotFoundError: No such network, or no such data.
    """
    out = Path(out)
    refuse(out, to, steps)
    if data is None:
        raise ValueError(f"what is {source} to be judged on? --data PATH says it; of a trial it is known")
    height_width = None if size is None else parse_size(size)
    if height_width is not None and len(height_width) != 2:
        raise ValueError(f"size must be two numbers such as 512x1024, got {size!r}")
    pair = None if height_width is None else (height_width[0], height_width[1])
    (subject,) = find_subjects(source, data=data, size=pair, margin=margin)
    names, stay = _blocks(subject)
    if stay:
        say(f"{listed(stay)}: cannot become simpler, and stays")

    def with_others(candidate: Candidate, blocks: "Sequence[nn.Module]") -> "tuple[nn.Module, list[str]]":
        network = copy.deepcopy(subject.network)
        for name in names if not blocks else ():
            exchange(network, name, None)
        for name, block in zip(names, blocks):
            channels = work.inputs[name][0].shape[1]
            how = {"block": candidate.name, "channels": channels, "options": dict(candidate.options)}
            exchange(network, name, how).load_state_dict(block.state_dict())
        return network.eval(), names if blocks else []

    assert subject.task is not None
    settings = Settings(batch_size=BATCH, score=subject.score, accelerator="cpu")
    work = Work(
        subject.network, subject.data, names, subject.task, subject.groups, with_others, called=subject.name,
        margin=subject.margin, settings=settings, seed=0, images=images, steps=steps, label_steps=label_steps,
    )  # fmt: skip
    tried, chosen = work.try_all(to, say)
    if not (chosen.loss.equivalent or force):
        return Simplified(tried), subject.task
    facts = write_whole(out, lambda place: _fill(work, chosen, source, place))
    return Simplified(tried, chosen, out, facts), subject.task


def _blocks(subject: Subject) -> tuple[list[str], list[str]]:
    """The blocks that can become simpler, and those that cannot."""
    every = {name: why_not_simple(subject.network.get_submodule(name)) for name in blocks_of(subject.network)}
    if not every:
        raise ValueError(f"{subject.name} has no block of the registry: nothing to simplify")
    names = [name for name, reason in every.items() if not reason]
    if not names:
        raise ValueError(f"{subject.name}: {next(iter(every.values()))}")
    return names, [name for name, reason in every.items() if reason]


def _fill(work: Work, chosen: Tried, source: str, place: Path) -> dict[str, Any]:
    made, before = chosen.made, work.network
    network: Any = made.network
    network.save_pretrained(place)
    times = measure_in_turn({"before": before, "after": network}, work.data.example())
    about = work.data, work.task
    facts = {
        "of": {"network": source, "blocks": list(work.names)},
        "to": made.to,
        **work.said_of(chosen),
        "images": len(work.data.val),
        "errors": errors_in(made),
        "before": numbers(before, work.names, work.judged, median(times["before"]), *about),
        "after": numbers(network, made.names, made.judged, median(times["after"]), *about),
    }
    write_json(place / SIMPLIFIED, facts)
    return facts


def _refused(last: Tried) -> str:
    where = f" {last.where}" if last.where else ""
    more = "" if last.loss.needed else ", which is not shown to be practically nothing"
    lost = plus_minus(last.loss.loss, last.loss.high - last.loss.loss)
    return f"Refused, nothing is written: {last.made.to} loses {lost} points{where}{more}. --force writes it."
