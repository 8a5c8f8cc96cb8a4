"""How often the intervals and verdicts of a study are right: simulated studies whose truth is known.

    python benchmarks/coverage.py                writes its table into docs/statistics.md, about ten minutes on one core
    python benchmarks/coverage.py --world skew   replaces the rows of one world
    python benchmarks/coverage.py --world right  those of accuracy, where every sample is right or wrong

Every study is judged by lookfar.study itself. Scores are linear in the samples: a run has a noise of its own
(standard deviation 1 in all worlds), a sample one that all runs share in part, and the rest belongs to run and sample
alone. Every block does nothing, so each "better" or "worse" is false; for the power the first block gains 4.

Where samples are right or wrong, the score is accuracy: a sample is right where the same sum, its value, is over a
threshold. Accuracy is given in steps of the gain in it that a run's standard deviation of 1 brings, so that the figures
mean what they mean elsewhere.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from lookfar.study.comparisons import Comparisons, Difference
from lookfar.study.measured import measure

BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
DOCUMENT = Path(__file__).parents[1] / "docs" / "statistics.md"
BLOCKS, SEEDS = (1, 2, 5, 10), (2, 3, 5, 10)
GAIN = 4.0
EASY = 3.0  # how unlike samples are, as it enters a mean
RESAMPLES = 300  # of each simulated study; a real one draws 1000


@dataclass(frozen=True)
class World:
    """What studies are like; standard deviations, a run's own noise is 1.

    Attributes:
        name: As the table calls it.
        samples: Number of validation samples.
        of_block: Noise of candidate and sample, as it enters a candidate's mean.
        of_run: Noise of run and sample, as it enters a run's mean.
        groups: Groups of samples; 0 for none. Then the noise of candidate and sample is the group's.
        unequal: Samples differ in size up to fiftyfold.
        right: Samples are right or wrong, this share of them right; 0 for samples that have values.
        shared: Noise of a seed that all candidates share.
        draw: Of a run's own noise, with variance 1.
        baseline: The baseline's own noise.
        block: The first block's own noise.
        fails: The first block loses 30 in this share of its runs.
        promised: Whether 93.5 % coverage and at most 8.5 % false verdicts a study are asserted.
    """

    name: str
    samples: int = 40
    of_block: float = 0.0
    of_run: float = 0.0
    groups: int = 0
    unequal: bool = False
    right: float = 0.0
    shared: float = 0.0
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = np.random.Generator.standard_normal
    baseline: float = 1.0
    block: float = 1.0
    fails: float = 0.0
    promised: bool = True


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """An exponential from its mean, the long side down: runs that end badly."""
    return 1 - rng.standard_exponential(shape)


WORLDS = (
    World("seed noise alone"),
    World("samples equal to seeds", of_block=1.0),
    World("samples dominate", of_block=4.0),
    World("run and sample interact", of_block=0.5, of_run=2.0),
    World("8 samples", samples=8, of_block=1.0),
    World("samples of unequal size", of_block=1.0, unequal=True),
    World("heavy tails", of_block=0.5, draw=heavy),
    World("skew", of_block=0.5, draw=skewed),
    World("seeds shift all candidates", of_block=0.5, shared=3.0),
    World("5 groups of 8 samples", of_block=1.0, groups=5),
    World("10 groups of 4 samples", of_block=1.0, groups=10),
    World("right or wrong, 100 images", samples=100, of_block=0.5, of_run=0.5, right=0.9),
    World("right or wrong, 100 images in 10 groups", samples=100, of_block=1.0, of_run=0.5, groups=10, right=0.9),
    World("right or wrong, 1000 images", samples=1000, of_block=0.5, of_run=0.5, right=0.9),
    World("right or wrong, 1000 images in 20 groups", samples=1000, of_block=1.0, of_run=0.5, groups=20, right=0.9),
    World("one block 5 times noisier", of_block=0.5, block=5.0),
    World("baseline 2 times noisier", of_block=0.5, baseline=2.0),
    World("baseline 5 times noisier", of_block=0.5, baseline=5.0, promised=False),
    World("one block fails in a tenth of its runs", of_block=0.5, fails=0.1, promised=False),
)


@dataclass(frozen=True)
class Cell:
    """What came out of the studies of one world, number of blocks and number of seeds; shares from 0 to 1.

    Attributes:
        coverage: Of the single interval.
        false: Studies with a false "better" or "worse" somewhere.
        power: A gain of 4 of the first block would have been found.
        half: Median half-width of the simultaneous interval.
    """

    coverage: float
    false: float
    power: float
    half: float


@dataclass
class Count:
    """What is counted of the studies of one cell."""

    covered: list[bool] = field(default_factory=list)
    halves: list[float] = field(default_factory=list)
    false: int = 0
    found: int = 0
    studies: int = 0

    def add(self, differences: Sequence[Difference], truth: Sequence[float]) -> None:
        for d, true in zip(differences, truth):
            self.covered.append(d.single.low <= true <= d.single.high)
            self.halves.append(d.half)
        self.false += any(not d.low <= true <= d.high for d, true in zip(differences, truth))
        self.found += differences[0].low + GAIN > 0  # a gain moves the interval and leaves its width
        self.studies += 1

    def cell(self) -> Cell:
        n = self.studies
        return Cell(float(np.mean(self.covered)), self.false / n, self.found / n, float(np.median(self.halves)))


def simulate(world: World, blocks: Sequence[int], seeds: int, studies: int, *, seed: int = 0) -> list[Cell]:
    """Judge simulated studies, a cell for each number of blocks.

    One study has the largest number of blocks; those with fewer are its first ones with the same baseline and control.

    Args:
        world: What they are like.
        blocks: Numbers of compared blocks; baseline and one control come to them.
        seeds: Of each study.
        studies: How many.
        seed: Of the simulation.
    """
    rng = np.random.default_rng([seed, seeds, *world.name.encode()])
    names = ("baseline", "control", *(f"block {k}" for k in range(max(blocks))))
    counts = [Count() for _ in blocks]
    for _ in range(studies):
        facts, groups, truth = study(world, names, seeds, rng)
        whole = measure(facts, weighted_mean, groups, resamples=RESAMPLES)
        for number, count in zip(blocks, counts):
            some = replace(
                whole,
                candidates=names[: number + 2],
                scores=whole.scores[: number + 2],
                draws=whole.draws[: number + 2],
            )
            judged = Comparisons(some, "baseline", number)
            found = [judged.difference(name) for name in some.candidates[2:]]
            count.add([d for d in found if d is not None], truth)
    return [count.cell() for count in counts]


def study(
    world: World, names: tuple[str, ...], seeds: int, rng: np.random.Generator
) -> tuple[dict[tuple[str, int], np.ndarray], list[int], list[float]]:
    """Facts ``(samples, 2)`` of every trial, values and sizes; groups; the blocks' true differences."""
    C, n = len(names), world.samples
    own = np.ones(C)
    own[0], own[2] = world.baseline, world.block
    runs = own[:, None] * world.draw(rng, (C, seeds)) + world.shared * rng.standard_normal(seeds)
    truth = np.zeros(C - 2)
    if world.fails:
        runs[2] -= 30.0 * (rng.random(seeds) < world.fails)
        truth[0] -= 30.0 * world.fails
    groups = list(range(n))
    if world.groups:
        groups = [i * world.groups // n for i in range(n)]
        of_group = rng.standard_normal((C, world.groups)) * world.of_block * math.sqrt(world.groups)
        by_block = of_group[:, groups]
    else:
        by_block = rng.standard_normal((C, n)) * world.of_block * math.sqrt(n)
    values = runs[..., None] + by_block[:, None] + rng.standard_normal((C, seeds, n)) * world.of_run * math.sqrt(n)
    values += EASY * math.sqrt(n) * rng.standard_normal(n)  # samples are easy or hard for all alike
    if world.right:
        values = right_or_wrong(values, world)
    sizes = np.exp(rng.uniform(0, math.log(50), n)) if world.unequal else np.ones(n)
    both = np.stack([values * sizes, np.broadcast_to(sizes, values.shape)], -1)  # (C, S, samples, 2)
    facts = {(name, s): both[c, s] for c, name in enumerate(names) for s in range(seeds)}
    return facts, groups, truth.tolist()


def right_or_wrong(values: np.ndarray, world: World) -> np.ndarray:
    """Which of the values are over the threshold that leaves the world's share right, in steps of a run's noise.

    Accuracy gains the density at the threshold where all values gain 1; what it is divided by.
    """
    n = values.shape[-1]
    of_block = world.of_block * math.sqrt(world.groups or n)
    spread = math.hypot(1.0, of_block, world.of_run * math.sqrt(n), EASY * math.sqrt(n))
    latent = NormalDist(0.0, spread)
    threshold = latent.inv_cdf(1 - world.right)
    return (values > threshold) / latent.pdf(threshold)


def weighted_mean(facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The score of these worlds."""
    sums = weights @ facts
    return sums[:, 0] / sums[:, 1]


def rows(world: World, studies: int) -> list[str]:
    """Lines of a Markdown table, one a number of seeds."""
    found = []
    for seeds in SEEDS:
        cells = simulate(world, BLOCKS, seeds, studies)
        row = [world.name, str(seeds), f"{100 * min(c.coverage for c in cells):.1f}"]
        row += [f"{100 * c.false:.1f}" for c in cells] + [f"{100 * c.power:.0f}" for c in cells]
        found.append("| " + " | ".join(row) + " |")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=250, help="of each cell (default %(default)s)")
    parser.add_argument("--world", help="only worlds whose names hold this; the other rows stay as they are")
    options = parser.parse_args()
    document = DOCUMENT.read_text(encoding="utf-8")
    before, after = document[: document.index(BEGIN) + len(BEGIN)], document[document.index(END) :]
    lines = document[len(before) : -len(after)].splitlines()
    began = time.perf_counter()
    head = ["world", "seeds", "coverage %", *(f"false, {b}" for b in BLOCKS), *(f"power, {b}" for b in BLOCKS)]
    table = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for world in WORLDS:
        if not options.world or options.world in world.name:
            new = rows(world, options.studies)
            print("\n".join(new), file=sys.stderr, flush=True)
        else:
            new = [line for line in lines if line.startswith(f"| {world.name} |")]
        table += new
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    note = f"{options.studies} studies a cell, each with {RESAMPLES} resamples; `python benchmarks/coverage.py`."
    text = "\n".join(table)
    DOCUMENT.write_text(f"{before}\n{note}\n\n{text}\n{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
