"""The outcome of asking a promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["holds", "broken", "fact", "not asked"]


@dataclass(frozen=True)
class Outcome:
    """Whether a promise holds, and details in one line.

    Attributes:
        status: ``holds``, ``broken``, ``fact`` (true of the module, no fault) or ``not asked``.
        detail: How it breaks, with numbers; the fact; the reason for not asking.
        fails_strict: A fact that fails where facts are not forgiven: growth, distance from the identity.
    """

    status: Status
    detail: str = ""
    fails_strict: bool = False


@dataclass(frozen=True)
class Row:
    """A promise and its outcome."""

    promise: str
    title: str
    outcome: Outcome


@dataclass(frozen=True)
class Report:
    """All promises of one module.

    Attributes:
        target: The module as it was built.
        channels: Channels of its input.
        size: Spatial size of its input.
        rows: One a promise.
    """

    target: str
    channels: int
    size: tuple[int, ...]
    rows: tuple[Row, ...]

    def __getitem__(self, promise: str) -> Outcome:
        return {row.promise: row.outcome for row in self.rows}[promise]

    def broken(self, *, strict: bool = False) -> list[Row]:
        """The rows that fail the module; with ``strict`` growth and the distance from the identity too."""
        return [r for r in self.rows if r.outcome.status == "broken" or (strict and r.outcome.fails_strict)]

    def to_dict(self, *, strict: bool = False) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "target": self.target,
            "channels": self.channels,
            "size": list(self.size),
            "strict": strict,
            "holds": not self.broken(strict=strict),
            "promises": [
                {"promise": r.promise, "title": r.title, "status": r.outcome.status, "detail": r.outcome.detail}
                for r in self.rows
            ],
        }


def holds(detail: str = "") -> Outcome:
    return Outcome("holds", detail)


def broken(detail: str) -> Outcome:
    return Outcome("broken", detail)


def fact(detail: str, *, fails_strict: bool = False) -> Outcome:
    return Outcome("fact", detail, fails_strict)


def not_asked(reason: str) -> Outcome:
    return Outcome("not asked", reason)


def verdict(faults: Sequence[str], facts: Sequence[str] = (), fine: str = "") -> Outcome:
    """Broken where there are faults, else a fact where there are facts, else the promise holds."""
    if faults:
        return broken("; ".join(faults))
    return fact("; ".join(facts)) if facts else holds(fine)


def percent(ratio: float) -> str:
    """Two digits, and no exponent below a thousandfold.

    >>> percent(0.953), percent(0.0123), percent(25.0)
    ('95 %', '1.2 %', '25-fold')
    """
    if ratio != ratio or ratio in (float("inf"), -float("inf")):
        return "nan or inf"
    if ratio >= 10:
        return f"{ratio:,.0f}-fold".replace(",", " ")
    return f"{100 * ratio:.0f} %" if ratio >= 0.1 else f"{100 * ratio:.2g} %"
