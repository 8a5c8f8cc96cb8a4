"""How long each network of a study takes for one image, from ``latency.json``: measured alone, after the last trial.

    {"machine": {"processor", "platform", "torch", "device"}, "rounds": 10, "milliseconds": {CANDIDATE: [one a round]}}

Beside running trials a network has read 1.96 to 3.41 ms; so nothing is timed there. :mod:`lookfar.study.afterwards`
writes the file; another machine, or a candidate that is not in it, makes it measure all of them again.
"""

import contextlib
import platform
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lookfar.study._files import read_json, write_json

FILE = "latency.json"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image.

    Attributes:
        ms: Median over the rounds.
        low: The fastest round.
        high: The slowest.
        ratio: Median of its ratio to the baseline in the same round; None without a baseline.
        ratio_low: The lowest ratio.
        ratio_high: The highest.
    """

    ms: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True)
class Latencies:
    """What a folder says of latency.

    Attributes:
        of: By candidate.
        rounds: How often each had its turn.
        device: What it was measured on.
    """

    of: Mapping[str, Latency]
    rounds: int = 0
    device: str = ""

    def __str__(self) -> str:
        """How it was measured, in a sentence."""
        if not self.of:
            return "Latency is measured after the last trial, alone; it has not been yet."
        return (
            "Latency is that of one image, measured alone after the last trial: networks in turn, "
            f"{self.rounds} rounds, medians, on {self.device}; ratios to the baseline of the same round with their "
            "range."
        )


def load_latency(folder: Path) -> Latencies:
    """What ``latency.json`` holds; nothing where it is missing or damaged."""
    try:
        stored = _read(folder)
        times = {name: [float(t) for t in of] for name, of in stored["milliseconds"].items()}
        found = {name: _latency(of, times.get("baseline")) for name, of in times.items()}
        return Latencies(found, int(stored["rounds"]), str(stored["machine"]["device"]))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return Latencies({})


def save_latency(folder: Path, milliseconds: Mapping[str, list[float]], device: str) -> None:
    """Write ``latency.json``."""
    rounds = len(next(iter(milliseconds.values())))
    write_json(folder / FILE, {"machine": machine(device), "rounds": rounds, "milliseconds": dict(milliseconds)})


def is_measured(folder: Path, candidates: Collection[str], device: str) -> bool:
    """Whether all of these have been measured on this machine."""
    try:
        stored = _read(folder)
    except ValueError:
        return False
    known = load_latency(folder).of
    return stored.get("machine") == machine(device) and all(name in known for name in candidates)


def machine(device: str) -> dict[str, str]:
    """What times depend on."""
    return {
        "processor": _processor(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": metadata.version("torch"),
        "device": device,
    }


def device_name(accelerator: str) -> str:
    """What the networks run on, as a reader calls it: one thread of the processor, or a GPU by its name."""
    if accelerator == "cuda":
        import torch

        return torch.cuda.get_device_name()
    processor = _processor()
    return f"one thread of {processor}" if accelerator == "cpu" and processor else accelerator


def _read(folder: Path) -> dict[str, Any]:
    stored = read_json(folder / FILE)
    return stored if isinstance(stored, dict) else {}


def _latency(times: list[float], baseline: list[float] | None) -> Latency:
    found = statistics.median(times), min(times), max(times)
    if baseline is None or len(baseline) != len(times):
        return Latency(*found)
    ratios = [a / b for a, b in zip(times, baseline)]
    return Latency(*found, statistics.median(ratios), min(ratios), max(ratios))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor()
