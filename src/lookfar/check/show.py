"""What ``lookfar check`` prints."""

import json
from collections.abc import Sequence

from lookfar._tables import by_size
from lookfar.blocks._own import split_address
from lookfar.check.apart import check_apart
from lookfar.check.outcome import Report
from lookfar.check.run import check_module
from lookfar.cost import parse_size

_STYLES = {"holds": "green", "broken": "bold red", "fact": "yellow", "not asked": "dim"}


def check_command(
    target: str,
    *,
    channels: int,
    size: str | None,
    options: Sequence[str],
    only: Sequence[str],
    strict: bool,
    as_json: bool,
) -> int:
    """Ask, print the table or one JSON object; 0 where every promise holds, 1 where one is broken."""
    from rich.console import Console

    measured = None if size is None else parse_size(size)
    with Console(stderr=True).status("loading") as status:  # silent when not a terminal
        ask = check_apart if split_address(target) else check_module  # blocks of ours need no process of their own
        report = ask(
            target,
            channels,
            measured,
            options=options,
            only=only,
            progress=lambda title: status.update(f"asking: {title}"),
        )
    if as_json:
        print(json.dumps(report.to_dict(strict=strict), indent=1))
    else:
        print_report(report, strict=strict)
    return 1 if report.broken(strict=strict) else 0


def print_report(report: Report, *, strict: bool = False) -> None:
    """The table: promise, outcome, details; and a sentence with the counts.

    >>> print_report(check_module("squeeze_excitation", 32, only=["images", "sizes"]))
    squeeze_excitation(32) on 32 channels, 16×16
    promise                                         how
    images of a batch do not see each other  holds
    one size after another                   holds  tried 16×16, 12×20, 20×12, 7×5, 19×16, 16×16
    2 promises hold, 0 are broken.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=1000)  # a pipe gets every promise in one line
    failed = {row.promise for row in report.broken(strict=strict)}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("promise", "", "how"):
        table.add_column(header, no_wrap=header != "how")
    for row in report.rows:
        status = row.outcome.status
        word = f"{status}, strict" if row.promise in failed and status != "broken" else status
        table.add_row(
            row.title, Text(word, style=_STYLES["broken" if row.promise in failed else status]), row.outcome.detail
        )
    console.print(f"{report.target} on {report.channels} channels, {by_size(report.size)}", style="bold")
    console.print(table)
    console.print(summary(report, strict=strict))


def summary(report: Report, *, strict: bool = False) -> str:
    """``14 promises hold, 2 are broken, 3 facts, 1 not asked.``"""
    counts = {s: sum(row.outcome.status == s for row in report.rows) for s in _STYLES}
    counts["broken"] = len(report.broken(strict=strict))
    counts["fact"] -= sum(row.outcome.status == "fact" for row in report.broken(strict=strict))
    words = {
        "holds": ("promise holds", "promises hold"),
        "broken": ("is broken", "are broken"),
        "fact": ("fact", "facts"),
        "not asked": ("not asked", "not asked"),
    }
    return ", ".join(f"{n} {words[s][n != 1]}" for s, n in counts.items() if n or s == "broken") + "."
