"""What the numbers of a study are called, the same on the terminal, in the report and in Python."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lookfar.study.comparisons import Best, Difference
from lookfar.study.intervals import Interval
from lookfar.study.prospects import Needed, Once, seeds_needed
from lookfar.study.words import ends, percent, plus_minus, points, signed, signed_plus_minus
from lookfar.tasks import Words

SHORT = 0.5  # learning rates that sum up to less may be too little for gates: in ``scenes:match`` .6 is enough
FEW_GROUPS = 4  # up to here the interval of seeds alone is reported beside the whole one

Word = Literal[
    "better", "worse", "practically the same", "open", "first impression", "seed noise not measured"
]  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """What a study's differences are reported in.

    Attributes:
        words: What the score is called.
        higher: Whether more of it is better.
        margin: Differences within ±margin are practically none.
        where: Restricts every sentence, as in ``on this one sequence``; empty where images were drawn again.
    """

    words: Words
    higher: bool = True
    margin: float = 0.5
    where: str = ""

    @property
    def score(self) -> str:
        return self.words.score


@dataclass(frozen=True)
class Verdict:
    """A judgement in a word, in a cell of a table, and in a sentence without its subject."""

    word: Word
    short: str
    sentence: str


def judge(d: Difference, terms: Terms) -> Verdict:
    """What may be said of a difference: better or worse where zero is outside the interval, from three seeds on."""
    where = f" {terms.where}" if terms.where else ""
    if d.seeds == 1:
        return Verdict(
            "seed noise not measured",
            f"not judged: one seed{where}",
            f"{signed(d.mean, d.half)} {terms.score}{where or ' on these images'}; seed noise not measured: at least 3 "
            "seeds for a verdict",
        )
    range_ = f"{_range(d.interval)} {terms.score} at {d.seeds} seeds{where}{_few_groups(d)}"
    if d.seeds == 2:
        return Verdict(
            "first impression",
            f"first impression{where}",
            f"first impression: {signed(d.mean, d.half)} {terms.score}, {range_}; at least 3 seeds for a verdict",
        )
    if d.gains or d.loses:
        word: Word = "better" if d.gains else "worse"
        small = max(abs(d.low), abs(d.high)) <= terms.margin
        return Verdict(
            word,
            f"{word}{where}",
            f"{word} by {plus_minus(abs(d.mean), d.half)} {terms.score} at {d.seeds} seeds{where}{_few_groups(d)}"
            + (f", within the {terms.margin:g} that count as practically the same" if small else ""),
        )
    if max(abs(d.low), abs(d.high)) <= terms.margin:
        return Verdict(
            "practically the same",
            f"practically the same{where}",
            f"practically the same within {terms.margin:g}: {range_}",
        )
    end = planned(d, terms)
    return Verdict("open", f"open: {_range(d.interval, False)}{where}", f"open: {range_}{end and f'; {end}'}")


def planned(d: Difference, terms: Terms) -> str:
    """How many seeds would show the difference, in words; empty where nothing is known of the seeds."""
    needed = seeds_needed(d, terms.margin)
    if needed is None:
        return ""
    size = points(needed.effect)
    if not needed.reachable:
        return f"a difference of {size} cannot be shown with these images, whatever the seeds"
    number = _number(needed, d.seeds + 1)
    if abs(d.mean) >= terms.margin:
        return f"if the {signed(d.mean)} is real, {number} seeds would show it"
    return f"{number} seeds would show a difference of {size}"


def against_control(d: Difference, terms: Terms, control: str) -> str:
    """A block against plain convolutions, ``control`` being how they are called with their size."""
    verdict = judge(d, terms)
    relation = {
        "better": f"better than {control}",
        "worse": f"worse than {control}",
        "practically the same": f"practically the same as {control}",
    }.get(verdict.word, f"not shown to be better than {control}")
    return f"{relation} ({signed_plus_minus(d.mean, d.half)})"


def which_is_best(best: Best, names: Mapping[str, str], terms: Terms) -> str:
    """Which block is best, in one sentence."""
    where = f" {terms.where}" if terms.where else ""
    first = names.get(best.first, best.first)
    if best.shown:
        lead = min(best.leads, key=lambda d: abs(d.mean))
        second = names.get(lead.reference, lead.reference)
        return f"{first} is the best of these{where}: {signed_plus_minus(lead.mean, lead.half)} over {second}."
    likely = [f"{names.get(name, name)} {percent(p)}" for name, p in list(best.probabilities.items())[:3]]
    return f"Which of these is best is open{where}; probability of being the best: {', '.join(likely)}."


def trained_once(o: Once, seeds_done: int) -> str:
    """What to expect of one run, in words."""
    said = f"wins {o.wins} of {o.seeds} seeds, at worst {signed(o.worst)}"
    if not math.isnan(o.probability):
        said += f"; one run with it beats one without with probability {percent(o.probability)}"
    if o.seeds > seeds_done:
        failed = o.seeds - seeds_done
        said += (
            f", its {failed} failed trial{'s' if failed > 1 else ''} counted as {'losses' if failed > 1 else 'a loss'}"
        )
    return said


def off_and_constant(off: float | None, constant: float | None, baseline: float | None, terms: Terms) -> str:
    """What remains without the block, with a constant that leaves the layers behind it their habit, without ever it."""
    if off is None:
        return ""
    value = f"{points(off)}{terms.words.unit}"
    left = f"{value} {terms.score} remain" if terms.higher else f"{terms.score} is {value}"
    said = f"switched off at test time, {left}"
    if constant is not None:
        said += f", {points(constant)} with a constant in its place"
    return said + (f"; the network that never had it reaches {points(baseline)}" if baseline is not None else "")


def _few_groups(d: Difference) -> str:
    if not 1 < d.groups <= FEW_GROUPS or d.seeds_alone is None:
        return ""
    return f" (seeds alone: {_range(d.seeds_alone)})"


def _number(needed: Needed, least: int) -> str:
    """``5 to 14``; a study that left it open needs more seeds than it had."""
    if needed.fewest is None:
        return "more than 1000"
    fewest = max(needed.fewest, least)
    if needed.most is None:
        return f"{fewest} or many more"
    most = max(needed.most, least)
    return f"{fewest} to {most}" if most > fewest else f"about {fewest}"


def _range(interval: Interval, between: bool = True) -> str:
    found = ends(interval.low, interval.high)
    if found is None:
        return "in an interval too wide to show" if between else "too wide to show"
    return f"between {found[0]} and {found[1]}" if between else f"{found[0]} to {found[1]}"
