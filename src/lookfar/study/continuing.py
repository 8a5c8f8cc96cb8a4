"""What lies in a study's folder already: how far a plan may go on with it, and how the study grows.

Trials are compared by what decides their numbers: the entries of the plan that train, the data, the weights that the
host starts from. Where these lie does not count.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookfar._tables import shorten
from lookfar.study._files import read_if_whole
from lookfar.study.candidates import Candidate, is_reference
from lookfar.study.plan import FREE, Plan, trial_folder
from lookfar.study.sources import edited
from lookfar.study.words import counted, join

BY_CONTENT = (  # entries that lead to data and weights, which are compared themselves
    "data", "val", "also_val", "size", "ignore", "labels", "classes", "exif", "skip_bad", "in_chans", "host_weights",
)  # fmt: skip
KINDS = {"data": "data", "host": "weights of the host", "control_parameters": "size of the control"}
ROOM = 150  # characters of differences in a message


@dataclass(frozen=True)
class Begun:
    """A trial that was trained, or partly: ``config`` is what it was trained with."""

    candidate: str
    seed: int
    folder: Path
    config: Mapping[str, Any]
    done: bool

    def __str__(self) -> str:
        return f"{self.candidate} seed {self.seed}"


def begun_trials(study: Path, *, strict: bool = True) -> list[Begun]:
    """The trials of a folder from which something would be kept.

    Args:
        study: The folder.
        strict: Refuse finished trials of which nobody knows how they were trained; else they are left out.

    Raises:
        ValueError: A trial lies in another's folder, or ``config.json`` of a finished one is missing or damaged.
    """
    found = []
    for folder in sorted(study.glob("trials/*/*/")):
        where = "/".join(folder.parts[-3:])
        config, result = read_if_whole(folder / "config.json"), read_if_whole(folder / "result.json")
        done = result.get("status") == "done"
        stopped = not result or bool(result.get("killed"))  # what failed by itself begins anew
        if not done and not (stopped and (any(folder.glob("step-*")) or (folder / "final.safetensors").exists())):
            continue
        try:
            one = Begun(config["candidate"], config["seed"], folder, {**config, "plan": dict(config["plan"])}, done)
        except (KeyError, TypeError, ValueError):
            if not strict:
                continue
            raise ValueError(
                f"{where} does not say how it was trained: put its config.json back, or delete the folder"
            ) from None
        if trial_folder(study, one.candidate, one.seed) != folder:
            raise ValueError(f"{where} holds {one}, which belongs elsewhere: move it back")
        found.append(one)
    return found


def grow(plan: Plan, study: Path) -> tuple[Plan, dict[str, int], list[str]]:
    """A resolved plan with what the folder holds beside it: a study grows, and loses nothing that is finished.

    Returns:
        The plan with further blocks and seeds; the controls that exist and the number of parameters that each aims at;
        what was added, one line each.
    """
    trials = begun_trials(study)
    kept = kept_plan(study)
    before = () if kept is None else kept.blocks
    done = {one.candidate for one in trials if one.done and not is_reference(one.candidate)}
    stay = [block for block in before if block in done and block not in plan.blocks]
    stay += sorted(done.difference(plan.blocks, stay))
    seeds = max([plan.seeds, *(one.seed + 1 for one in trials if one.done)])
    notes = []
    if stay:
        notes.append(f"{join(stay)}: finished here before, and still part of the study.")
    if seeds > plan.seeds:
        notes.append(f"{counted(seeds, 'seed')} instead of {plan.seeds}: some were finished here before.")
    controls = {}
    for one in sorted(trials, key=lambda one: (one.candidate != "control", one.seed)):
        if is_reference(one.candidate) and one.candidate != "baseline":
            parameters = dict(Candidate.parse(one.candidate).options).get("parameters")
            controls.setdefault(one.candidate, parameters or one.config.get("control_parameters", 0))
    blocks = [block for block in before if block in plan.blocks or block in stay]
    blocks += [block for block in (*stay, *plan.blocks) if block not in blocks]
    return dataclasses.replace(plan, blocks=tuple(blocks), seeds=seeds), controls, notes


def kept_plan(study: Path) -> Plan | None:
    """The plan that lies in a folder; None where there is none that can be read: the trials say what they are."""
    try:
        return Plan.load(study / "study.yaml")
    except (FileNotFoundError, ValueError):
        return None


def moved(data: str, study: Path) -> FileNotFoundError:
    """What to say where the data of a study are not there any more."""
    return FileNotFoundError(
        f"the data of this study are not at {shorten(data, 60)} any more: give --data, where they are now. "
        f"`lookfar study {shlex.quote(str(study))} --data PATH` keeps it for all commands"
    )


def check_same(
    plan: Plan, study: Path, made_of: Mapping[str, Any] | None = None, *, data: Mapping[str, Any] | None = None
) -> None:
    """Refuse a plan under which trials of the folder would have other numbers.

    Args:
        plan: Resolved; its ``place`` may still be open.
        study: The folder.
        made_of: What stands in ``config.json`` beside the plan, by its name there; what is missing is not compared.
        data: The fingerprint of the data as they are now.

    Raises:
        ValueError: With the difference.
    """
    from lookfar.data.fingerprint import differences as data_differences

    wanted = set(plan.trials)
    trials = [one for one in begun_trials(study) if (one.candidate, one.seed) in wanted]
    before = read_if_whole(study / "data.json")
    other: dict[tuple[str, ...], list[Begun]] = {}
    for one in trials:
        found = plan_differences(one.config["plan"], plan)
        found += edited(one.config["plan"], [one.candidate, plan.host, plan.task], plan.sources)
        for name, value in (made_of or {}).items():
            then = one.config.get(name)
            if None in (then, value) or then == value or (name == "control_parameters" and one.candidate != "control"):
                continue
            named = data_differences(before, data) if name == "data" and data and "sets" in before else []
            found += named or [f"other {KINDS.get(name, name)}"]
        if found:
            other.setdefault(tuple(found), []).append(one)
    if other:
        found, some = max(other.items(), key=lambda item: len(item[1]))
        raise ValueError(_refusal(found, some, "give another --out, or what they were trained with"))


class Changed(ValueError):
    """Data or weights are not what the study began with; put back, they let a trial go on."""


def check_unchanged(config: Mapping[str, Any], study: Path, data: Mapping[str, Any], host: str) -> None:
    """Refuse to train on what has changed since the study looked at it.

    Raises:
        Changed: With the difference.
    """
    from lookfar.data.fingerprint import differences as data_differences
    from lookfar.data.fingerprint import digest

    if config.get("data") not in (None, digest(data)):
        before = read_if_whole(study / "data.json")
        named = data_differences(before, data) if "sets" in before else []
        raise Changed(f"the data have changed since the study began: {'; '.join(named) or 'other data'}")
    if config.get("host") not in (None, host):
        raise Changed("the weights that the host starts from have changed since the study began")


def plan_differences(trained: Mapping[str, Any], plan: Plan, now: str = "asked for") -> list[str]:
    """What decides the numbers of a trial and differs: ``steps: 1000 there, 500 asked for``."""
    defaults = {field.name: field.default for field in dataclasses.fields(Plan)} | {"task": "segmentation"}
    found = []
    for name, value in plan.to_dict().items():
        if name in FREE or name in BY_CONTENT or (name in ("place", "task") and value is None):
            continue
        then = trained.get(name, defaults[name])  # entries are added from version to version
        if then != value:
            found.append(f"{name}: {_show(then)} there, {_show(value)} {now}")
    return found


def check_consistent(plan: Plan, trials: Sequence[Begun], data: Mapping[str, Any]) -> None:
    """Refuse to compare finished trials that were trained otherwise than ``study.yaml`` says, or on different data.

    Args:
        plan: As ``study.yaml`` has it.
        trials: Those that are done.
        data: What ``data.json`` holds.

    Raises:
        ValueError: With the difference.
    """
    wanted = set(plan.trials)
    trials = [one for one in trials if (one.candidate, one.seed) in wanted]
    now = plan.to_dict()
    found = [
        f"{name}: {_show(then)} there, {_show(now[name])} in study.yaml"
        for name, then in data.get("asked", {}).items()
        if name in now and then != now[name]
    ]
    if trials and found:
        raise ValueError(_refusal(found, trials, "study.yaml was changed: put it back"))
    first: dict[str, Begun] = {}
    for one in trials:
        if found := plan_differences(one.config["plan"], plan, "in study.yaml"):
            raise ValueError(_refusal(found, [one], "study.yaml was changed: put it back"))
        for name in KINDS:
            value = one.config.get(name)
            if value is None or (name == "control_parameters" and one.candidate != "control"):
                continue
            before = first.setdefault(name, one)
            if before.config[name] != value:
                raise ValueError(f"{before} and {one} were trained with other {KINDS[name]}: no comparison")


def decisive(config: Mapping[str, Any]) -> str:
    """Equal for trials whose ``config.json`` makes them the same: what else stands there decides no number."""
    plan = {key: value for key, value in config["plan"].items() if key not in FREE and key not in BY_CONTENT}
    kept = {key: value for key, value in config.items() if key not in ("plan", "control_parameters")}
    if config["candidate"] == "control":
        kept["control_parameters"] = config.get("control_parameters")
    text = json.dumps([kept, plan], sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def asked_of_data(plan: Plan) -> dict[str, Any]:
    """The entries of a plan that data and weights were opened with, for ``data.json``."""
    return {name: value for name, value in plan.to_dict().items() if name in BY_CONTENT}


def _refusal(found: Sequence[str], some: Sequence[Begun], cure: str) -> str:
    """One sentence that fits into three lines."""
    shown_of, room = [], ROOM
    for text in found:
        text = shorten(text, 100)
        if shown_of and len(text) > room:
            break
        shown_of.append(text)
        room -= len(text) + 2
    left = len(found) - len(shown_of)
    what = "; ".join(shown_of) + (f"; {left} more" if left else "")
    whose = f"{shorten(str(some[0]), 40)} {f'and {len(some) - 1} more were' if some[1:] else 'was'}"
    return f"{whose} trained otherwise here: {what}; {cure}"


def _show(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
