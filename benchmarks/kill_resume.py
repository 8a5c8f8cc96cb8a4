"""Kill a running study with -9 at random moments, start it again each time, and compare with one left in peace.

    python benchmarks/kill_resume.py            twenty kills, about five minutes on two cores

Final weights must be equal bit for bit, and so must ``results.csv`` but for the columns that are measurements of time
and memory (peak memory, seconds). Every other kill takes the study alone: its trials must end by
themselves, and never write beside their successors. Exit status 1 where anything differs.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

MEASURED = {"memory_mb", "block_memory_mb", "seconds"}


def write_plan(path: Path, steps: int) -> Path:
    """A small study whose checkpoints are so frequent that every run gets somewhere."""
    plan = {
        "data": "scenes:lookup", "blocks": ["nonlocal"], "seeds": 1, "steps": steps, "batch_size": 16,
        "log_every": 5, "checkpoint_every": 20, "eval_every": 100, "accelerator": "cpu",
    }  # fmt: skip
    path.write_text(json.dumps(plan))  # YAML reads JSON
    return path


def start(out: Path, plan: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lookfar.cli", "study", str(plan), "--out", str(out)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def state(out: Path) -> str:
    """What there is of a study, in a few words."""
    done = len(list(out.glob("trials/*/*/result.json")))
    newest = [
        max((int(p.name[5:]) for p in trial.glob("step-*")), default=0) for trial in sorted(out.glob("trials/*/*"))
    ]
    return f"{done} done, checkpoints {' '.join(map(str, newest)) or 'none'}"


def trial_processes(out: Path) -> list[int]:
    """Trials of this study that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"lookfar.study.worker" in words and any(w.startswith(os.fsencode(out)) for w in words):
                found.append(int(entry.name))
    return found


def kill(process: "subprocess.Popen[bytes]", out: Path, *, all_of_it: bool) -> None:
    """SIGKILL for the study, and for its trials too where ``all_of_it``."""
    victims = trial_processes(out) if all_of_it else []
    for pid in [process.pid, *victims]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_for_steps(out: Path, process: "subprocess.Popen[bytes]", steps: int) -> None:
    """Return when a trial has taken so many steps in this run, or the run is over."""
    began = time.time()
    first: dict[Path, int] = {}
    while process.poll() is None:
        for path in out.glob("trials/*/*/metrics.jsonl"):
            if path.stat().st_mtime < began:
                continue  # not yet cut back to the checkpoint that this run goes on from
            step = int((re.findall(r'"step": (\d+)', path.read_text()) or [0])[-1])
            if step - first.setdefault(path, step) >= steps:
                return
        time.sleep(0.02)


def results(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


def differences(a: Path, b: Path) -> list[str]:
    found = []
    for one in sorted(a.glob("trials/*/*/final.safetensors")):
        name = one.relative_to(a)
        mine, theirs = load_file(one), load_file(b / name)
        if mine.keys() != theirs.keys() or any(not torch.equal(mine[k], theirs[k]) for k in mine):
            found.append(f"{name} differs")
        log = name.with_name("metrics.jsonl")
        if [_without_time(line) for line in (a / log).open()] != [_without_time(line) for line in (b / log).open()]:
            found.append(f"{log} differs")
    if results(a) != results(b):
        found.append("results.csv differs")
    return found


def _without_time(line: str) -> str:
    head, _, tail = line.partition('"seconds":')
    return head + tail.partition("}")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep the two studies here")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        peace, killed, log = folder / "undisturbed", folder / "killed", folder / "log.txt"
        plan = write_plan(folder / "plan.yaml", args.steps)
        began = time.monotonic()
        if start(peace, plan, log).wait():
            print(log.read_text())
            return 1
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.0f} s; {state(peace)}\n")
        print("kill  of what  after s  still ending  found")
        kills = 0
        while kills < args.kills:
            process = start(killed, plan, log)
            started = time.monotonic()
            # three of four after some steps of a trial, the others while the study starts and checks
            if kills % 4:
                wait_for_steps(killed, process, draw.randrange(0, 60, 5))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.0, 0.5 if kills % 4 else 8.0))
            if process.poll() is not None:
                # nothing was left to kill: take a trial away, so that the next run has work again
                shutil.rmtree(draw.choice(sorted(killed.glob("trials/*/*"))))
                continue
            kills += 1
            alone = kills % 2 == 0
            kill(process, killed, all_of_it=not alone)
            after, left = time.monotonic() - started, len(trial_processes(killed))
            what = "study" if alone else "all"
            print(f"{kills:4d}  {what:7s}  {after:7.1f}  {left:12d}  {state(killed)}", flush=True)
        if start(killed, plan, log).wait():
            print(log.read_text())
            return 1
        orphans = trial_processes(killed)
        found = differences(peace, killed) + [f"process {pid} outlived its study" for pid in orphans]
        print(f"\nat the end: {state(killed)}; {time.monotonic() - began:.0f} s in all")
        print("\n".join(found) or "final weights, metrics and results.csv are equal")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
