"""Which cheaper block would do: a ladder from no block at all up to the block itself, and one word for where it ends.

Each rung takes a block's place at test time, as :func:`lookfar.diagnostics.ablations` does: nothing (``off``), a plain
average of the values (``uniform``), one map for all queries of an image (``mean``), the map that the same query has in
another image (``other``). The ladder is climbed from below, and ends at the first rung that is *equivalent*: the whole
interval of what the block's absence costs lies below a margin. Of any other rung the step above it
is *needed* where the interval lies above zero, and all is open elsewhere. That a loss is not significant makes no rung
equivalent: with few images nothing is significant.

The mean map of a window or a cross is no map that any query of it could have, so such blocks are held against
``other`` alone. This file knows intervals and words; :mod:`lookfar.study.ladder` makes intervals of what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Word = Literal["harms", "off", "pools", "one map", "follows the place", "depends on its query", "on", "open"]

# rung -> the word for a block that ends there, from below
WORDS: dict[str, Word] = {"off": "off", "uniform": "pools", "mean": "one map", "other": "follows the place"}
SATURATED = 0.05  # of ln M: maps less even than this lie on one key, and their logits hardly learn


@dataclass(frozen=True)
class Rung:
    """What a network loses when a block gives way to something cheaper, with its 95 % interval.

    Attributes:
        kind: ``off``, ``uniform``, ``mean`` or ``other``.
        loss: Positive where the block itself does better.
        low: Lower end of the interval; nan where nothing is known of the noise.
        high: Upper end.
        margin: Losses below it are practically none.
        images: About how many images would decide an open rung; None where none would, or none are wanted.
    """

    kind: str
    loss: float
    low: float
    high: float
    margin: float = 0.5
    images: int | None = None

    @property
    def equivalent(self) -> bool:
        """Whether no part of the interval lies above the margin."""
        return self.high <= self.margin

    @property
    def needed(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


@dataclass(frozen=True)
class Verdict:
    """One word for a block, and what it rests on.

    Attributes:
        word: One of ``Word``.
        rungs: From below, those that were measured.
        rung: The one that the block ends at; None for ``depends on its query``, ``on`` and ``open``.
        missing: Rungs that should have been measured, and were not.
    """

    word: Word
    rungs: tuple[Rung, ...]
    rung: Rung | None
    missing: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[Rung, ...]:
        """The rungs that are neither equivalent nor needed."""
        return tuple(rung for rung in self.rungs if not rung.equivalent and not rung.needed)


def rungs_for(block: "nn.Module | str") -> tuple[str, ...]:
    """The rungs that are fair to a block, from below.

    Args:
        block: A module, bare or in an inserted gate; or the name of a registered block.

    >>> rungs_for("nonlocal"), rungs_for("criss_cross"), rungs_for("squeeze_excitation")
    (('off', 'uniform', 'mean', 'other'), ('off', 'other'), ('off',))
    >>> rungs_for("stand_alone")  # in the place of a convolution, and nothing is left without it
    ('other',)
    """
    from lookfar.blocks import block_info
    from lookfar.diagnostics import why_no_maps
    from lookfar.diagnostics.block_ablations import is_layer
    from lookfar.diagnostics.maps import inner_block
    from lookfar.diagnostics.replacing import SEE_BY_PLACE

    if isinstance(block, str):
        info = block_info(block)
        has_maps, layer = info.attends == "weights", info.kind == "layer"
    else:
        has_maps = not why_no_maps(block)
        info, layer = block_info(inner_block(block)) if has_maps else None, is_layer(block)
    asked = ("off",)
    if has_maps and info is not None:
        asked = ("off", "other") if info.family in SEE_BY_PLACE else tuple(WORDS)
    return asked[1:] if layer else asked


def climb(rungs: Sequence[Rung], asked: Sequence[str]) -> Verdict:
    """Find the word.

    Args:
        rungs: What was measured, in any order; others than those asked are left out.
        asked: The rungs that are fair to the block, see :func:`rungs_for`.

    >>> off, mean = Rung("off", 3.1, 2.8, 3.4), Rung("mean", 0.1, -0.1, 0.3)
    >>> climb([off, mean], ["off", "mean"]).word
    'one map'
    >>> climb([off, Rung("mean", 0.4, -0.6, 1.4)], ["off", "mean"]).word
    'open'
    """
    of = {rung.kind: rung for rung in rungs}
    climbed = tuple(of[kind] for kind in WORDS if kind in asked and kind in of)
    missing = tuple(kind for kind in WORDS if kind in asked and kind not in of)

    def ends(word: Word, rung: Rung | None = None) -> Verdict:
        return Verdict(word, climbed, rung, missing)

    if "off" in of and of["off"].high < 0:
        return ends("harms", of["off"])
    for rung in climbed:
        if rung.equivalent:
            return ends(WORDS[rung.kind], rung)
    if missing or not climbed or not all(rung.needed for rung in climbed):
        return ends("open")
    return ends("on" if tuple(asked) == ("off",) else "depends on its query")
