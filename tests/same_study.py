"""Whether two checkouts make the same study, to the bit: weights, what was judged, records, tables.

    python tests/same_study.py ../before .                    # none, control and four blocks, 24 steps each
    python tests/same_study.py ../before . --blocks nonlocal --batch-size 8

A change that should change no number is shown to change none: both run on this machine, one after the other. Nothing of
it is in the suite, since numbers change with processor and torch. What is not compared is time, and what is made of it.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = "nonlocal,global_context,squeeze_excitation,criss_cross"
TIMED = {"seconds", "files", "trained_with", "ms", "ms low", "ms high"}  # of results, records and tables
PROGRAM = "from lookfar.cli import main; main()"


def run(checkout: Path, plan: Path, out: Path) -> None:
    """A study by the code of a checkout."""
    paths = os.pathsep.join([str(checkout.resolve() / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM, "study", str(plan), "--out", str(out), "--workers", "1"]
    print(f"{checkout}: running", flush=True)
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and value of everything that is compared."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            yield name, path.read_bytes()
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                for key in sorted(file):
                    yield f"{name} {key}", (file[key].dtype.str, file[key].shape, file[key].tobytes())
        elif path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            yield name, [{key: value for key, value in record.items() if key not in TIMED} for record in records]
        elif path.name == "result.json":
            for key, value in json.loads(path.read_text(encoding="utf-8")).items():
                if key not in TIMED:
                    yield f"{name} {key}", value
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.DictReader(file)):
                    for key, value in row.items():
                        if key not in TIMED and "time" not in key:
                            yield f"{name} row {number} {key}", value


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two studies, a line each."""
    left, right = dict(contents(a)), dict(contents(b))
    found = [f"only in the first: {name}" for name in left.keys() - right.keys()]
    found += [f"only in the second: {name}" for name in right.keys() - left.keys()]
    return sorted(found + [f"differs: {name}" for name in left.keys() & right.keys() if left[name] != right[name]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether two checkouts make the same study, to the bit.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", default="scenes:lookup")
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lookfar-") as folder:
        plan = Path(folder, "plan.yaml")
        values = {"data": args.data, "blocks": args.blocks, "seeds": 1, "steps": args.steps, "accelerator": "cpu"}
        values |= {"batch_size": args.batch_size, "eval_every": args.steps, "log_every": 4}
        plan.write_text(json.dumps(values), encoding="utf-8")  # which is YAML
        studies = [Path(folder, name) for name in ("before", "after")]
        for checkout, out in zip((args.before, args.after), studies):
            run(checkout, plan, out)
        found = differences(*studies)
        compared = len(dict(contents(studies[0])))
    print(
        "\n".join(
            [*found[:40], f"{len(found)} of {compared} things differ." if found else f"{compared} things, all equal."]
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
