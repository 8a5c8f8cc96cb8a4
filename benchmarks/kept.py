"""Rows of a measurement: kept as they are measured, and the part of a page that shows them."""

import json
from pathlib import Path
from typing import Any

import torch
from blocks import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/speed.md"


def stored(file: Path, device: str = "cpu") -> list[Any]:
    """Rows of runs before on this machine; none where there is no file."""
    if not file.exists():
        return []
    old = json.loads(file.read_text())
    if (old["machine"], old["torch"]) != (machine(device), torch.__version__):
        raise SystemExit(f"{file} is of {old['machine']}, torch {old['torch']}: move it away to measure here")
    return old["rows"]


def store(file: Path, rows: list[Any], device: str = "cpu") -> None:
    file.write_text(json.dumps({"machine": machine(device), "torch": torch.__version__, "rows": rows}) + "\n")


def place(name: str, text: str) -> None:
    """Puts ``text`` into docs/speed.md, between the marks of that name."""
    begin, end = (f"<!-- {name}: {what} -->" for what in ("begin", "end"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
