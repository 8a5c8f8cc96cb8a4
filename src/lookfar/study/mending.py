"""Files of finished trials: whether they are what their trial left, and what is made again from its weights."""

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookfar.study._files import read_if_whole, read_json, write_json
from lookfar.study.ablations import FILES as ABLATIONS
from lookfar.study.continuing import decisive, kept_plan
from lookfar.study.plan import trial_folder
from lookfar.study.scoring import counts_of, mean_iou

WEIGHTS = "final.safetensors"
MATRICES = ("confusion.npz", "also.npz")
FILES = (WEIGHTS, *MATRICES, *ABLATIONS, "samples.npz")  # of a finished trial, beside its records and its result


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


def digests(folder: Path) -> dict[str, str]:
    """Of the files of a trial that has just finished, for its ``result.json``."""
    return {name: _digest(folder / name) for name in FILES if (folder / name).is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def read_state(folder: Path, *, thorough: bool = True) -> State:
    """A trial's result, and which of its files are not what it left.

    Args:
        folder: Of the trial.
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
    for name in MATRICES:
        if name not in damaged and (name in left or name == MATRICES[0] or (folder / name).exists()):
            damaged += [name] if _matrices_damaged(folder, name, result) else []
    return State(result, tuple(damaged))


def _holds(path: Path, digest: str) -> bool:
    try:
        return _digest(path) == digest
    except OSError:
        return False


def _matrices_damaged(folder: Path, name: str, result: Mapping[str, Any]) -> bool:
    """Whether a file of confusion matrices cannot be read, or is not what ``result.json`` was made of."""
    matrices = _matrices(folder / name)
    classes = len(result.get("iou") or ())
    if matrices is None or (classes and matrices.shape[1] != classes):
        return True
    return name == MATRICES[0] and not _same(result.get("miou"), _score(matrices))


def _matrices(path: Path) -> np.ndarray | None:
    """Counts ``(images, K, K)``; None where the file is missing or holds no such thing."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            matrices = file["confusion"]
    except Exception:  # zip, zlib and numpy have an exception each for what is damaged
        return None
    square = matrices.ndim == 3 and matrices.shape[1] == matrices.shape[2]
    if not square or matrices.dtype.kind not in "iu" or not matrices.size or matrices.min() < 0 or not matrices.any():
        return None
    return matrices


def _score(matrices: np.ndarray) -> float | None:
    score = float(mean_iou(counts_of(matrices), np.ones((1, len(matrices))))[0]) / 100
    return score if math.isfinite(score) else None


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
