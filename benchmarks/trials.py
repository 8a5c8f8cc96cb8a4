"""What a trial of a study spends its time on: the network, or what stands around it.

    python benchmarks/trials.py [--steps 100]

Trials as `lookfar study` runs them, on one thread, in this process: of `scenes:lookup` with its own small host, and of
a folder of photos with masks (made for the occasion, PNG of 480x360 read at 240x180) with a ResNet-18. Seconds are
those of the processor, so that other programs hardly count. Writes benchmarks/results/trials-cpu.md.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from lookfar._tables import markdown_table
from lookfar.data import Data
from lookfar.study import Plan, ablations, worker
from lookfar.study.plan import trial_folder
from lookfar.study.progress import Board, make_console
from lookfar.study.single import prepare_once
from lookfar.training import loop

PHOTOS, PIXELS, SIZE = {"train": 64, "val": 16}, (360, 480), (180, 240)
FULL = {"scenes:lookup": 1000, "photos": 2000}  # what a study takes by itself
BLOCKS = ("squeeze_excitation", "nonlocal")
IMPORTS = (
    "from lookfar.study.worker import import_fabric; import_fabric(); import lookfar.study.build, lookfar.training"
)


class Watch:
    """Seconds of the processor by name; what is timed inside something else does not count for that."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._running, self._since = ["other"], time.process_time()

    def switch(self, running: list[str]) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._running, self._since = running, now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = self._running
            self.switch([*before, name])
            self.calls[name] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(before)

        return call

    def on(self, name: str, owner: object, attribute: str) -> Any:
        return mock.patch.object(owner, attribute, self.timed(name, getattr(owner, attribute)))


def starting() -> float:
    """Seconds until a new process has imported what a trial needs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_photos(root: Path) -> Path:
    """Photos as noisy as a camera's, so that PNG has work to do, with masks of three classes."""
    draw = np.random.default_rng(0)
    for split, number in PHOTOS.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for n in range(number):
            mask = np.add.outer(np.arange(PIXELS[0]), np.arange(PIXELS[1])) // 100 % 3
            image = np.clip(60 * mask[..., None] + draw.normal(80, 10, (*PIXELS, 3)), 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / f"{n}.png")
            Image.fromarray(mask.astype(np.uint8)).save(root / split / "masks" / f"{n}.png")
    return root


def measure(plan: Plan, folder: Path) -> list[tuple[str, Watch]]:
    """Every trial of a plan, and what its seconds went to."""
    plan = prepare_once(plan, folder, Board(make_console()))
    found = []
    for candidate, seed in plan.trials:
        watch = Watch()
        with ExitStack() as patches:
            for name, owner, attribute in (
                ("data", Data, "batch"),
                ("network", loop._Run, "_take_step"),
                ("judging", loop._Run, "_judge"),
                ("block", ablations, "ablate"),
            ):
                patches.enter_context(watch.on(name, owner, attribute))
            worker.run_trial(trial_folder(folder, candidate, seed))
        watch.switch([])
        found.append((candidate, watch))
    return found


def row(label: str, steps: int, full: int, imports: float, watch: Watch) -> tuple[str | float, ...]:
    """A trial of ``steps`` steps as it was measured, and shares of one of ``full`` steps."""
    seconds, passes = watch.seconds, max(watch.calls["judging"], 1)
    a_step, reading = seconds["network"] / steps, seconds["data"] / steps
    a_pass, once = seconds["judging"] / passes, imports + seconds["other"]
    judged = full // 250  # passes over the validation images
    whole = full * (a_step + reading) + judged * a_pass + seconds["block"] + once
    shares = [100 * part / whole for part in (full * a_step, full * reading, judged * a_pass, seconds["block"], once)]
    return (label, full, whole, 1e3 * a_step, 1e3 * reading, *(f"{share:.1f}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a trial of a study spends its time on")
    parser.add_argument("--steps", type=int, default=100, help="of each trial (default: %(default)s)")
    steps = parser.parse_args().steps
    worker.import_fabric()
    imports, rows = starting(), []
    with tempfile.TemporaryDirectory() as name:
        photos = make_photos(Path(name) / "photos")
        plans = {
            "scenes:lookup": Plan("scenes:lookup", BLOCKS, controls=(), steps=steps, seeds=1, accelerator="cpu"),
            "photos": Plan(
                str(photos), BLOCKS, controls=(), steps=steps, seeds=1, accelerator="cpu", size=SIZE, host="resnet18"
            ),
        }
        for data, plan in plans.items():
            for candidate, watch in measure(plan, Path(name) / "runs" / data.replace(":", "-")):
                rows.append(row(f"{data}, {candidate}", steps, FULL[data], imports, watch))
                print(*rows[-1], flush=True)
    headers = [
        "trial",
        "steps",
        "s",
        "network, ms",
        "data, ms",
        "network %",
        "data %",
        "judging %",
        "block %",
        "once %",
    ]
    (Path(__file__).parent / "results" / "trials-cpu.md").write_text(
        "# What a trial spends its time on\n\n"
        f"`python benchmarks/trials.py`: torch {torch.__version__}, one thread, seconds of the processor; "
        f"`scenes:lookup` on the host `small`, and {PHOTOS['train']} PNG photos of {PIXELS[1]}×{PIXELS[0]} read at "
        f"{SIZE[1]}×{SIZE[0]} on a ResNet-18, batches as a study takes them. `network` (forward, backward, the "
        f"optimiser) and `data` (reading, augmenting) are of a step, measured over {steps}. The shares are those of a "
        "training of `steps` steps, `s` in all: `judging` scores the validation images every 250 steps, `block` is the "
        "ablations behind the verdict, and `once` is starting Python, building, checkpoints, records, costs and the "
        "samples of the report.\n\n"
        f"{markdown_table(headers, rows)}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
