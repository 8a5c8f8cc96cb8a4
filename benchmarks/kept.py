"""Rows of a measurement: kept as they are measured, and the part of a page that shows them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from blocks import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/speed.md"


def fill(
    name: str,
    wanted: Iterable[tuple[str, ...]],
    *,
    measure: Callable[..., Any],
    line: Callable[[Any], tuple[Any, ...]],
    section: Callable[[list[Any]], str],
    order: Callable[[tuple[str, ...]], Any],
    again: bool = False,
    keep: bool = True,
) -> None:
    """Measure the rows that are missing, print each, and write them all to their file and to docs/speed.md.

    Args:
        name: Of the file, and of the part of the page.
        wanted: Keys of rows.
        measure: A row of a key's parts.
        line: A row as it is printed.
        section: The part of the page.
        order: What rows are sorted by, of their keys.
        again: Also those that are there.
        keep: Whether they are written; else all that is wanted is measured and printed.
    """
    file = ROOT / f"benchmarks/results/{name}-cpu.json"
    found = {tuple(row["key"]): row for row in _stored(file)} if keep else {}
    for key in wanted:
        if key in found and not again:
            continue
        found[key] = {"key": key, **measure(*key)}
        print(*(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in line(found[key])), flush=True)
        if keep:
            rows = [found[one] for one in sorted(found, key=order)]
            head = {"machine": machine("cpu"), "torch": torch.__version__}
            file.write_text(json.dumps({**head, "rows": rows}) + "\n")
            _place(name, section(rows))


def _stored(file: Path) -> Sequence[Any]:
    """Rows of runs before on this machine; none where there is no file."""
    if not file.exists():
        return []
    old = json.loads(file.read_text())
    if (old["machine"], old["torch"]) != (machine("cpu"), torch.__version__):
        raise SystemExit(f"{file} is of {old['machine']}, torch {old['torch']}: move it away to measure here")
    return old["rows"]


def _place(name: str, text: str) -> None:
    """Puts ``text`` into docs/speed.md, between the marks of that name."""
    begin, end = (f"<!-- {name}: {what} -->" for what in ("begin", "end"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
