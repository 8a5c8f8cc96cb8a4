"""Who attends to whom: the positions that one query of a small map looks at, found by asking the block itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookfar.blocks._base import BlockInfo, create_block, sample_inputs

HEIGHT, WIDTH = 8, 12  # of the map
QUERY = 3 * WIDTH + 4
CELL, GAP = 20, 2  # pixels
# seen on white and on black alike
MARKED, EMPTY, RING = "#4a72d8", "#9aa0a6", "#f28c1d"


@dataclass(frozen=True)
class Pattern:
    """What a query looks at.

    Attributes:
        marked: Of every position, row by row, whether the query looks at it; empty where keys are no positions.
        keys: Number of keys, pooled or strided, where they are no positions.
        weights: The block gave weights; else positions were changed one by one, and the output was compared.
        same: Another query has the same weights.
    """

    marked: Sequence[bool] = ()
    keys: int = 0
    weights: bool = True
    same: bool = False

    def words(self) -> str:
        """What the picture shows, in one sentence."""
        if not self.marked:
            return f"Every position attends to {self.keys} pooled or strided keys of a {HEIGHT} × {WIDTH} map."
        if not self.weights:
            return "The features of the filled positions change what comes out at the ringed one."
        if self.same:
            return "Every query gives the same weights, to the filled positions; the ringed one is such a query."
        return "The ringed position is the query; it gives weight to the filled positions."

    def characters(self) -> list[str]:
        """The picture for a terminal."""
        marks = ["■" if mark else "·" for mark in self.marked]
        if marks:
            marks[QUERY] = "◎" if self.marked[QUERY] else "○"
        return [" ".join(marks[at : at + WIDTH]) for at in range(0, len(marks), WIDTH)]

    def svg(self) -> str:
        """The picture for a page."""
        full, empty = (self._squares(mark) for mark in (True, False))
        x, y = (CELL * n + CELL / 2 for n in (QUERY % WIDTH, QUERY // WIDTH))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CELL * WIDTH} {CELL * HEIGHT}" '
            f'width="{CELL * WIDTH}" height="{CELL * HEIGHT}">\n'
            f'<path fill="{EMPTY}" fill-opacity=".25" d="{empty}"/>\n'
            f'<path fill="{MARKED}" d="{full}"/>\n'
            f'<circle cx="{x:g}" cy="{y:g}" r="{CELL / 2 - 2 * GAP:g}" fill="none" stroke="{RING}" stroke-width="3"/>\n'
            "</svg>\n"
        )

    def _squares(self, mark: bool) -> str:
        side = CELL - GAP
        places = [divmod(n, WIDTH) for n, marked in enumerate(self.marked) if marked is mark]
        return "".join(f"M{CELL * x + GAP // 2} {CELL * y + GAP // 2}h{side}v{side}h-{side}z" for y, x in places)


def pattern_of(info: BlockInfo) -> Pattern | None:
    """What a query looks at in a block with its default options; None of blocks without positions to look at."""
    if info.kind not in ("context", "layer", "head"):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = create_block(info.name, 16).eval()
        if info.attends != "weights":
            return _reach(module)
        two = module.attention(torch.randn(1, 16, HEIGHT, WIDTH), torch.tensor([QUERY, QUERY + 5]))  # pyright: ignore[reportCallIssue]
    here, there = two.abs().mean(1)[0]
    if len(here) != HEIGHT * WIDTH:
        return Pattern(keys=len(here))
    return Pattern((here > 0).tolist(), same=bool(torch.allclose(here, there, atol=1e-7)))


def _reach(module: nn.Module) -> Pattern | None:
    """The positions whose features change the output at the query, tried one by one; None where no map comes out."""
    module = module.double()
    for parameter in module.parameters():  # behind a factor of zero nothing would reach anything
        parameter.add_(0.3 * torch.randn_like(parameter))
    x, *rest = (t.double() for t in sample_inputs(module, 16, (HEIGHT, WIDTH), batch=1))

    def answer(x: Tensor) -> Tensor | None:
        y = module(x, *rest)
        y = y[0] if isinstance(y, tuple) else y
        return y.flatten(2)[0, :, QUERY] if y.shape[2:] == x.shape[2:] == (HEIGHT, WIDTH) else None

    before = answer(x)
    if before is None:
        return None
    reached = torch.zeros(HEIGHT * WIDTH, dtype=torch.bool)
    for n in range(len(reached)):
        changed = x.clone()
        changed.flatten(2)[:, :, n] += 1  # a view
        after = answer(changed)
        reached[n] = after is not None and not torch.allclose(after, before, rtol=1e-9, atol=1e-12)
    return Pattern(reached.tolist(), weights=False)
