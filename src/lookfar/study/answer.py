"""What the report says in words: the headline with what keeps it honest, what it cannot say, how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lookfar.study.plan import REFERENCES, Plan
from lookfar.study.results import Results
from lookfar.study.rows import Interval, Summary
from lookfar.study.words import counted, duration, join, plus_minus, points, signed, thousands

OVER = "over the network without a block"


@dataclass
class Answer:
    """What a reader takes away.

    Attributes:
        headline: One sentence.
        supports: What belongs to it: cost, control, which differences are not shown.
        troubles: Trials that failed or are not there yet.
    """

    headline: str
    supports: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def answer(results: Results) -> Answer:
    """Answer which block helped, by how much, at what cost; never a winner that the data do not show."""
    troubles = _troubles(results)
    names = short_names([s.candidate for s in results.summaries])
    rows = {s.candidate: s for s in results.summaries}
    baseline, control = rows.get("baseline"), rows.get("control")
    done = [_Gain(names[s.candidate], s, s.difference) for s in rows.values() if s.difference is not None]
    done = sorted((g for g in done if g.row.candidate not in REFERENCES), key=lambda g: -g.by.mean)
    if baseline is None or baseline.miou is None:
        return Answer("Without a finished baseline nothing can be compared.", [], troubles)
    if not done:
        return Answer("No block has a finished trial beside the baseline.", [], troubles)
    if not any(g.by.seed_noise_measured for g in done):
        measured = join([f"{g.name} is at {signed(g.by.mean)} points" for g in done[:3]])
        text = f"Against the baseline {measured} on these images. A verdict needs at least two seeds."
        one = "One seed" if results.plan.seeds == 1 else "One finished seed"
        return Answer(f"{one} shows no winner: seed noise was not measured.", [text], troubles)
    better = [g for g in done if g.row.verdict == "better"]
    found = _gains(better, len(done), baseline, control) if better else _no_gain(done)
    found.troubles = troubles
    return found


def short_names(candidates: Sequence[str]) -> Mapping[str, str]:
    """Names without options and place where that leaves them different; for sentences and labels.

    >>> short_names(["baseline", "nonlocal(mode=gaussian)@layer3"])["nonlocal(mode=gaussian)@layer3"]
    'nonlocal'
    """
    bare = {name: name.partition("(")[0].partition("@")[0] for name in candidates}
    taken = list(bare.values())
    return {name: short if taken.count(short) == 1 else name for name, short in bare.items()}


@dataclass(frozen=True)
class _Gain:
    name: str
    row: Summary
    by: Interval

    @property
    def amount(self) -> str:
        return plus_minus(abs(self.by.mean), self.by.half)


def _gains(better: Sequence[_Gain], compared: int, baseline: Summary, control: Summary | None) -> Answer:
    top = better[0]
    cost = _cost(top.row, baseline)
    found = Answer("")
    if len(better) == 1:
        found.headline = f"{top.name} gains {top.amount} points of mIoU {OVER}{cost and f', for {cost}'}."
    elif len(better) <= 3:
        others = join([f"{g.name} {g.amount}" for g in better[1:]])
        found.headline = f"{top.name} gains {top.amount} points of mIoU {OVER}, {others}."
        found.supports += [f"{top.name} takes {cost}."] if cost else []
    else:
        least, most = min(g.by.mean for g in better), max(g.by.mean for g in better)
        found.headline = (
            f"{len(better)} of {compared} blocks gain {points(least)} to {points(most)} points of mIoU {OVER}."
        )
        found.supports.append(f"The largest gains measured: {join([f'{g.name} {g.amount}' for g in better[:3]])}.")
    if len(better) > 1:
        apart = top.by.low > max(g.by.high for g in better[1:])
        found.supports.append(
            f"The interval of {top.name} lies above those of the others."
            if apart
            else "The intervals of these blocks overlap: this study does not say which of them is best."
        )
    if control is not None and control.difference is not None:
        d = control.difference
        text = (
            f"Convolutions of like size in its place change mIoU by {signed(d.mean, d.half)} ± {points(d.half, d.half)}"
        )
        if top.by.low > d.high:
            found.supports.append(f"{text}: {top.name} brings more than its parameters.")
        else:
            found.supports.append(f"{text}; the intervals overlap, so the gain need not come from attention.")
    off = [
        f"{g.name} falls from {points(g.row.miou.mean)} to {points(g.row.miou_off)} % mIoU"
        for g in better[:2]
        if g.row.miou_off is not None and g.row.miou is not None
    ]
    if off:
        found.supports.append(f"With the block switched off at test time, {join(off)}.")
    return found


def _no_gain(done: Sequence[_Gain]) -> Answer:
    worse = [g for g in done if g.row.verdict == "worse"]
    undecided = [g for g in done if g.row.verdict != "worse"]
    losses = join([f"{g.name} loses {g.amount}" for g in worse[:3]]) if worse else ""
    if not undecided:
        return Answer(f"No block helps: {losses} points of mIoU.")
    half = max(g.by.half for g in undecided)
    seeds = sorted({g.by.seeds for g in undecided})
    which = undecided[0].name if len(undecided) == 1 else f"the {len(undecided)} blocks" if not worse else join(
        [g.name for g in undecided[:3]]
    )  # fmt: skip
    found = Answer(
        f"No difference between {which} and the network without a block can be seen: "
        f"±{points(half, half)} points of mIoU at {join([str(s) for s in seeds])} seeds."
    )
    found.supports += [f"{losses} points."] if losses else []
    found.supports += [f"{g.name}: {g.row.sentence}." for g in undecided[:3] if g.row.sentence]
    return found


def _cost(row: Summary, baseline: Summary) -> str:
    if not row.flops or not baseline.flops or row.flops <= baseline.flops:
        return ""
    return f"{100 * (row.flops / baseline.flops - 1):.2g} % more computation"


def _troubles(results: Results) -> list[str]:
    found = []
    total = len(results.trials)
    failed = [t for t in results.trials if t.status == "failed"]
    missing = [t for t in results.trials if t.status == "missing"]
    if failed:
        found.append(
            f"{len(failed)} of {total} trials failed: {join(list(dict.fromkeys(t.candidate for t in failed)))}."
        )
    if missing:
        found.append(f"{len(missing)} of {total} trials are not finished: this is what is known so far.")
    return found


# ---- around the numbers ------------------------------------------------------------------------------------------


def facts(plan: Plan, device: str) -> list[str]:
    """Data, host, place, steps, seeds, device: the line under the answer."""
    place = f", blocks after {plan.place}" if plan.place not in (None, "place") else ""
    found = [
        plan.data,
        f"host {plan.host}{place}",
        f"{thousands(plan.steps)} steps of {plan.batch_size} images",
        counted(plan.seeds, "seed"),
    ]
    return [*found, device] if device else found


def limits(results: Results) -> list[str]:
    """What the comparison cannot say, one sentence each."""
    plan = results.plan
    blocks = sum(s.difference is not None for s in results.summaries)
    seeds = plan.seeds
    found = [
        "Other data, other hosts, other places in the host and longer training: everything here was trained for "
        f"{thousands(plan.steps)} steps with one setting for all, tuned for none.",
        "How it does on images that nobody has looked at: the validation images judge here, and were seen often.",
        "Why a block helps: maps show where weights lie, not what is made of them. The score with the block switched "
        "off is the better witness.",
        "Time and memory on other machines; other trials may have run beside the one that was timed.",
    ]
    if seeds > 1 and blocks > 1:
        found.insert(
            1,
            f"Certainty: with {blocks} comparisons at 95 % each, {blocks * 0.05:.2g} would be wrong on average. "
            f"An interval from {seeds} seeds assumes that seeds scatter normally.",
        )
    elif seeds == 1:
        found.insert(1, "Whether any difference would survive another seed: there was one.")
    return found


def made(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Machine, data and times as names and texts; unknown entries are shown as they are."""
    data = dict(environment.get("data") or {})
    found: list[tuple[str, str]] = []
    if "train" in data and "val" in data:
        found.append(("data", f"{thousands(data['train'])} images to train on, {thousands(data['val'])} to validate"))
    found += [("", str(line)) for line in data.get("facts") or ()]
    if data.get("size"):
        found.append(("images", f"{' × '.join(map(str, data['size']))} pixels, {data.get('in_chans', 3)} bands"))
    versions = environment.get("versions") or {}
    found += [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))] if versions else []
    shown = {"command", "data", "versions", "parameters"}
    for name, value in environment.items():
        if name in shown or value is None:
            continue
        if name == "seconds":
            name, value = "training time", duration(value)
        found.append((name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)))
    return found
