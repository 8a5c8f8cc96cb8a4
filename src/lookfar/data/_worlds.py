"""What stands in the embedded scenes and what they are asked for: a function a world, and the table of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

GRID = 4
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float32)
WHITE, RED = torch.ones(3), COLOURS[0]
MATCHES, MATCHING = (0, 2, 4, 6), 3  # squares of each of four colours, and digits, all in one of these colours


class Plan(NamedTuple):
    """What stands in the cells of scenes; ``(S, K)``: K things a scene."""

    cell: Tensor  # 0 to 15, row by row
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
    """No, two, four and six squares in four colours, in any order, and three digits, all in one of these colours."""
    digit = _of_class(torch.randint(10, (count, MATCHING), generator=generator), labels, generator)
    used = _shuffled(count, len(COLOURS), generator)[:, : len(MATCHES)]
    squares = used.repeat_interleave(torch.tensor(MATCHES), 1)
    label = torch.randint(len(MATCHES), (count,), generator=generator)
    of_digits = used.gather(1, label[:, None]).expand(-1, MATCHING)
    return Plan(
        _cells(count, MATCHING + sum(MATCHES), generator),
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
        plan: Draws what stands in so many scenes, given the classes of the digits.
        classes: Names, index = label.
        question: One or two sentences that say what is to be learned.
        target: Whether each pixel is labelled, ``mask``, or each scene, ``class``.
        cell: Pixels of a cell's side: 16, or 8, the digits' own.
        asking: What asks a question in a scene, in words; empty where no place does.
        sought: What holds its answer.
    """

    plan: Callable[[Tensor, int, torch.Generator], Plan]
    classes: tuple[str, ...]
    question: str
    target: Literal["mask", "class"] = "mask"
    cell: int = 16
    asking: str = ""
    sought: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Of a scene."""
        return self.cell * GRID, self.cell * GRID


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
        "Say how many squares have the colour of the digits. No sum over single cells can tell; comparing cells can.",
        target="class",
        cell=8,
        asking="like-coloured square",
        sought="digit",
    ),
}
