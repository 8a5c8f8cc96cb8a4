"""Files of a run that survive being killed: checkpoints made visible by one rename, records cut back to them."""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    except OSError as error:
        error.filename = str(path)  # Python does not say which file a disk had no room for
        raise
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


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write numpy arrays as ``.npz``: there in full or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def load_weights(path: Path, network: nn.Module) -> dict[str, Tensor] | None:
    """A state dict for a network; None where the file is missing, damaged, or holds another network's."""
    try:
        state = load_tensors(path)
    except Exception:  # whatever the format's own library raises
        return None
    return state if fits(state, network) else None


def fits(state: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether a state dict has the network's names and shapes, and numbers that it can have."""
    own = network.state_dict()
    same = state.keys() == own.keys() and all(state[key].shape == own[key].shape for key in own)
    return same and first_not_finite(state, network) is None


def first_not_finite(state: Mapping[str, Tensor], network: nn.Module) -> str | None:
    """The name of the first weight that is inf or NaN, or the first buffer that holds NaN: masks may hold inf."""
    weights = {name for name, _ in network.named_parameters()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not (tensor.isfinite() if name in weights else ~tensor.isnan()).all():
            return name
    return None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write ``step-N``, then remove all but the newest ``keep``."""
    path = folder / f"step-{checkpoint.step}"
    temporary = folder / f".{path.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_tensors(checkpoint.weights, temporary / "weights.safetensors")
        if checkpoint.ema is not None:
            save_tensors(checkpoint.ema, temporary / "ema.safetensors")
        whole = io.BytesIO()  # of a full disk, torch.save into a file says `unexpected pos 576 vs 534`
        torch.save(checkpoint.optimizer, whole)
        (temporary / "optimizer.pt").write_bytes(whole.getbuffer())
        (temporary / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        shutil.rmtree(path, ignore_errors=True)  # only ever there when the settings allow a step to be done again
        temporary.rename(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it would stand in the way of what comes after
    _sync(folder)
    for _, old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def newest_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of the newest checkpoint that has a readable one; an empty dict without any."""
    for _, path in reversed(_steps(folder)):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if isinstance(state, dict):
                return state
    return {}


def load_checkpoints(folder: Path, notes: list[str]) -> Iterator[Checkpoint]:
    """The checkpoints of a run, the newest first; what a killed process left half-written is removed.

    Args:
        folder: Of the run.
        notes: Takes a line for each checkpoint that cannot be read.
    """
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)  # several processes may do this at once
    for step, path in reversed(_steps(folder)):
        try:
            yield _load_checkpoint(step, path)
        except Exception as error:  # whatever the formats' own libraries raise
            notes.append(damaged(step, error))


def damaged(step: int, error: Exception) -> str:
    """The remark on a checkpoint that cannot be used."""
    return f"the checkpoint of step {step} is damaged ({type(error).__name__}), an earlier one takes its place"


def _load_checkpoint(step: int, path: Path) -> Checkpoint:
    ema = path / "ema.safetensors"
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["step"] != step:
        raise ValueError(f"state.json is of step {state['step']}")
    return Checkpoint(
        step,
        load_tensors(path / "weights.safetensors"),
        torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        state,
        load_tensors(ema) if ema.exists() else None,
    )


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, which could not be used."""
    for later, path in _steps(folder):
        if later > step:
            shutil.rmtree(path, ignore_errors=True)


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


def last_record(path: Path) -> int:
    """The step of the last line of a ``metrics.jsonl``; 0 without any."""
    return max((entry["step"] for line in _lines(path) if (entry := _parse(line)) is not None), default=0)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


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
