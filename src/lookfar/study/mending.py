"""Files of finished trials: whether they are what their trial left, and what is made again from its weights."""

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookfar._arrays import read_arrays
from lookfar.study._files import read_if_whole, read_json, write_json
from lookfar.study.ablations import FILES as ABLATIONS
from lookfar.study.continuing import decisive, kept_plan
from lookfar.study.plan import trial_folder
from lookfar.tasks import Task

WEIGHTS = "final.safetensors"
ALSO = "also.npz"  # what was judged on the second set
OTHERS = (ALSO, *ABLATIONS, "samples.npz")  # of a finished trial, beside weights, judged samples, records and result


@dataclass(frozen=True)
class State:
    """What a trial's folder holds.

    Attributes:
        result: Of ``result.json``; empty where there is none, or none that can be read.
        damaged: Names of files that a finished trial should have otherwise.
    """

    result: Mapping[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.result.get("status") == "done"


def digests(folder: Path, task: Task) -> dict[str, str]:
    """Of the files of a trial that has just finished, for its ``result.json``."""
    names = (WEIGHTS, judged_file(task), *OTHERS)
    return {name: _digest(folder / name) for name in names if (folder / name).is_file()}


def judged_file(task: Task) -> str:
    """Name of the file that keeps what was judged of every validation sample."""
    return f"{task.file}.npz"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def read_state(folder: Path, task: Task, *, thorough: bool = True) -> State:
    """A trial's result, and which of its files are not what it left.

    Args:
        folder: Of the trial.
        task: Of its plan.
        thorough: Read every file to its end; else only those that its scores are made of.
    """
    try:
        result = read_json(folder / "result.json")
    except ValueError:
        return State({}, ("result.json",))
    if result.get("status") != "done":
        return State(result)
    left: Mapping[str, str] = result.get("files") or {}
    damaged = [name for name, digest in left.items() if thorough and not _holds(folder / name, digest)]
    first = judged_file(task)
    for name in (first, ALSO):
        if name not in damaged and (name in left or name == first or (folder / name).exists()):
            damaged += [] if _fits(task, folder / name, result, whole=name == first) else [name]
    return State(result, tuple(damaged))


def _holds(path: Path, digest: str) -> bool:
    try:
        return _digest(path) == digest
    except OSError:
        return False


def _fits(task: Task, path: Path, result: Mapping[str, Any], *, whole: bool) -> bool:
    """Whether a file holds what was judged, of as many classes as ``result.json`` has; ``whole``: its score too."""
    judged = read_arrays(path)
    if not task.fits(judged):
        return False
    found = task.scores(judged)
    lists = [name for name, value in found.items() if isinstance(value, list) and isinstance(result.get(name), list)]
    alike = all(len(found[name]) == len(result[name]) for name in lists)
    return alike and (not whole or _same(result.get(task.metric), found[task.metric]))


def _same(stored: Any, found: float | None) -> bool:
    if stored is None or found is None:
        return stored is None and found is None
    return isinstance(stored, int | float) and math.isclose(stored, found, abs_tol=1e-9)


def restore_configs(study: Path) -> list[str]:
    """Write the damaged ``config.json`` of finished trials again, where the others of the study say what it was.

    Returns:
        A line for each.
    """
    plan = kept_plan(study)
    candidates = () if plan is None else plan.candidates
    folders = sorted(study.glob("trials/*/*/"))
    whole = [config for folder in folders if (config := read_if_whole(folder / "config.json"))]
    notes = []
    for folder in folders:
        stored = read_if_whole(folder / "result.json").get("trained_with")
        if stored is None or read_if_whole(folder / "config.json"):
            continue
        names = [name for name in candidates if trial_folder(study, name, 0).parent == folder.parent]
        seed = int(folder.name) if folder.name.isdecimal() else -1
        tried = ({**config, "candidate": name, "seed": seed} for name in names for config in whole)
        for config in tried:
            with suppress(KeyError, TypeError, AttributeError):
                if decisive(config) == stored:
                    write_json(folder / "config.json", config)
                    notes.append(f"{names[0]} seed {seed}: config.json damaged, written again.")
                    break
    return notes
