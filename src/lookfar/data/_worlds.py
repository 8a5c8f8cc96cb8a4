"""What stands in the embedded scenes and what they are asked for: a function a world, and the table of them.

Worlds in which a scene has one label were the hard part. What was tried, one to three seeds each, with short scripts
that are not kept, and what it taught (accuracies on new scenes, chance in brackets):

1. A scene has one label where ``cue`` has four thousand: of as many scenes a relation is learned much later. ``match``
   takes 256 scenes a step. What counts is the noise of a step, not how many there are: with ``match`` as it first was,
   64 scenes in 800 steps gave .31, .58, .38 where 256 in 250 steps gave .98, .76, .81 [.2].
2. The host ``small`` sees 31 pixels, 47 with a convolution behind: on 32x32 scenes it sees everything, and no block can
   gain. Hence the host ``patch``, which sees a cell.
3. Pooling is a summary of the scene already, so counting, or saying which class is red, needs no block (``red``). Only
   what is no sum over cells does.
4. A relation between digits costs learning the digits first (how many white digits equal the red one: .19 without a
   block and .22 with a non-local one after 500 steps of 32 [.21]): colours are compared instead.
5. While attention is still even, the gradient of the similarity of i and j is a sixteenth of (value of j - mean value)
   times the gradient at i. What survives the mean over scenes are pairs whose number goes with the label, by their
   covariance: the variance of the number of squares, times the digits. One digit and none to four squares: 2, and
   attention was found in some seeds only (non-local: .96, .95, .53 [.2]). Three digits, none to six: 15, and one of two
   seeds still stayed at .35, with twice the learning rate one of five at .63 [.25]. Five digits, none, three or seven:
   41, and each of ten seeds found it.
6. Each scene has the same numbers of squares, on other colours: who sees the numbers alone has to guess; the digits'
   colour must meet them. Two empty lines keep digits and squares apart: scattered over a grid of 4x4 cells, so that
   most are neighbours, 3x3 convolutions reached .71 [.25], and with one empty line, which sees both sides, .82 [.33].
7. A summary can do it too: it shows the digits' colour to all squares, and the layers behind compare. So ``match``
   tells who looks across the scene from who does not; whether that takes a query it does not say.
8. Three digits in three colours, and how many of them find squares, was no better: global context reached .57 and
   non-local .53 and .67 [.25]. What the mean colours tell of that is learned first, and is where the blocks stayed.
9. ``points``: of as many parameters, attention is 27 points better than layers that see one point at a time
   (``benchmarks/points.py``). The maximum over points is a summary too, but which points are ink only others tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

GRID = 4
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float32)
WHITE, RED = torch.ones(3), COLOURS[0]
MATCHES, MATCHING = (0, 3, 7), 5  # squares of each of three colours, and digits, all in one of these colours
INK_POINTS, CLUTTER = 48, 48  # of a cloud


class Plan(NamedTuple):
    """What stands in the cells of scenes; ``(S, K)``: K things a scene."""

    cell: Tensor  # of the grid, row by row
    digit: Tensor  # index into load_digits(split), -1 is a filled square
    colour: Tensor  # (S, K, 3)
    label: Tensor  # of the pixels of each thing that have ink; (S,) where the scene itself is labelled


def plan_cue(labels: Tensor, count: int, generator: torch.Generator) -> Plan:
    """A red digit, four others of its class, four of other classes."""
    cued = torch.randint(10, (count, 1), generator=generator)
    others = (cued + torch.randint(1, 10, (count, 4), generator=generator)) % 10
    digit = _of_class(torch.cat([cued.expand(-1, 5), others], 1), labels, generator)
    label = torch.tensor([0, 1, 1, 1, 1, 2, 2, 2, 2]).expand(count, -1)
    colour = torch.stack([RED, *[WHITE] * 8]).expand(count, -1, -1)
    return Plan(_cells(count, 9, generator), digit, colour, label)


def plan_lookup(labels: Tensor, count: int, generator: torch.Generator) -> Plan:
    """Four digits in four colours, a square in each of the four."""
    digit = _of_class(torch.randint(10, (count, 4), generator=generator), labels, generator)
    odd = labels[digit].long() % 2
    colour = COLOURS[_shuffled(count, 6, generator)[:, :4]]
    label = 2 - odd
    return Plan(
        _cells(count, 8, generator),
        torch.cat([digit, torch.full_like(digit, -1)], 1),
        torch.cat([colour, colour], 1),
        torch.cat([label, label + 2], 1),
    )


def plan_red(labels: Tensor, count: int, generator: torch.Generator) -> Plan:
    """A red digit and eight white ones; the scene is called what the red one shows."""
    shown = torch.randint(10, (count, 9), generator=generator)
    colour = torch.stack([RED, *[WHITE] * 8]).expand(count, -1, -1)
    return Plan(_cells(count, 9, generator), _of_class(shown, labels, generator), colour, shown[:, 0])


def plan_match(labels: Tensor, count: int, generator: torch.Generator) -> Plan:
    """A line of digits in one of three colours, two empty lines, two of squares: no, three and seven in these colours.

    The line of the digits is any outer one, a row or a column.
    """
    digit = _of_class(torch.randint(10, (count, MATCHING), generator=generator), labels, generator)
    used = _shuffled(count, len(COLOURS), generator)[:, : len(MATCHES)]
    squares = used.repeat_interleave(torch.tensor(MATCHES), 1)
    label = torch.randint(len(MATCHES), (count,), generator=generator)
    of_digits = used.gather(1, label[:, None]).expand(-1, MATCHING)
    side = MATCHING  # of the grid
    far = 3 * side + _shuffled(count, 2 * side, generator)
    cell = torch.cat([torch.arange(side).expand(count, -1), far], 1)
    below, beside = (torch.rand(2, count, 1, generator=generator) < 0.5).unbind()
    cell = torch.where(below, side**2 - 1 - cell, cell)
    return Plan(
        torch.where(beside, cell % side * side + cell // side, cell),
        torch.cat([digit, torch.full_like(squares, -1)], 1),
        COLOURS[torch.cat([of_digits, squares], 1)],
        label,
    )


def _of_class(wanted: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each wanted class the index of a random digit of it."""
    order, counts = labels.argsort(stable=True), labels.bincount(minlength=10)
    first = counts.cumsum(0) - counts
    within = (torch.rand(wanted.shape, generator=generator) * counts[wanted]).long()
    return order[first[wanted] + within]


def _shuffled(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """``rows`` permutations of ``columns`` numbers."""
    return torch.rand(rows, columns, generator=generator).argsort(-1)


def _cells(count: int, things: int, generator: torch.Generator) -> Tensor:
    return _shuffled(count, GRID * GRID, generator)[:, :things]


@dataclass(frozen=True)
class World:
    """A kind of scenes.

    Attributes:
        plan: Draws what stands in so many scenes, given the classes of the digits; None for clouds of points.
        classes: Names, index = label.
        question: One or two sentences that say what is to be learned.
        target: Whether each pixel is labelled, ``mask``, or each scene, ``class``.
        cell: Pixels of a cell's side: 16, or 8, the digits' own.
        grid: Cells of a scene's side.
        asking: What asks a question in a scene, in words; empty where no place does.
        sought: What holds its answer.
    """

    plan: Callable[[Tensor, int, torch.Generator], Plan] | None
    classes: tuple[str, ...]
    question: str
    target: Literal["mask", "class"] = "mask"
    cell: int = 16
    grid: int = GRID
    asking: str = ""
    sought: str = ""

    @property
    def size(self) -> tuple[int, ...]:
        """Of a scene, in pixels, or in points."""
        return (self.cell * self.grid, self.cell * self.grid) if self.plan else (INK_POINTS + CLUTTER,)

    @property
    def things(self) -> str:
        """What a scene is called beside a number of them."""
        return f"scenes of {self.size[0]}×{self.size[1]}" if self.plan else f"clouds of {self.size[0]} points"

    @property
    def bands(self) -> int:
        """Colours of a pixel, or coordinates of a point."""
        return 3 if self.plan else 2


WORLDS = {
    "cue": World(
        plan_cue,
        ("background", "same", "different"),
        "Label each white digit as showing the same class as the red one or a different one. "
        "A summary of the whole scene solves it; a neighbourhood does not.",
        asking="white digit",
        sought="red digit",
    ),
    "lookup": World(
        plan_lookup,
        ("background", "digit odd", "digit even", "square odd", "square even"),
        "Label each filled square by the parity of the like-coloured digit elsewhere. "
        "Only attention that depends on the query can solve it.",
        asking="filled square",
        sought="like-coloured digit",
    ),
    "red": World(
        plan_red,
        tuple("0123456789"),
        "Name the red digit among nine. Each cell can say it for itself, and pooling hears it: no block is needed.",
        target="class",
    ),
    "match": World(
        plan_match,
        tuple(f"{squares} squares" for squares in MATCHES),
        "Say how many squares have the colour of the digits. Neither single cells nor a neighbourhood can tell; "
        "comparing cells can.",
        target="class",
        cell=8,
        grid=MATCHING,
        asking="like-coloured square",
        sought="digit",
    ),
    "points": World(
        None,
        tuple("0123456789"),
        "Name the digit that half of the points show; the others lie anywhere. No point knows by itself which it is.",
        target="class",
    ),
}
