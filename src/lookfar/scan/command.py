"""What `lookfar scan` does once its options are parsed, and what it prints."""

import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lookfar._options import Range, check
from lookfar._tables import table
from lookfar.scan.guide import warning
from lookfar.scan.scanning import NOTHING, Row, Scan, scan
from lookfar.study._files import write_json
from lookfar.study.candidates import split_candidates
from lookfar.study.plan import Plan, default_folder, trial_folder
from lookfar.study.words import counted, points, signed


def scan_command(
    trial: Path | None,
    blocks: str,
    *,
    places: str | None,
    seeds: int,
    steps: int,
    out: Path | None,
    as_json: bool,
    host: Mapping[str, Any],
) -> int:
    """Scan, print the table and the study that goes on from it.

    Args:
        trial: Of a baseline, or a study with one; None for a host that is trained first.
        blocks: As a study has them.
        places: With commas between them; None for the plan's.
        seeds: How often each block is drawn and trained.
        steps: Of each block.
        out: Folder for ``scan.json``, and of the study of a host that is trained first.
        as_json: Print JSON.
        host: Entries of the plan of such a host, ``data`` among them; None where they were not given.

    Raises:
        ValueError: Something cannot work; both a trial and a host.
    """
    check("seeds", seeds, Annotated[int, Range(1, 100)])
    check("steps", steps, int)
    given = {name: value for name, value in host.items() if value is not None}
    data = None
    if trial is None:
        trial = _trained(given, out, as_json)
        out = out or trial.parents[2]
    else:
        data = given.pop("data", None)
        if given:
            raise ValueError(f"{next(iter(given))} is that of the trial: leave it out, or the trial")
        if (trial / "study.yaml").is_file():
            trial = trial_folder(trial, "baseline", 0)
    where = [one.strip() for one in (places or "").split(",") if one.strip()]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = scan(trial, split_candidates(blocks), where, seeds=seeds, steps=steps, data=data, say=say)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "scan.json", found.as_json())
    print(json.dumps(found.as_json(), indent=1) if as_json else lines_of(found))
    return 0


def _trained(given: dict[str, Any], out: Path | None, quiet: bool) -> Path:
    """The trial of a host that is trained as the baseline of a study, and not again where that was done."""
    from lookfar.study import run

    if "data" not in given:
        raise ValueError("give the trial of a baseline, or --data: its host is trained first")
    plan = Plan.from_dict({**given, "blocks": (), "controls": (), "seeds": 1}, "the command line")
    folder = default_folder(plan.data) if out is None else out
    run(plan, folder, quiet=quiet)
    return trial_folder(folder, "baseline", 0)


def lines_of(found: Scan) -> str:
    """The table, what it rests on, and what to do next."""
    tried = [row for row in found.rows if row.scores]
    rows: list[list[str | int | float | None]] = [
        [
            row.group,
            row.candidate,
            points(_mean(row)),
            "" if row.candidate == NOTHING else signed(row.gain),
            _seeds(row),
        ]
        for row in tried
    ]
    seeds = max(len(row.scores) for row in tried)
    lines = [
        table(["group", "in the frozen network", found.title, "gain in the scan", "seeds"], rows),
        "",
        f"{counted(found.steps, 'step')} of each block alone, {counted(seeds, 'seed')}, on "
        f"{counted(found.train, 'image')} as they are; judged on {found.val} of {counted(found.of_val, 'image')}.",
        _apart(found, seeds),
        "Gains are those of this scan, of blocks in a network that does not change: no forecast of a training.",
        warning(found.known),
    ]
    lines += [f"{row.candidate} was left out: {row.reason}." for row in found.rows if not row.scores]
    if found.leaders:
        blocks = ",".join(found.leaders)
        end = next(row.group for row in found.rows if row.candidate == NOTHING)
        better = any(row.candidate in found.leaders and row.group < end for row in found.rows)
        why = "Next, the leaders" if better else "No block is better than nothing by more than seeds scatter. The best"
        lines += ["", f"{why} and the control in full trainings:"]
        lines.append(f"  lookfar study {shlex.quote(str(found.study))} --blocks {shlex.quote(blocks)} --seeds 3")
    return "\n".join(lines)


def _apart(found: Scan, seeds: int) -> str:
    if math.isnan(found.least):
        return "One seed tells no candidates apart: all are in one group."
    return (
        f"Means that differ by {points(found.least, found.least)} points or less are in one group: "
        f"{counted(seeds, 'seed')} do not tell them apart."
    )


def _mean(row: Row) -> float:
    return sum(row.scores) / len(row.scores)


def _seeds(row: Row) -> str:
    return "" if row.candidate == NOTHING else ", ".join(points(score) for score in row.scores)
