"""Files of a run that survive being killed: checkpoints made visible by one rename, records cut back to them."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What a ``step-N`` folder holds.

    Attributes:
        step: Steps done.
        weights: The network's state dict.
        optimizer: State of optimiser and gradient scaler.
        state: Everything else, as in ``state.json``.
        ema: The averaged network's state dict, where there is one.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, Tensor] | None = None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then give it its name: it is there in full or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors; tensors that share memory become copies."""
    from safetensors.torch import save

    plain = torch.contiguous_format
    path.write_bytes(save({k: t.detach().cpu().clone(memory_format=plain) for k, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write ``step-N``, then remove all but the newest ``keep``."""
    path = folder / f"step-{checkpoint.step}"
    temporary = folder / f".{path.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(checkpoint.weights, temporary / "weights.safetensors")
    if checkpoint.ema is not None:
        save_tensors(checkpoint.ema, temporary / "ema.safetensors")
    torch.save(checkpoint.optimizer, temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    shutil.rmtree(path, ignore_errors=True)  # only ever there when the settings allow a step to be done again
    temporary.rename(path)
    _sync(folder)
    for _, old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete ``step-N`` folder."""
    steps = _steps(folder)
    return steps[-1][1] if steps else None


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or None; what a killed process left half-written is removed."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)  # several processes may do this at once
    path = newest_checkpoint(folder)
    if path is None:
        return None
    ema = path / "ema.safetensors"
    return Checkpoint(
        int(path.name.removeprefix("step-")),
        load_tensors(path / "weights.safetensors"),
        torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        json.loads((path / "state.json").read_text(encoding="utf-8")),
        load_tensors(ema) if ema.exists() else None,
    )


def _steps(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _STEP.fullmatch(path.name))]
    return sorted(entry for entry in found if (entry[1] / "state.json").exists())


class Records:
    """The lines of ``metrics.jsonl``, each on disk as soon as it is written.

    Args:
        path: The file.
        upto: Records of later steps are dropped, and so is a line that was cut short.
    """

    def __init__(self, path: Path, *, upto: int) -> None:
        kept = [line for line in _lines(path) if (entry := _parse(line)) is not None and entry["step"] <= upto]
        write_atomically(path, lambda p: p.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """To the disk itself: a checkpoint must not be newer than what is recorded up to it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the system can (Windows opens no folders)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
