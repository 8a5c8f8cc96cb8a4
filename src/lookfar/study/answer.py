"""What the report says in words: the headline with what keeps it honest, what it cannot say, how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lookfar.study.candidates import is_reference, short_name
from lookfar.study.comparisons import Difference
from lookfar.study.judging import ABOUT_THE_GATE, NOTHING
from lookfar.study.prospects import failures_possible
from lookfar.study.results import Results
from lookfar.study.rows import Summary
from lookfar.study.verdicts import Terms
from lookfar.study.words import (
    counted,
    duration,
    join,
    percent,
    plus_minus,
    points,
    signed,
    signed_plus_minus,
    thousands,
)

OVER, AGAINST = "over the network without a block", "against the network without a block"


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
    troubles, about = _troubles(results), list(results.conclusions.sentences)
    names = short_names([s.candidate for s in results.summaries])
    rows = {s.candidate: s for s in results.summaries}
    baseline = rows.get("baseline")
    done = [_Gain(names[s.candidate], s, s.difference) for s in rows.values() if s.difference is not None]
    done = sorted((g for g in done if not is_reference(g.row.candidate)), key=lambda g: -g.by.gain)
    if baseline is None or baseline.score is None:
        return Answer("Without a finished baseline nothing can be compared.", about, troubles)
    if not done:
        return Answer("No block has a finished trial beside the baseline.", about, troubles)
    terms = results.conclusions.terms
    better = [g for g in done if g.row.verdict == "better"]
    seeds = max(g.by.seeds for g in done)
    if better:
        control = rows.get(better[0].row.control or "")
        found = _gains(better, len(done), baseline, terms, control)
        found.supports += _seconded(better[:3], results)
    elif seeds < 3:
        found = _too_few(done, seeds, results.plan.seeds)
    else:
        found = _no_gain(done, terms)
    if about and about[0].startswith(NOTHING):
        # a gain among networks that have learned nothing is none
        found = Answer(about.pop(0), [f"{g.name}: {g.row.sentence}." for g in done[:3]])
    found.supports += about
    if out := [g.name for g in done if g.row.came_in.startswith("never")]:
        found.supports.append(f"{join(out)} never came in: {ABOUT_THE_GATE}.")
    found.troubles = troubles
    return found


def short_names(candidates: Sequence[str]) -> Mapping[str, str]:
    """Names without options and place where that leaves them different; for sentences and labels.

    >>> short_names(["baseline", "nonlocal(mode=gaussian)@layer3"])["nonlocal(mode=gaussian)@layer3"]
    'nonlocal'
    """
    bare = {name: short_name(name) for name in candidates}
    taken = list(bare.values())
    return {name: short if taken.count(short) == 1 else name for name, short in bare.items()}


@dataclass(frozen=True)
class _Gain:
    name: str
    row: Summary
    by: Difference

    @property
    def amount(self) -> str:
        return plus_minus(abs(self.by.mean), self.by.half)


def _gains(better: Sequence[_Gain], compared: int, baseline: Summary, terms: Terms, control: Summary | None) -> Answer:
    top = better[0]
    cost = _cost(top.row, baseline)
    over = OVER if terms.higher else AGAINST
    over = f"{over} {terms.where}" if terms.where else over
    found = Answer("")
    if len(better) == 1:
        found.headline = f"{top.name} {_changes(top.amount, terms)} {over}{cost and f', for {cost}'}."
    elif len(better) <= 3:
        others = join([f"{g.name} {g.amount}" for g in better[1:]])
        found.headline = f"{top.name} {_changes(top.amount, terms)} {over}{cost and f' for {cost}'}; {others}."
    else:
        least, most = min(g.by.gain for g in better), max(g.by.gain for g in better)
        amounts = _changes(f"{points(least)} to {points(most)}", terms, several=True)
        found.headline = f"{len(better)} of {compared} blocks {amounts} {over}."
        found.supports.append(f"The largest gains measured: {join([f'{g.name} {g.amount}' for g in better[:3]])}.")
        found.supports += [f"{top.name} takes {cost}."] if cost else []
    if control is not None and control.verdict == "better" and control.difference is not None:
        gain = _Gain("plain convolutions", control, control.difference)
        found.headline = f"{found.headline.removesuffix('.')}; {gain.name} {gain.amount}."
    found.supports += [f"{g.name} is {g.row.against_control}." for g in better[:3] if g.row.against_control]
    found.supports.append(f"{top.name} {top.row.trained_once}.")
    found.supports += [f"{g.name}: {g.row.off_and_constant}." for g in better[:2] if g.row.off_and_constant]
    return found


def _seconded(better: Sequence[_Gain], results: Results) -> list[str]:
    """What the second set to judge by says of the blocks that are better on the first."""
    if results.also is None:
        return []
    found = [(g.name, results.also.summary(g.row.candidate)) for g in better]
    said = [f"{name} {signed_plus_minus(s.difference.mean, s.difference.half)}" for name, s in found if s.difference]
    return [f"On {results.plan.also_val}, the second set: {join(said)}."] if said else []


def _too_few(done: Sequence[_Gain], seeds: int, planned: int) -> Answer:
    """Fewer than three seeds: numbers, and no winner."""
    if seeds == 2:
        return Answer(
            "Two seeds give a first impression and no verdict.", [f"{g.name}: {g.row.sentence}." for g in done[:3]]
        )
    measured = join([f"{g.name} is at {signed(g.by.mean)} points" for g in done[:3]])
    one = "One seed" if planned == 1 else "One finished seed"
    text = f"Against the baseline {measured} on these images. A verdict needs at least three seeds."
    return Answer(f"{one} shows no winner: seed noise was not measured.", [text])


def _changes(amount: str, terms: Terms, *, several: bool = False) -> str:
    """What a block that helps does to the score: it gains points, or lowers what should be low."""
    s = "" if several else "s"
    return f"gain{s} {amount} points of {terms.score}" if terms.higher else f"lower{s} {terms.score} by {amount}"


def _no_gain(done: Sequence[_Gain], terms: Terms) -> Answer:
    where, margin = terms.where, terms.margin
    worse = [g for g in done if g.row.verdict == "worse"]
    same = [g for g in done if g.row.verdict == "practically the same"]
    left = [g for g in done if g not in worse and g not in same]
    end = f" {where}" if where else ""
    said = [f"{g.name}: {g.row.sentence}." for g in [*left, *same, *worse][:3]]
    if not left and not same:
        verb = "loses" if terms.higher else "adds"
        losses = join([f"{g.name} {verb} {g.amount}" for g in worse[:3]])
        return Answer(f"No block helps{end}: {losses} points of {terms.score}.")
    if not left:
        which = f"{join([g.name for g in same[:3]])}{' and others' if len(same) > 3 else ''}"
        verb = "is" if len(same) == 1 else "are"
        return Answer(
            f"{which} {verb} practically the same as the network without a block{end}: within ±{margin:g} points of "
            f"{terms.score}.",
            said,
        )
    which = left[0].name if len(left) == 1 else f"{len(left)} blocks"
    seeds = join([str(n) for n in sorted({g.by.seeds for g in left})])
    return Answer(f"It is open whether {which} {'helps' if len(left) == 1 else 'help'}{end}, at {seeds} seeds.", said)


def _cost(row: Summary, baseline: Summary) -> str:
    """How much more computation and time it takes, in words; time by the ratio to the baseline in the same round."""
    parts = []
    if row.flops and baseline.flops:
        parts.append(_more(row.flops / baseline.flops, "FLOPs", "fewer"))
    if (latency := row.latency) and latency.ratio:
        within = (latency.ratio_low or latency.ratio) <= 1 <= (latency.ratio_high or latency.ratio)
        parts.append("no measurable change in time" if within else _more(latency.ratio, "time", "less"))
    return join(parts) if parts else ""


def _more(ratio: float, what: str, fewer: str) -> str:
    change = 100 * (ratio - 1)
    return f"no more {what}" if abs(change) < 0.5 else f"{abs(change):.2g} % {'more' if change > 0 else fewer} {what}"


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


def facts(results: Results, device: str) -> list[str]:
    """Data, host, place, steps, seeds, groups of images, device: the line under the answer."""
    plan, groups = results.plan, results.conclusions.groups
    place = f", blocks after {plan.place}" if plan.place not in (None, "place") else ""
    found = [
        plan.data,
        f"host {plan.host}{place}",
        f"{thousands(plan.steps)} steps of {plan.batch_size} images",
        counted(plan.seeds, "seed"),
    ]
    if groups.labels and groups.noun != "image":
        found.append(f"validated on {counted(len(groups.labels), 'image')}, {groups}")
    if plan.score == "original":
        found.append("scored at the size of each file")
    return [*found, device] if device else found


def intervals(results: Results) -> str:
    """What the bars of the comparison hold."""
    seeds = max((s.difference.seeds for s in results.summaries if s.difference), default=0)
    groups = results.conclusions.groups
    if groups.number == 1:
        over = f"over seeds alone: the validation images are one {groups.noun}"
    elif seeds == 1:
        over = "over images alone: one seed says nothing about seed noise"
    else:
        over = "over seeds and images"
    together = " All of this table hold together in 19 of 20 studies." if seeds > 1 else ""
    return f"Bars are 95 % intervals {over}.{together} Small circles are seeds."


def classes_note(results: Results) -> str:
    """What the intervals of single classes hold."""
    groups = results.conclusions.groups
    seeds = max((s.difference.seeds for s in results.summaries if s.difference), default=0)
    count = sum(len(of.differences) for of in results.by_class)
    if seeds < 2:
        return "One seed: seed noise was not measured, and no difference is shown."
    over = f"They are over seeds alone {results.conclusions.terms.where}." if groups.number == 1 else ""
    bold = "Bold ones exclude zero. " if seeds > 2 else ""
    about = f"about {round(0.05 * count)}" if count >= 30 else "one or the other"
    text = f"Each interval holds by itself, not all together: of these {count}, {about} misses the truth by chance"
    text = text.replace("misses", "miss") if count >= 30 else text
    return f"{over} {bold}{text}. They are leads, not verdicts.".strip()


def limits(results: Results) -> list[str]:
    """What the comparison cannot say, one sentence each."""
    plan = results.plan
    seeds = plan.seeds
    found = [
        "Other data, other hosts, other places in the host and longer training: everything here was trained for "
        f"{thousands(plan.steps)} steps with one setting for all, tuned for none.",
        "How it does on images that nobody has looked at: the validation images judge here, and have been seen often.",
        "Why a block helps: maps show where weights lie, not what is made of them. What remains of the "
        "score without them says more.",
        "Time and memory on other machines.",
    ]
    if seeds == 1:
        found.insert(1, "Whether any difference would survive another seed: there was one.")
    else:
        possible = percent(failures_possible(seeds))
        found.insert(
            1,
            f"Whether a block fails now and then: after {seeds} runs without a failure, a failure rate of up to "
            f"{possible} is still possible. An interval from {seeds} seeds assumes that they scatter roughly normally.",
        )
    if plan.score == "resized" and results.task.original and not plan.data.startswith("scenes:"):
        found.append(
            "Scores at the size of the files: masks were resized to what the network sees; --score original brings "
            "predictions to the files' sizes instead."
        )
    groups = results.conclusions.groups
    if groups.number == 1:
        found.insert(
            1, f"Other images: the validation images are one {groups.noun}; what others would give is unknown."
        )
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
    shown = {"command", "data", "versions", "parameters", "paths", "pooled"}
    for name, value in environment.items():
        if name in shown or value is None:
            continue
        if name == "seconds":
            name, value = "training time", duration(value)
        found.append((name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)))
    return found
