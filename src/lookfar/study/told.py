"""What is said of a verdict, the same on the terminal, in the report and in `inspect`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lookfar.study.rungs import SATURATED, Rung, Verdict, Word
from lookfar.study.words import capital, ends, join, signed, thousands

# what stands in a block's place
PLACES = {
    "off": "no block",
    "uniform": "a plain average",
    "mean": "one map for all queries",
    "other": "another image's map",
}


@dataclass(frozen=True)
class Told:
    """A verdict and what is said about it.

    Attributes:
        verdict: The word and its rungs.
        seeds: How many networks it rests on.
        by_seed: The word for each of several networks alone.
        where: Restricts every sentence, as in ``on this one sequence``; empty where groups of images were drawn.
        noun: What losses are counted in, as in ``points of the score``.
        entropy: How even the maps are, of ln M; None where it is not known.
        reason: Why maps could not be exchanged; empty where they could.
        labels: Whether losses are those of a score; else they are changed predictions.
        unlearned: Why the networks were not asked at all; empty where they were.
    """

    verdict: Verdict
    seeds: int
    by_seed: tuple[Word, ...] = ()
    where: str = ""
    noun: str = "points"
    entropy: float | None = None
    reason: str = ""
    labels: bool = True
    unlearned: str = ""

    @property
    def word(self) -> Word:
        return self.verdict.word

    @property
    def saturated(self) -> bool:
        """Whether nearly all weight of a query lies on one key."""
        return self.entropy is not None and self.entropy < SATURATED

    def __str__(self) -> str:
        return f"{self.word}: {self.why}."

    @property
    def why(self) -> str:
        """What the word means here and rests on, in sentences without the last full stop."""
        return ". ".join(filter(None, [self._meaning(), self._costs(), self._warning(), self._missing()]))

    def _meaning(self) -> str:
        v = self.verdict
        if self.unlearned:
            return f"nothing was learned that a block could be needed for: {self.unlearned}"
        if v.word == "open":
            does = "does as well" if self.labels else "gives the same predictions"
            return f"whether {_undecided(v.open)} {does} is undecided" if v.open else "too little was measured"
        does, within = ("does as well", f", within {v.rung.margin:g}") if v.rung else ("", "")
        if not self.labels:
            return self._changes()
        return {
            "harms": "the network does better without it",
            "off": f"the network {does} without it{within}",
            "pools": f"a plain average of its values {does}{within}",
            "one map": f"one map for all queries of an image {does}{within}",
            "follows the place": f"the map that a query has in another image {does}{within}",
            "depends on its query": "nothing cheaper does as well",
            "on": "the network needs it",
        }[v.word]

    def _changes(self) -> str:
        """What the word means of predictions: nothing of what they are worth."""
        v = self.verdict
        same = "gives the same predictions" + (f" but for less than {v.rung.margin:g} %" if v.rung else "")
        of_off = " of those that no block changes"
        return {
            "off": f"the network {same} without it",
            "pools": f"a plain average of its values {same}{of_off}",
            "one map": f"one map for all queries of an image {same}{of_off}",
            "follows the place": f"the map that a query has in another image {same}{of_off}",
            "depends on its query": "nothing cheaper gives the same predictions",
            "on": "without it predictions change",
        }[v.word]

    def _costs(self) -> str:
        """All rungs from below."""
        rungs = self.verdict.rungs
        if not rungs:
            return ""
        if self.labels:
            listed = ", ".join(f"{PLACES[rung.kind]} {_range(rung)}" for rung in rungs)
            return f"What each costs{self._scope()}, {self.noun}: {listed}"
        off, *others = rungs
        listed = "".join(f", {PLACES[rung.kind]} {_range(rung)}" for rung in others)
        said = f"Predictions that change{self._scope()}, %: {PLACES[off.kind]} {_range(off)}"
        said += f"; in % of as many{listed}" if others else ""
        return f"{said}. Changes say nothing of use: that takes labels"

    def _scope(self) -> str:
        where = f" {self.where}" if self.where else ""
        if self.seeds == 1:
            return f" to this network{where}" if self.labels else where
        words = {*self.by_seed}
        listed = f"each by itself {self.by_seed[0]}" if len(words) == 1 else f"seed by seed: {', '.join(self.by_seed)}"
        alone = "" if words == {self.word} else f" ({listed})"
        return f" over {self.seeds} seeds{alone}{where}"

    def _warning(self) -> str:
        if not self.saturated:
            return ""
        return (
            f"Saturated: entropy {self.entropy:.2f} of ln M, so nearly all weight of a query lies on one key, and such "
            "logits hardly learn; a norm before the block, or a scale, cures that"
        )

    def _missing(self) -> str:
        if self.reason:
            return capital(self.reason)
        missing = [] if self.unlearned else [PLACES[kind] for kind in self.verdict.missing]
        return f"Not measured: {join(missing)}" if missing else ""


def _undecided(rungs: Sequence[Rung]) -> str:
    """``no block or a plain average (about 860 images would decide)``."""
    said = []
    for rung in rungs:
        decide = " images would decide" if not any("images" in one for one in said) else ""
        images = f" (about {thousands(rounded(rung.images))}{decide})" if rung.images else ""
        said.append(f"{PLACES[rung.kind]}{images}")
    return join(said, "or")


def _range(rung: Rung) -> str:
    """``+0.1 [−0.2, +0.4]``."""
    half = rung.high - rung.loss
    found = None if math.isnan(half) else ends(rung.low, rung.high)
    return signed(rung.loss, half) + (f" [{', '.join(found)}]" if found else " [too wide to show]")


def rounded(number: int) -> int:
    """Two digits of a number that is known so well."""
    return int(float(f"{number:.1e}"))
