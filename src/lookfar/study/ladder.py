"""The verdict on a block from what its network scores without parts of it: losses and their intervals.

Losses are paired image by image and, over several seeds, seed by seed. Both noises count as for all differences of a
study: d^2 seed variance / S + e^2 image variance, d and e Dunnett's values for the number of rungs, since all of them
are held against the same network: with Student's values a block whose every rung costs just the margin would be called
cheaper in 8 % of cases, with these in less than 3. The seed variance is that of the paired loss itself: what some rungs
scatter over seeds says nothing of others. Images that belong together count as one; where all are one group, images
are drawn, and every sentence says that it holds there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lookfar.study.comparisons import Comparisons
from lookfar.study.groups import Groups
from lookfar.study.intervals import dunnett
from lookfar.study.measured import Measured, Score, measure, scored_groups
from lookfar.study.rungs import Rung, Verdict, Word, climb
from lookfar.study.told import Told
from lookfar.study.words import points
from lookfar.tasks import Task

RARE = 0.05  # chance of seeing none of what is said to be so rare
CHANGED = 5.0  # per cent of the predictions that a block decides: a rung that changes fewer is equivalent
POWER = 0.84  # standard errors beyond the interval, for four chances of five
MOST_IMAGES = 1_000_000  # planning looks no further
# degrees of freedom that Dunnett's value is computed for: it costs some time, and changes little among many
_DEGREES = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000)

Facts = Mapping[int, np.ndarray]  # of the samples, by seed


def tell(
    full: Facts,
    without: Mapping[str, Facts],
    score: Score,
    groups: Groups,
    asked: Sequence[str],
    margin: float,
    *,
    higher: bool = True,
    noun: str = "points",
    entropy: float | None = None,
    reason: str = "",
    unlearned: str = "",
) -> Told:
    """The verdict on a block from the facts of its networks' samples.

    Args:
        full: Of the networks as they are.
        without: Of the same networks on a rung, by kind; seeds that lack one are left out.
        score: ``score(facts, weights (R, samples)) -> (R,)``.
        groups: Which samples belong together.
        asked: The rungs that are fair to the block.
        margin: Losses below it are practically none.
        higher: Whether a higher score is better.
        noun: What losses are counted in.
        entropy: How even its maps are.
        reason: Why maps could not be exchanged.
        unlearned: By :func:`unlearned`; such networks lose nothing on any rung, which says nothing of the block.
    """
    if unlearned:
        return Told(climb([], asked), len(full), noun=noun, entropy=entropy, reason=reason, unlearned=unlearned)
    kinds = [kind for kind in asked if without.get(kind)]
    seeds = [seed for seed in full if kinds and all(seed in without[kind] for kind in kinds)]
    labels, where = _drawn(scored_groups(groups, full, score))
    facts = {("full", i): full[seed] for i, seed in enumerate(seeds)}
    facts |= {(kind, i): without[kind][seed] for kind in kinds for i, seed in enumerate(seeds)}
    measured = measure(facts, score, labels) if seeds else None

    def of(some: Sequence[int]) -> Verdict:
        if measured is None:
            return climb([], asked)
        rungs = []
        for kind in kinds:
            same = all(np.array_equal(full[seeds[i]], without[kind][seeds[i]], equal_nan=True) for i in some)
            unseen = 0 if same else len({*labels})  # all facts the same: not the outcome, but the network is
            rungs.append(_rung(measured, kind, some, len(kinds), margin, len(labels), higher, unseen))
        return climb([rung for rung in rungs if rung is not None], asked)

    numbers = range(len(seeds))
    by_seed: tuple[Word, ...] = tuple(of([i]).word for i in numbers if len(seeds) > 1)
    return Told(of(numbers), len(seeds), by_seed, where, noun, entropy, reason)


def unlearned(task: Task, full: Facts) -> str:
    """Why networks cannot be asked what they need: they do no better than one that has learned nothing; else empty."""
    facts = list(full.values())
    least = task.blind(facts[0]) if facts else None
    if least is None:
        return ""
    mean = float(np.mean([task.score(of, np.ones((1, len(of))))[0] for of in facts]))
    if math.isnan(mean) or (mean > least if task.higher else mean < least):
        return ""
    who, words = "the network does" if len(facts) == 1 else f"its {len(facts)} networks do", task.words
    return f"{who} not beat {words.blind} ({points(least)}{words.unit} {words.score})"


def tell_changes(
    counts: Mapping[str, np.ndarray],
    groups: Groups,
    asked: Sequence[str],
    margin: float,
    *,
    entropy: float | None = None,
    reason: str = "",
    adds: bool = True,
) -> Told:
    """The verdict without labels, from how many predictions change: it says nothing of use or merit.

    Args:
        counts: By kind ``(images, 3)`` of one network: predictions, changed ones, those of them that ``off`` changes.
        groups: Which images belong together.
        asked: The rungs that are fair to the block.
        margin: ``off`` is equivalent where it changes less, in per cent of all predictions; the other rungs where they
            change less than ``CHANGED`` per cent of the number that ``off`` does.
        entropy: How even its maps are.
        reason: Why maps could not be exchanged.
        adds: Whether the block adds anything at all to its input in any of the images.
    """
    kinds, (labels, where) = [kind for kind in asked if kind in counts], _drawn(groups)
    if "off" in counts and not counts["off"][:, 1].any():  # which the others are shares of
        asked = kinds = [kind for kind in kinds if kind == "off"]
    if "off" not in counts:  # nothing to hold the others against
        return Told(climb([], asked), 1, (), where, "% of the predictions", entropy, reason, labels=False)
    rungs = []
    for kind in kinds:
        whole = counts["off"][:, 0 if kind == "off" else 1]
        facts = {("full", 0): np.stack([0 * whole, whole], 1), (kind, 0): np.stack([counts[kind][:, 1], whole], 1)}
        measured, of_kind = measure(facts, _share, labels), margin if kind == "off" else CHANGED
        # of a whole image that is predicted at once; a map that stays as it is says more than one outcome
        outcomes = adds and counts[kind][:, 0].max() == 1
        unseen = len({label for label, any_there in zip(labels, whole > 0) if any_there}) if outcomes else 0
        rungs.append(_rung(measured, kind, [0], len(kinds), of_kind, len(labels), higher=False, unseen=unseen))
    verdict = climb([replace(rung, low=max(rung.low, 0.0)) for rung in rungs if rung is not None], asked)
    return Told(verdict, 1, (), where, "% of the predictions", entropy, reason, labels=False)


def _drawn(groups: Groups) -> tuple[Sequence[str], str]:
    """What is drawn, a label a sample, and where the verdict holds: images by themselves where all are one group."""
    if groups.number > 1:
        return groups.labels, ""
    where = f"on this one {groups.noun}"
    return groups.labels if groups.noun == "image" else [*map(str, range(len(groups.labels)))], where


def _share(facts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    part, whole = (weights @ facts).T
    return np.divide(100 * part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _rung(
    measured: Measured,
    kind: str,
    seeds: Sequence[int],
    rungs: int,
    margin: float,
    images: int,
    higher: bool,
    unseen: int = 0,
) -> Rung | None:
    """The loss on one rung over some of the seeds; None where there is no score.

    What is right in so many images whether or not (``unseen``; 0 where nothing else can be) has shown no noise, which
    is not to have none: up to 3 in so many may be otherwise, and none of these be seen, once in 20 times.
    """
    pair = [name for name in ("full", kind) if name in measured.candidates]
    at = np.ix_([measured.row(name) for name in pair], [*seeds])
    of_pair = replace(measured, candidates=tuple(pair), scores=measured.scores[at], draws=measured.draws[at])
    comparisons = Comparisons(of_pair, "full", 1, higher=higher)
    d = comparisons.difference(kind)
    if d is None:
        return None
    of_seeds = d.seed_variance / d.seeds if d.seeds > 1 else 0.0
    of_images = 0.0 if math.isnan(d.sample_variance) else d.sample_variance
    by_seeds = dunnett(rungs, _fewer(d.degrees)) if of_seeds else 0.0
    by_images = dunnett(rungs, _fewer(comparisons.sample_degrees)) if of_images else 0.0
    half = math.sqrt(by_seeds**2 * of_seeds + by_images**2 * of_images)
    if d.seeds == 1 and d.groups < 2:
        half = math.nan  # one network on one image: nothing is known of the noise
    loss = 0.0 - d.gain
    if half == 0 and unseen and d.groups > 1:
        half = 100 * (1 - RARE ** (1 / unseen))
        wanted = math.log(RARE) / math.log1p(-margin / 100) if 0 < margin < 100 else math.inf
        needed = math.ceil(images / unseen * wanted) if wanted <= MOST_IMAGES else None
        return Rung(kind, loss, max(loss - half, -100.0), min(loss + half, 100.0), margin, needed)
    if half == 0 and loss:  # the same image several times
        half = math.nan
    parts = (by_seeds + POWER) ** 2 * of_seeds, (by_images + POWER) ** 2 * of_images
    return Rung(kind, loss, loss - half, loss + half, margin, _images_needed(loss, margin, *parts, images))


def _fewer(degrees: float) -> float:
    """So many degrees of freedom, or a few less: of a short list where there are many."""
    return max((few for few in _DEGREES if few <= degrees), default=degrees)


def _images_needed(loss: float, margin: float, of_seeds: float, of_images: float, images: int) -> int | None:
    """How many images would decide a rung in four cases of five, were the loss what was measured; None: no number."""
    room = max(loss, margin - loss) ** 2 - of_seeds
    if room <= 0 or not of_images:
        return None
    wanted = images * of_images / room
    return math.ceil(wanted) if wanted <= MOST_IMAGES else None
