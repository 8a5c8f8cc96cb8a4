"""Rows of a measurement: kept as they are measured, the part of a page that shows them, and the command."""

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from blocks import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/speed.md"


def command(doc: str | None, only: str) -> argparse.ArgumentParser:
    """The options of all, which ``only`` says what is chosen by."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"{only}, divided by commas")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    return parser


def fill_by_block(name: str, doc: str | None, blocks: Sequence[str], **how: Any) -> None:
    """The command of a measurement with one row a block, on one thread; see :func:`fill`."""
    parser = command(doc, "blocks")
    parser.add_argument("--dry", action="store_true", help="print alone, write nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = args.only.split(",") if args.only else blocks
    fill(name, [(block,) for block in chosen], again=args.again, keep=not args.dry, **how)


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int, timed: Callable[[Callable[[], Any]], float]) -> Any:
    """What ``timed`` says of each call, one number a round, every second round the other way round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in reversed(calls) if number % 2 else calls:
            found[name].append(timed(calls[name]))
    return found


def fill(
    name: str,
    wanted: Iterable[tuple[str, ...]],
    *,
    measure: Callable[..., Any],
    line: Callable[[Any], tuple[Any, ...]],
    section: Callable[[list[Any]], str],
    order: Callable[[tuple[str, ...]], Any] = lambda key: key,
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
    found = {tuple(row["key"]): row for row in stored(file)} if keep else {}
    for key in wanted:
        if key in found and found[key]["machine"] == machine("cpu") and not again:
            continue
        found[key] = {"key": key, "machine": machine("cpu"), **measure(*key)}
        print(*(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in line(found[key])), flush=True)
        if keep:
            rows = [found[one] for one in sorted(found, key=order)]
            file.write_text(json.dumps({"torch": torch.__version__, "rows": rows}) + "\n")
            place(PAGE, name, section(rows))


def stored(file: Path) -> Sequence[Any]:
    """Rows of runs before with this version of torch; none where there is no file."""
    if not file.exists():
        return []
    old = json.loads(file.read_text())
    if old["torch"] != torch.__version__:
        raise SystemExit(f"{file} is of torch {old['torch']}: move it away to measure here")
    return old["rows"]


def machines(rows: Sequence[Any]) -> str:
    """What the rows were measured on."""
    return " and ".join(sorted({row["machine"] for row in rows}))


def place(page: Path, name: str, text: str) -> None:
    """Puts ``text`` into a page, between the marks of that name."""
    begin, end = (f"<!-- {name}: {what} -->" for what in ("begin", "end"))
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
