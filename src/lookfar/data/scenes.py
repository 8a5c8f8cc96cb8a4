"""Embedded data: small colour scenes of real handwritten digits whose labels need information from far away.

A scene is a 4x4 grid of cells of 16x16 pixels, in ``match`` 5x5 of 8x8. In two worlds every pixel has a label, and what
it must be called depends on another cell, so a network that looks at a neighbourhood has to guess:

- ``cue``: nine digits, one of them red. Of the eight others four show the class of the red one and are called ``same``,
  four are ``different``; the red digit counts as background, since its label would need no comparison. One summary of
  the whole scene (which class is red?) solves it for every pixel: context suffices.
- ``lookup``: four digits in four of six colours and four filled squares in the same colours. Digit pixels are odd or
  even; a square has the parity of the digit of its colour. Each square asks a question of its own: attention that
  depends on the query is needed. Counting odd digits in the scene helps a little, and that foothold matters: with
  always two of each, attention was not found in 1000 steps.

In the others the scene has one label:

- ``red``: nine digits, one of them red, which names the scene. A cell knows by itself whether it counts, and pooling
  brings its word to the end: no block is needed.
- ``match``: a line of five digits in one of three colours and, beyond two empty lines, ten squares: no, three and seven
  in these colours. How many squares have the colour of the digits? Neither a sum over single cells can tell nor a
  neighbourhood; attention by query compares, and so do layers behind a block that shows all cells the digits' colour.
  For the host ``patch``.
- ``points``: no picture but a cloud of 96 points in any order, 48 of them on the ink of a digit. Layers that see one
  point at a time cannot know which are. For the host ``points``.

Why they are as they are says ``_worlds.py``.

Digits of the validation scenes never occur in training. The digits are described in NOTICE.md beside this file.
"""

import functools
import math
from importlib.resources import files
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lookfar.data._base import Data, MemorySamples
from lookfar.data._worlds import CLUTTER, INK_POINTS, WORLDS, Plan, World

Split = Literal["train", "val"]

COUNTS: dict[Split, int] = {"train": 6000, "val": 600}
NOISE = 0.05
INK = 4  # of 16: a pixel of this strength belongs to the digit
MARGIN = 1 / 8  # empty rim of a square's cell, of its side


@functools.cache
def load_digits(split: Split) -> tuple[Tensor, Tensor]:
    """Digits of a split: images ``(S, 8, 8)`` with values 0 to 16 and classes ``(S,)``, both uint8.

    Every fifth digit of a class is for validation, so that all writers and classes are in both splits.
    """
    with (files("lookfar.data") / "digits.npz").open("rb") as file, np.load(file) as archive:
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
    rank = torch.empty(len(labels), dtype=torch.long)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        rank[members] = torch.arange(len(members))
    chosen = rank % 5 == 4 if split == "val" else rank % 5 != 4
    return images[chosen], labels[chosen]


def make_scenes(kind: str, split: Split, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes ``(S, 3, H, W)``, or clouds ``(S, 2, N)``, uint8, and their labels; the same for the same arguments.

    Labels are ``(S, H, W)``, uint8, or ``(S,)``, int64, where the scene has one.
    """
    scenes = _make(kind, split, count, seed)
    return scenes.inputs, scenes.targets


def _make(kind: str, split: Split, count: int, seed: int) -> MemorySamples:
    return Scenes(kind, split, count, seed) if WORLDS[kind].plan else Clouds(split, count, seed)


class Scenes(MemorySamples):
    """Scenes of a split; they know where the answer to each of their questions stands.

    Attributes:
        asking: What asks a question, in words; empty where no place does.
        sought: What holds its answer.
    """

    def __init__(self, kind: str, split: Split, count: int, seed: int) -> None:
        world, generator = WORLDS[kind], torch.Generator().manual_seed(seed)
        assert world.plan is not None
        self.plan = world.plan(load_digits(split)[1], count, generator)
        images, masks = _draw(self.plan, load_digits(split)[0], world, generator)
        labels = masks if world.target == "mask" else self.plan.label
        super().__init__(images, labels, [f"{split}_{i:04d}" for i in range(count)])
        self.world, self.asking, self.sought = world, world.asking, world.sought

    def answer(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Which question each pixel asks and to which each holds the answer; None where no place asks.

        Args:
            index: Of a scene.

        Returns:
            Two maps ``(H, W)`` uint8 of whole cells: the answer to a pixel that asks question q > 0 stands where the
            second map is q. 0 asks, or answers, nothing.
        """
        if not self.asking:
            return None
        cell, digit = self.plan.cell[index], self.plan.digit[index]
        things = len(cell)
        maps = torch.zeros(2, self.world.grid**2, 1, self.world.cell, self.world.cell, dtype=torch.uint8)
        if self.plan.label.dim() == 1:  # match: the squares that count ask for the digits
            number = torch.ones(things, dtype=torch.uint8)
            asks = (digit < 0) & (self.plan.colour[index] == self.plan.colour[index, 0]).all(1)
            holds = (digit >= 0) & asks.any()
        elif (digit < 0).any():  # lookup: each asks for the digit of its colour, which stands as far from the end
            number = (torch.arange(things) % (things // 2) + 1).to(torch.uint8)
            asks, holds = digit < 0, digit >= 0
        else:  # cue: all ask for the first
            number = torch.ones(things, dtype=torch.uint8)
            asks, holds = torch.arange(things) > 0, torch.arange(things) == 0
        for of, chosen in zip(maps, (asks, holds)):
            of[cell[chosen]] = number[chosen][:, None, None, None]
        asked, held = _tile(maps)[:, 0]
        return asked, held


class Clouds(MemorySamples):
    """Digits as points: ``(S, 2, N)`` uint8, across and down, in random order, half of them where there is ink."""

    def __init__(self, split: Split, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        images, labels = load_digits(split)
        chosen = torch.randint(len(images), (count,), generator=generator)
        ink, side = images[chosen].flatten(1).float(), images.shape[-1]
        pixel = torch.multinomial(ink, INK_POINTS, replacement=True, generator=generator)
        corner = torch.stack([pixel % side, pixel // side], 1)
        digit = (corner + torch.rand(count, 2, INK_POINTS, generator=generator)) / side
        points = torch.cat([digit, torch.rand(count, 2, CLUTTER, generator=generator)], 2)
        order = torch.rand(count, 1, points.shape[2], generator=generator).argsort(2)
        points = (points * 256).byte().gather(2, order.expand_as(points))
        super().__init__(points, labels[chosen].long(), [f"{split}_{i:04d}" for i in range(count)])

    def picture(self, index: int) -> Tensor:
        """What a report shows of a cloud: ``(1, 64, 64)`` uint8, a pixel a point."""
        across, down = self.inputs[index].long() // 4
        shown = torch.zeros(1, 64, 64, dtype=torch.uint8)
        shown[0, down, across] = 255
        return shown


def _draw(plan: Plan, digits: Tensor, world: World, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    cell, cells = world.cell, world.grid**2
    count, larger, rim = len(plan.cell), cell // digits.shape[-1], round(cell * MARGIN)
    ink = (digits.repeat_interleave(larger, -1).repeat_interleave(larger, -2)).float() / 16
    square = torch.zeros(1, cell, cell)
    square[:, rim : cell - rim, rim : cell - rim] = 1
    stamps = torch.cat([ink, square])  # index -1 is the square
    images = torch.empty(count, 3, *world.size, dtype=torch.uint8)
    masks = torch.empty(count, *world.size, dtype=torch.uint8)
    label = plan.label if plan.label.dim() == 2 else plan.label[:, None].expand(plan.cell.shape)
    for part in torch.arange(count).split(500):  # floats of all scenes at once would be half a gigabyte
        rows = torch.arange(len(part))[:, None]
        stamp = stamps[plan.digit[part]]  # (S, K, cell, cell)
        image = torch.zeros(len(part), cells, 3, cell, cell)
        image[rows, plan.cell[part]] = plan.colour[part][..., None, None] * stamp[:, :, None]
        mask = torch.zeros(len(part), cells, cell, cell, dtype=torch.uint8)
        mask[rows, plan.cell[part]] = ((stamp * 16 >= INK) * label[part][..., None, None]).to(torch.uint8)
        image = _tile(image)
        noisy = image + NOISE * torch.randn(image.shape, generator=generator)
        images[part] = (noisy.clamp(0, 1) * 255).round().to(torch.uint8)
        masks[part] = _tile(mask[:, :, None])[:, 0]
    return images, masks


def _tile(cells: Tensor) -> Tensor:
    """``(S, n n, C, h, h) -> (S, C, n h, n h)``."""
    S, N, C, h, _ = cells.shape
    n = math.isqrt(N)
    return cells.reshape(S, n, n, C, h, h).permute(0, 3, 1, 4, 2, 5).reshape(S, C, n * h, n * h)


def open_scenes(kind: str, name: str) -> Data:
    """The data set ``scenes:KIND``: 6000 scenes for training, 600 for validation, the same for everybody."""
    world = WORLDS[kind]
    train, val = (_make(kind, split, count, seed) for seed, (split, count) in enumerate(COUNTS.items()))
    bands = train.inputs[:1000].float().div(255).transpose(0, 1).flatten(1)
    return Data(
        name=name,
        train=train,
        val=val,
        classes=list(world.classes),
        in_chans=world.bands,
        size=world.size,
        mean=tuple(bands.mean(1).tolist()),
        std=tuple(bands.std(1).tolist()),
        question=world.question,
        target=world.target,
        ordered=world.plan is not None,
        facts=[
            f"{len(train)} train, {len(val)} val {world.things}; {len(world.classes)} classes; "
            f"digits disjoint ({len(load_digits('train')[0])} train, {len(load_digits('val')[0])} val)."
        ],
    )
