"""What was found in files, judged: what cannot be used, what does not fit together, what would be learned wrongly."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from lookfar.data._base import IGNORE, Samples
from lookfar.data._reading import bands_fit, mask_words, read_mask
from lookfar.data._stored import turned_size
from lookfar.data._values import Wanted
from lookfar.data._words import counted, cut, fitted, listed, name_of, shorten, shown
from lookfar.data.labels import Labels
from lookfar.data.scan import File, Found, Head, Pair, describe_mask, reason

F = TypeVar("F", bound=File)

BRIGHTER = 2.0  # a val image so much brighter than train is on another scale, and would be white
WHITE = 65535.0  # the largest number of 16 bits
OUTLIER = 1000.0  # a largest value so far beyond the others makes all others black


# ---- files that cannot be used -----------------------------------------------------------------------------------


def check_matched(unmatched: Sequence[Path], sets: Mapping[str, Sequence[Pair]], skip_bad: bool) -> None:
    """Every file has a partner, or most have one and the user does without the others."""
    alone, pairs = _alone_names(unmatched), sum(map(len, sets.values()))
    if alone and not skip_bad:
        cure = "An image and its mask have the same name up to the suffix; correct them, or give --skip-bad to go on "
        raise ValueError(
            fitted(
                lambda room: f"{counted(alone, 'file')} without a partner: {listed(alone, room)}. {cure}without these"
            )
        )
    if len(alone) > 2 * pairs:
        raise ValueError(
            fitted(
                lambda room: (
                    f"--skip-bad would leave out {counted(alone, 'file')} without a partner beside "
                    f"{counted(pairs, 'pair')}: {listed(alone, room)}. Correct the names"
                )
            )
        )


def _alone_names(unmatched: Sequence[Path]) -> list[str]:
    return [f"{shown(path.parent.name)}/{name_of(path)}" for path in unmatched]


def check_not_empty(sets: Mapping[str, Sequence[File]], name: str, what: str = "images with masks") -> None:
    if not all(sets.values()):
        counts = " and ".join(f"{len(pairs)} in {split}" for split, pairs in sets.items())
        raise ValueError(f"{cut(shown(name), 60)}: {what} are {counts}; want one of each")


def leave_out(
    unmatched: Sequence[Path], sets: Mapping[str, Sequence[F]], bad: Mapping[F, str], skip_bad: bool
) -> list[str]:
    """Lines on what is left out; raises where the user did not ask for that, or would lose half of the data."""
    alone, errors = _alone_names(unmatched), list(bad.values())
    if bad and not skip_bad:
        raise ValueError(
            fitted(
                lambda room: (
                    f"{counted(errors, 'file')} cannot be used: {listed(errors, room)}. "
                    "Repair or remove them, or give --skip-bad to go on without them"
                )
            )
        )
    left = [bad[pair] for pair in sets["train"] if pair in bad]
    if 2 * len(left) > len(sets["train"]):
        raise ValueError(
            fitted(
                lambda room: (
                    f"--skip-bad would leave out {len(left)} of the {len(sets['train'])} images of train: "
                    f"{listed(left, room)}. Repair them"
                )
            )
        )
    lines = [f"skipped {counted(alone, 'file')} without a partner: {shorten(alone)}."] if alone else []
    if bad:
        lines.append(f"skipped {counted(errors, 'file')} that cannot be used: {shorten(errors)}.")
    return lines


def look_alone(path: Path) -> Found:
    """What a mask without an image holds."""
    try:
        return Found(**describe_mask(read_mask(path)))
    except Exception as error:
        return Found(error=reason(error))


def check_lost(
    labels: Labels, lost: Sequence[Found], kept: Collection[Found], present: Mapping[int, int], wanted: Wanted
) -> None:
    """What was left out may have held the only examples of a class."""
    held = set(count_labels(labels, lost)) - {IGNORE}
    names = list(wanted.names or ())
    gone = [names[label] if label < len(names) else f"class {label}" for label in sorted(held - set(present))]
    if wanted.known is None:
        seen = {value for result in kept for value in result.values} | {IGNORE, *wanted.ignore}
        gone += [f"class {value}" for value in sorted({v for result in lost for v in result.values} - seen)]
    if gone:
        raise ValueError(f"--skip-bad would leave out all images in train of {listed(gone, 90)}. Repair the files")
    learned = len(set(present) - {IGNORE})
    unread = any(result.error and not result.values for result in lost)
    if unread and wanted.known is not None and 2 * learned <= wanted.known:
        raise ValueError(
            f"--skip-bad would train on {learned} of {wanted.known} classes. Repair the files, or remove them if these "
            "are all the classes there should be"
        )


# ---- EXIF --------------------------------------------------------------------------------------------------------


def choose_turns(found: Mapping[Pair, Found], exif: str | None) -> set[Pair]:
    """The pairs to turn upright by their EXIF orientation: where mask and image fit only then, or where asked to."""
    upright, unclear = set(), []
    for pair, result in found.items():
        if result.error or (result.turn == 1 and result.mask_turn == 1):
            continue
        stored = result.size == result.mask_size
        turned = turned_size(result.size, result.turn) == turned_size(result.mask_size, result.mask_turn)
        alike = result.turn == result.mask_turn  # either way the mask lies on its image
        if turned and (not stored or exif == "apply" or (alike and exif is None)):
            upright.add(pair)
        elif turned and exif is None:
            unclear.append(name_of(pair.image))
    if unclear:
        raise ValueError(
            fitted(
                lambda room: (
                    f"{counted(unclear, 'image')} to be turned by EXIF, with masks that fit both ways: "
                    f"{listed(unclear, room)}. Were the masks drawn on the turned images? Give --exif apply; "
                    "else --exif ignore"
                )
            )
        )
    return upright


def turn_lines(found: Mapping[Pair, Found], upright: Collection[Pair]) -> list[str]:
    left = sum(pair not in upright for pair, result in found.items() if result.turn != 1 or result.mask_turn != 1)
    lines = [f"{counted(len(upright), 'image')} turned upright by EXIF."] if upright else []
    return [*lines, f"{counted(left, 'image')} not turned by EXIF: the masks fit as stored."] if left else lines


def upright_size(result: Found, upright: bool) -> tuple[int, int]:
    return turned_size(result.size, result.turn) if upright else result.size


def why_apart(pair: Pair, result: Found, upright: bool) -> str:
    """Why image and mask do not fit; empty where they do."""
    if upright or result.error or result.size == result.mask_size:
        return ""
    image, mask = (f"{height}×{width}" for height, width in (result.size, result.mask_size))
    return f"{name_of(pair.image)} (image {image}, mask {mask})"


# ---- images ------------------------------------------------------------------------------------------------------


def check_bands(found: Mapping[F, Head], in_chans: int) -> None:
    wrong = [pair for pair, result in found.items() if not bands_fit(result.mode, result.bands, in_chans)]
    if not wrong:
        return
    bands = sorted({result.bands for result in found.values()})
    cure = f"give --in-chans {bands[0]}" if len(bands) == 1 else "want one number of bands in all images"
    names = [name_of(pair.image) for pair in wrong]
    counts = " or ".join(map(str, sorted({found[pair].bands for pair in wrong})))
    raise ValueError(
        fitted(
            lambda room: (
                f"{counted(wrong, 'file')} with {counts} bands, {in_chans} asked for ({listed(names, room)}): {cure}"
            )
        )
    )


def choose_peak(
    found: Mapping[F, Head], sets: Mapping[str, Sequence[F]], white: float | None = None
) -> tuple[float, list[str]]:
    """What becomes 255, and a line on it where images are not 8-bit; raises where one scale cannot serve all."""
    depths: dict[str, list[F]] = {}
    for pair, result in found.items():
        depths.setdefault(result.depth, []).append(pair)
    if len(depths) > 1:
        examples = [
            f"{depth} ({counted(pairs, 'file')}: {cut(name_of(pairs[0].image), 30)})" for depth, pairs in depths.items()
        ]
        raise ValueError(f"images are {' and '.join(examples[:3])}: want one kind of numbers in all")
    if "8-bit" in depths:
        return 255.0, []
    if white == WHITE and "16-bit" not in depths:
        raise ValueError(
            f"images hold {next(iter(depths))} numbers, and nothing says which is white: want 8 or 16 bits"
        )
    if white is not None:
        return white, []
    largest = max(sets["train"], key=lambda pair: found[pair].peak)
    peak = found[largest].peak or 1.0
    usual = median(found[pair].peak for pair in sets["train"]) or peak
    if peak > OUTLIER * usual:
        raise ValueError(
            f"{cut(name_of(largest.image), 40)} reaches {peak:g}, most images {usual:g}: beside it all others would be "
            "black. Is it a mark for missing data? Replace it, or leave the file out"
        )
    for split, pairs in sets.items():
        brightest = max(pairs, key=lambda pair: found[pair].peak)
        if found[brightest].peak > BRIGHTER * peak:
            raise ValueError(
                f"{cut(name_of(brightest.image), 40)} in {split} reaches {found[brightest].peak:g}, train only "
                f"{peak:g}: it would be white. Bring all images to one scale"
            )
    lines = [f"images are not 8-bit: 0 to {peak:g}, the largest value in train, becomes 0 to 255."]
    if peak > 16 * usual:
        lines.append(f"most images are dark: they reach {usual:g}, {cut(name_of(largest.image), 40)} {peak:g}.")
    return peak, lines


def choose_size(sizes: Sequence[tuple[int, int]], size: tuple[int, int] | None) -> tuple[tuple[int, int], list[str]]:
    """The size asked for, else the one that all images have, else a typical one; and a line when images change."""
    distinct = set(sizes)
    if size is None and len(distinct) == 1:
        return sizes[0], []
    note = "" if size else " (the median; --size changes it)"
    height, width = size or (max(32, round(median(side) / 32) * 32) for side in zip(*sizes))
    if distinct == {(height, width)}:
        return (height, width), []
    before = f"images of {len(distinct)} sizes" if len(distinct) > 1 else f"images of {sizes[0][0]}×{sizes[0][1]}"
    line = f"{before} resized to {height}×{width}, height × width{note}."
    worst = max(max(r, 1 / r) for r in ((h / w) * (width / height) for h, w in distinct))
    if worst > 1.25:
        line += f" Sides change by up to {worst:.2g} against each other."
    return (height, width), [line]


def kinds(found: Collection[Found]) -> str:
    """``images 512×512 RGB, masks 8-bit indexed``."""
    return f"{image_kinds(found)}, masks {' and '.join(sorted({mask_words(f.mask_mode) for f in found}))}"


def image_kinds(found: Collection[Head]) -> str:
    """``images 512×512 RGB``."""
    sizes, modes = {f.size for f in found}, {f.mode for f in found}
    size = "{}×{}".format(*next(iter(sizes))) if len(sizes) == 1 else f"of {len(sizes)} sizes"
    bands = {"L": "grey", "bands": f"of {max(f.bands for f in found)} bands", "I": "16-bit grey", "F": "float grey"}
    words = sorted({bands.get(mode.partition(";")[0], mode) for mode in modes})
    return f"images {size} {' and '.join(words)}"


def find_alike(sets: Mapping[str, Sequence[Pair]], found: Mapping[Pair, Found]) -> list[str]:
    """Lines on images that are in two sets; raises where a whole set judges by images of another."""
    lines = []
    for split, other in (("val", "train"), ("also_val", "train"), ("also_val", "val")):
        pairs, known = sets.get(split, ()), {found[pair].digest: pair for pair in sets[other]}
        same = [(known[found[pair].digest], pair) for pair in pairs if found[pair].digest in known]
        if not same:
            continue
        option = split.replace("_", "-")
        names = [f"{cut(first.name, 30)} = {cut(pair.name, 30)}" for first, pair in same]
        if len(same) == len(pairs):
            raise ValueError(
                f"all {counted(pairs, 'image')} of {option} {'is' if len(pairs) == 1 else 'are'} in {other} too: "
                f"{listed(names, 60)}. Judge by others: another folder or sequence, or a share, --{option} 0.2"
            )
        lines.append(f"{len(same)} of {len(pairs)} images of {option} are in {other} too: {listed(names, 60)}.")
    return lines


# ---- labels ------------------------------------------------------------------------------------------------------


def count_labels(labels: Labels, found: Collection[Found]) -> Counter[int]:
    """Pixels of each label."""
    total: Counter[int] = Counter()
    for result in found:
        total.update(labels.count(result))
    return total


def check_not_void(sets: Mapping[str, Sequence[Pair]], found: Mapping[Pair, Found], wanted: Wanted) -> None:
    """A split whose masks are all 255 says that plainly, before anybody wonders what 255 may be."""
    void = {IGNORE, *wanted.ignore} - {*wanted.labels}
    for split, pairs in sets.items():
        if all(not found[pair].coloured and void.issuperset(found[pair].values) for pair in pairs):
            raise ValueError(_no_labels(split, pairs, found, "ignored"))


def check_labelled(
    present: Mapping[str, Counter[int]],
    sets: Mapping[str, Sequence[Pair]],
    found: Mapping[Pair, Found],
    classes: Sequence[str],
) -> None:
    """Nothing is learned or judged where every pixel is ignored."""
    for split, counts in present.items():
        used = sorted(set(counts) - {IGNORE})
        if not used or (split == "train" and len(used) == 1):
            held = f"only {cut(classes[used[0]], 30)}" if used else "ignored"
            raise ValueError(_no_labels(split, sets[split], found, held))


def _no_labels(split: str, pairs: Sequence[Pair], found: Mapping[Pair, Found], held: str) -> str:
    values = sorted({value for pair in pairs for value in found[pair].values})
    return (
        f"no labels to {'learn' if split == 'train' else 'judge by'}: the masks of {split} "
        f"({counted(pairs, 'file')}: {cut(name_of(pairs[0].mask), 30)}) hold "
        f"{listed([str(value) for value in values], 40)}, {held}"
    )


def check_resized(samples: Mapping[str, Samples], size: tuple[int, int]) -> None:
    """Thin labels can vanish when masks are made smaller."""
    for split, some in samples.items():
        if not any((some[index][1] != IGNORE).any() for index in range(len(some))):
            raise ValueError(
                f"no labels are left in {split} at {size[0]}×{size[1]}: they are too thin for it; give a larger --size"
            )


def find_absent(present: Mapping[str, Counter[int]], classes: Sequence[str]) -> list[str]:
    """Classes that a split never shows: they cannot be learned, or are not judged."""
    lines = []
    for split, counts in present.items():
        if absent := [name for label, name in enumerate(classes) if label not in counts]:
            lines.append(f"never in {split.replace('_', ' ')}: {shorten(absent, 12)}.")
    return lines
