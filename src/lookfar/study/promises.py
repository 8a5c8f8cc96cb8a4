"""What a block or host of the user's own must keep for a study, asked before the first step, in another process."""

import math
from typing import TYPE_CHECKING

from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan

if TYPE_CHECKING:
    from lookfar.check import Report
    from lookfar.data import Data

# that it is trained, saved and loaded as a whole, that resuming is exact, that images are judged one by one
OF_BLOCKS = ("images", "registered", "reached", "input", "copies", "state", "deterministic")
OF_HOSTS = ("images", "registered", "copies", "state", "deterministic")
# larger maps and images are asked about in smaller ones: in float64, several at a time, on a CPU
POSITIONS, PIXELS = 64 * 64, 256 * 256


def check_block(candidate: Candidate, channels: int, size: tuple[int, ...]) -> str:
    """Ask a block of the user's own what a study needs; a line that says what was found.

    Args:
        candidate: With an address.
        channels: Of the map at its place.
        size: Of that map.

    Raises:
        ValueError: It breaks a promise, or cannot be built.
        FileNotFoundError: Its file is not there.
        TypeError: An option that it does not take.
    """
    from lookfar.check import check_apart

    text = str(Candidate(candidate.name, candidate.options))
    asked = (*OF_BLOCKS, "identity")
    smaller = _within(size, POSITIONS)
    report = check_apart(text, channels, smaller, only=asked)
    if smaller != size and any(row.promise == "runs" for row in report.broken()):  # made for the size of its place
        report = check_apart(text, channels, size, only=asked)
    _refuse_broken(text, report)
    identity = report["identity"].status == "holds"
    enters = (
        "starts as the identity" if identity else "is not the identity: it enters as x + γ(block(x) − x) from γ = 0"
    )
    return f"{text} keeps what a study needs, and {enters}."


def check_host(plan: Plan, data: "Data") -> None:
    """Ask a host of the user's own what a study needs; does nothing for other hosts.

    Raises:
        ValueError: It breaks a promise, or cannot be built.
        FileNotFoundError: Its file is not there.
        TypeError: An option that it does not take.
    """
    from lookfar.blocks._own import split_address
    from lookfar.check import check_apart

    text = str(plan.host)
    if split_address(text):
        size = _within(data.size, PIXELS)
        classes = len(data.classes) if plan.find_task().words.of_class else None  # else its outputs are no classes
        _refuse_broken(text, check_apart(text, data.in_chans, size, only=OF_HOSTS, classes=classes))


def _within(size: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The size, halved until it has no more than so many positions, as long as its sides stay even."""
    while math.prod(size) > most and all(side % 2 == 0 for side in size):
        size = tuple(side // 2 for side in size)
    return size


def _refuse_broken(text: str, report: "Report") -> None:
    broken = report.broken()
    if broken:
        row = broken[0]
        raise ValueError(f"{text} cannot be studied. Broken: {row.title} ({row.outcome.detail})")
