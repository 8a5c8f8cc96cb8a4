"""What cannot be right about the values of masks, and the option that says what was meant."""

from collections.abc import Mapping, Sequence

from lookfar.data._base import IGNORE
from lookfar.data._tally import Tally, keys_of
from lookfar.data._values import MOST_CLASSES, Wanted, colour_word, option_text
from lookfar.data._words import MOST, counted, cut, fitted, listed, name_of, percent
from lookfar.data.scan import Found, Pair

FEW = 4  # classes beside which 255 should be rare
LARGE = 0.2  # a share of 255 that is not void
MIXED = 0.25  # of the masks
SMOOTH = 16  # values from which on a few that hold nearly all pixels show interpolation
OFFERED = 12  # values that a message offers for --labels


def refuse_colours(numbered: Mapping[Pair, Found]) -> None:
    """Masks in colours of unknown meaning; grey that was saved as colour counts as numbers."""
    coloured = {pair: result for pair, result in numbered.items() if result.coloured}
    bright = [pair for pair, result in coloured.items() if any(v != (v & 255) * 0x010101 for v in result.values)]
    if not bright:
        return
    tally = Tally(coloured, True)
    keys = sorted(tally, key=lambda key: -tally[key].pixels)
    offered = [colour_word(key) for key in sorted(keys)] if len(keys) <= 6 else [*map(colour_word, keys[:2]), "..."]
    shares = [f"{colour_word(key)} {percent(tally[key].pixels, tally.total)}" for key in keys]
    others = f" and {len(bright) - 1} more" if len(bright) > 1 else ""

    def write(room: int) -> str:
        return (
            f"{cut(name_of(bright[0].mask), 30)} (a mask in colours: {listed(shares, room)}){others}: give the colour "
            f"of each class in order, --labels '{','.join(offered)}', or lines `name r g b` in classes.txt"
        )

    raise ValueError(fitted(write))


def refuse_palettes(numbered: Mapping[Pair, Found], wanted: Wanted) -> None:
    """Palettes that contradict each other: one colour must have one index in all files, and one index one colour."""
    indices: dict[int, tuple[int, str, str]] = {}
    colours: dict[int, tuple[int, str]] = {}
    conflict = ""
    for pair, result in numbered.items():
        name = cut(name_of(pair.mask), 30)
        for index, colour in zip(result.values, result.colours):
            if index == IGNORE:
                continue
            other, where, palette = indices.setdefault(colour, (index, name, result.palette))
            own = dict(zip(result.values, result.colours))
            if other != index and palette != result.palette and own.get(other) != colour:
                conflict = f"{colour_word(colour)} is {other} in {where} and {index} in {name}"
                break
            before, first = colours.setdefault(index, (colour, name))
            if before != colour and not conflict:
                conflict = f"{index} is {colour_word(before)} in {first} and {colour_word(colour)} in {name}"
        if conflict.startswith("#"):
            break
    if not conflict:
        return
    most = (wanted.known or 1 + max(v for r in numbered.values() for v in r.values if v != IGNORE)) - 1
    offered = [colour_word(colour) for colour in indices]
    text = ",".join(offered if len(offered) <= 4 else [*offered[:2], "..."])
    raise ValueError(
        f"the palettes of the masks differ: {conflict}. Say which colour is which class, in order: --labels '{text}'; "
        f"or that the indices count: {option_text('--labels', range(most + 1))}"
    )


def without_class(tally: Tally, beyond: list[int], labels: Mapping[int, int], wanted: Wanted) -> str:
    """Values without a class, and the cure that fits."""
    limit = f"only {wanted.known or MOST_CLASSES} classes {'given' if wanted.known else 'are possible'}"
    if wanted.labels:
        limit = f"not in {option_text('--labels', wanted.labels)}"
    cure = _cure(tally, beyond, labels, wanted)
    ignored = "".join(f"{tally.line(key)} → ignored. " for key, label in labels.items() if label == IGNORE)
    masks = len({name for key in beyond for name in tally[key].files})
    held = f"{counted(masks, 'mask')} {'holds' if masks == 1 else 'hold'} a class that does not exist. "

    def each(room: int) -> str:
        room //= len(beyond)
        return "".join(f"{tally.line(key)} ({listed(tally[key].files, room)}): {limit}. " for key in beyond)

    def together(room: int) -> str:
        return f"mask values {tally.shares(beyond, room)}: {limit}. {cure}"

    text = fitted(together)
    for before, after in (("", ""), ("", held), (ignored, held)) if len(beyond) <= 3 else ():
        longer = fitted(lambda room: before + each(room) + after + cure)  # noqa: B023
        text = longer if len(longer) <= MOST else text
    return text


def _cure(tally: Tally, beyond: list[int], labels: Mapping[int, int], wanted: Wanted) -> str:
    count = wanted.known
    if count is None or len(beyond) > OFFERED:
        smooth = " Were they resized or smoothed? Make them again without interpolation" if len(beyond) > SMOOTH else ""
        return f"Want the numbers of classes, 0, 1, 2 ...{smooth}."
    ignore = option_text("--ignore", [*wanted.ignore, *beyond])
    if not wanted.labels and not wanted.mapping:
        given = [key for key, label in labels.items() if label != IGNORE]
        every = sorted(key for key in tally if key not in wanted.ignore)
        one_based = list(range(1, count + 1))
        if beyond == [count] and 0 not in given:
            return f"Counted from 1? Give {option_text('--labels', one_based)}."
        if beyond == [count] and not wanted.ignore:
            return (
                f"Is 0 void? Give {option_text('--labels', one_based)} --ignore 0. Else name all {count + 1} classes."
            )
        for values in (every, sorted(given)):
            if len(values) == count:
                return f"Are these the classes, in this order? Give {option_text('--labels', values)}."
    if wanted.labels:
        return f"Correct them, add them to --labels, or give {ignore}."
    return f"Correct them, or give {ignore}."


def refuse_gaps(tally: Tally, used: list[int], wanted: Wanted) -> None:
    """More than half of the numbers up to the largest never occur: they are not numbers of classes."""
    count = used[-1] + 1
    if 2 * (count - len(used)) <= count:
        return
    every = [*used, IGNORE] if IGNORE in tally and IGNORE not in wanted.ignore and IGNORE not in used else used
    every = sorted(every if tally.share([IGNORE] if IGNORE in tally else []) > 0.02 else used)
    cures = (
        [f"Give {option_text('--labels', every)}, the value of each class in order"] if len(every) <= OFFERED else []
    )
    cures += [f"{'' if cures else 'Give '}--classes {count}"] if count <= MOST_CLASSES else []
    cure = ", or ".join(cures) or "Want 0, 1, 2 ..."
    if len(every) == 1:
        cure = "Want two classes, 0 and 1"

    def write(room: int) -> str:
        values = tally.shares(every, room)
        return f"the masks hold {values}: no numbers of classes. {cure}"

    raise ValueError(fitted(write))


def refuse_smoothed(tally: Tally, used: Sequence[int]) -> None:
    """Many values, of which a few hold nearly all pixels: classes with what interpolation made between them."""
    plateaus = [key for key in used if tally[key].pixels >= 0.01 * tally.total]
    plateaus += [IGNORE] if IGNORE in tally and tally.share([IGNORE]) >= 0.01 else []
    if len(used) > SMOOTH and len(plateaus) <= 8 and tally.share(plateaus) > 0.9:
        raise ValueError(
            f"the masks hold {len(used)} values, and {percent(tally.share(plateaus), 1)} of the pixels are "
            f"{listed([str(key) for key in plateaus], 30)} (as in {cut(tally[used[-1]].files[0], 30)}). Resized or "
            f"smoothed? Make them again without interpolation, or give --classes {used[-1] + 1} if these are classes"
        )


def refuse_common_void(tally: Tally, used: list[int], wanted: Wanted) -> None:
    """255 means void; a large share of it beside few classes may be one of them."""
    share = tally.share([IGNORE])
    if len(used) > FEW or share <= LARGE or len(used) < 2:
        return
    values = [*used, IGNORE]
    raise ValueError(
        f"255, which is ignored, is {percent(share, 1)} of the mask pixels ({counted(tally[IGNORE].files, 'file')}: "
        f"{cut(tally[IGNORE].files[0], 30)}) beside {listed([str(v) for v in used], 30)}. If it is a class: "
        f"{option_text('--labels', values)}; if it is void: {option_text('--ignore', [*wanted.ignore, IGNORE])}"
    )


def refuse_two_conventions(numbered: Mapping[Pair, Found], wanted: Wanted) -> None:
    """Some masks of two classes are 0 and 1, others 0 and 255: the foreground of the others would be ignored."""
    kinds: dict[int, list[str]] = {1: [], IGNORE: []}
    for pair, result in numbered.items():
        for value in kinds:
            values = {*keys_of(result, False)} - {*wanted.ignore}
            if value in values and values <= {0, value} and (value == 1 or 0 in values):
                kinds[value].append(name_of(pair.mask))
    if kinds[1] and len(kinds[IGNORE]) >= MIXED * len(numbered):
        raise ValueError(
            f"{counted(kinds[IGNORE], 'mask')} of 0 and 255 ({cut(kinds[IGNORE][0], 30)}) beside {len(kinds[1])} of 0 "
            f"and 1 ({cut(kinds[1][0], 30)}), and 255 is ignored. Write 1 for it, or give "
            f"{option_text('--ignore', [*wanted.ignore, IGNORE])} if it is void"
        )


def nothing_to_tell_apart(tally: Tally, wanted: Wanted) -> str:
    held = sorted(tally)
    classes = [key for key in held if key not in wanted.ignore]
    hint = ""
    if not tally.coloured and IGNORE in classes and len(classes) == 2 and not wanted.labels:
        hint = f". Give the foreground the value 1, or say {option_text('--labels', classes)}: 255 means ignored"

    def write(room: int) -> str:
        values = tally.shares(held, room)
        return f"nothing to tell apart: the masks hold {values}, want two classes{hint}"

    return fitted(write)
