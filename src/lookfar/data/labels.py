"""What the values of masks mean: numbers and colours of files become labels 0, 1, 2 ..., and 255 where ignored.

A value that belongs to no class raises here, with its share, its files and the option that says what it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lookfar.data._base import IGNORE
from lookfar.data._reading import Mask
from lookfar.data._values import MOST_CLASSES, Wanted, colour_of, colour_word, is_colour, option_text
from lookfar.data._words import MOST, counted, cut, fitted, listed, name_of, percent
from lookfar.data.scan import Found, Pair

FEW = 4  # classes beside which 255 should be rare
LARGE = 0.2  # a share of 255 that is not void
MIXED = 0.25  # of the masks
SMOOTH = 16  # values from which on a few that hold nearly all pixels show interpolation
OFFERED = 12  # values that a message offers for --labels


@dataclass(frozen=True)
class Labels:
    """The label of every value: call it with a mask.

    Attributes:
        numbers: Number in a file -> label, ``(65536,)``.
        colours: Colour in a file -> label.
        by_colour: Which kinds of masks are read by colour: ``coloured``, ``indexed``, ``grey``.
    """

    numbers: NDArray
    colours: Mapping[int, int]
    by_colour: frozenset[str] = frozenset()

    def __call__(self, mask: Mask) -> NDArray:
        """``(H, W)`` uint8; 255 is ignored."""
        values = mask.values
        kind = "coloured" if mask.coloured else "grey" if mask.palette is None else "indexed"
        if kind not in self.by_colour:
            return self.numbers[values & 255 if mask.coloured else values]
        if mask.coloured:
            keys = np.array(sorted(self.colours), dtype=np.uint32)
            labels = np.array([self.colours[int(key)] for key in keys], dtype=np.uint8)
            at = np.searchsorted(keys, values).clip(max=len(keys) - 1)
            return np.where(keys[at] == values, labels[at], np.uint8(IGNORE))
        palette = [grey * 0x010101 for grey in range(256)] if mask.palette is None else mask.palette.tolist()
        return np.array([self.colours.get(colour, IGNORE) for colour in palette], dtype=np.uint8)[values]

    def count(self, found: Found) -> dict[int, int]:
        """Pixels of each label in a mask that was looked at, 255 with them."""
        total: dict[int, int] = {}
        by_colour = _kind(found) in self.by_colour
        for key, pixels in zip(_keys(found, by_colour), found.counts):
            label = self.colours.get(key, IGNORE) if by_colour else int(self.numbers[key])
            total[label] = total.get(label, 0) + pixels
        return total


def _kind(found: Found) -> str:
    return "coloured" if found.coloured else "indexed" if found.colours else "grey"


def _keys(found: Found, by_colour: bool) -> Sequence[int]:
    """The values by which a mask is read: its colours or its numbers."""
    if not by_colour:
        return [value & 255 for value in found.values] if found.coloured else found.values
    if found.coloured or found.colours:
        return found.values if found.coloured else found.colours
    return [value * 0x010101 if value < 256 else -1 - value for value in found.values]


@dataclass
class _Use:
    pixels: int = 0
    files: list[str] = field(default_factory=list)


class _Tally(dict[int, _Use]):
    """Value -> how many pixels and which files hold it; colours and numbers apart."""

    def __init__(self, found: Mapping[Pair, Found], by_colour: bool) -> None:
        super().__init__()
        self.total, self.coloured = 0, by_colour
        for pair, result in found.items():
            name = name_of(pair.mask)
            for key, pixels in zip(_keys(result, by_colour), result.counts):
                use = self.setdefault(key, _Use())
                use.pixels += pixels
                self.total += pixels
                if not use.files or use.files[-1] != name:
                    use.files.append(name)

    def word(self, key: int) -> str:
        return colour_word(key) if self.coloured and key >= 0 else str(key if key >= 0 else -1 - key)

    def shares(self, keys: Sequence[int], room: int) -> str:
        """Shares and files, and one that holds the rarest: ``0 (97 %, 8 files), 3 (3 %, 1 file: a.png)``."""
        rarest = min(keys, key=lambda key: self[key].pixels)
        texts = []
        for key in keys:
            share, files = percent(self[key].pixels, self.total), self[key].files
            example = f": {cut(files[0], 24)}" if key == rarest else ""
            texts.append(f"{self.word(key)} ({share}, {counted(files, 'file')}{example})")
        return listed(texts, room)

    def line(self, key: int) -> str:
        return f"mask {'colour' if self.coloured else 'value'} {self.word(key)} in {counted(self[key].files, 'file')}"

    def share(self, keys: Iterable[int]) -> float:
        return sum(self[key].pixels for key in keys) / max(self.total, 1)


def give_meaning(found: Mapping[Pair, Found], wanted: Wanted) -> tuple[Labels, int, list[str]]:
    """Labels of the values, the number of classes, and what is to be said about the masks, one line each.

    Args:
        found: Of every usable pair.
        wanted: What is known of the classes.

    Raises:
        ValueError: Values that belong to no class, or may not be the classes that they seem to be.
    """
    by_colour, lines = _choose_kinds(found, wanted)
    numbered = {pair: result for pair, result in found.items() if _kind(result) not in by_colour}
    coloured = {pair: result for pair, result in found.items() if _kind(result) in by_colour}
    _refuse_colours(numbered)
    if not wanted.labels:
        _check_palettes(numbered, wanted)
    numbers, colours = _Tally(numbered, False), _Tally(coloured, True)
    number_labels = _label_numbers(numbers, wanted)
    colour_labels = _label_colours(coloured, colours, wanted)
    for tally, labels in ((numbers, number_labels), (colours, colour_labels)):
        lines += [f"{tally.line(key)} → ignored." for key in sorted(tally) if labels[key] == IGNORE]
    if (wanted.known or 2) == 2 and not wanted.labels and not wanted.mapping and IGNORE not in wanted.ignore:
        _refuse_two_conventions(numbered, wanted)
    count = wanted.known or _count_classes(numbers, number_labels, wanted, lines)
    used = {label for labels in (number_labels, colour_labels) for label in labels.values()} - {IGNORE}
    if len(used) < 2:
        raise ValueError(_nothing_to_tell_apart(numbers or colours, wanted))
    # all values that have a label, not only those in use: what was left out is asked too
    table = np.full(2**16, IGNORE, dtype=np.uint8)
    for number, label in _number_table(wanted, count).items():
        table[number] = label
    return Labels(table, _colour_table(wanted) | colour_labels, by_colour), count, lines


def _choose_kinds(found: Mapping[Pair, Found], wanted: Wanted) -> tuple[frozenset[str], list[str]]:
    """Which kinds of masks are read by colour, and what is to be said about it."""
    every = frozenset({"coloured", "indexed", "grey"})
    if wanted.labels or wanted.table is None:
        return every if wanted.labels and is_colour(wanted.labels[0]) else frozenset(), []
    known = {*wanted.table, *(colour_of(value) for value in wanted.ignore if is_colour(value))}
    kinds, lines = {"coloured"}, []
    used = {c for f in found.values() for v, c in zip(f.values, f.colours) if v != IGNORE}
    if used:
        if 2 * len(used & known) >= len(used):
            kinds.add("indexed")
        else:
            lines.append(f"the palettes of the masks are not the colours of {wanted.origin}: their indices count.")
    greys = {value for result in found.values() if _kind(result) == "grey" for value in result.values} - {IGNORE}
    numbers = all(v < len(wanted.table) or v in wanted.ignore for v in greys)
    if greys and not numbers and all(value * 0x010101 in known for value in greys):
        kinds.add("grey")
    return frozenset(kinds), lines


def _refuse_colours(numbered: Mapping[Pair, Found]) -> None:
    """Masks in colours of which nobody said what they mean; grey that was saved as colour is numbers."""
    coloured = {pair: result for pair, result in numbered.items() if result.coloured}
    bright = [pair for pair, result in coloured.items() if any(v != (v & 255) * 0x010101 for v in result.values)]
    if not bright:
        return
    tally = _Tally(coloured, True)
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


def _check_palettes(numbered: Mapping[Pair, Found], wanted: Wanted) -> None:
    """One colour must have one index in all files, and one index one colour."""
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


def _number_table(wanted: Wanted, count: int) -> dict[int, int]:
    """Number -> label, of the numbers that have one."""
    if wanted.labels:
        return {} if is_colour(wanted.labels[0]) else {int(v): label for label, v in enumerate(wanted.labels)}
    table = {number: number for number in range(count)} | dict(wanted.mapping)
    return {number: label for number, label in table.items() if number not in wanted.ignore}


def _colour_table(wanted: Wanted) -> dict[int, int]:
    """Colour -> label, of the colours that have one."""
    if wanted.labels:
        colours = [colour_of(value) for value in wanted.labels if is_colour(value)]
    else:
        colours = list(wanted.table or ())
    return {colour: label for label, colour in enumerate(colours)}


def _label_numbers(tally: _Tally, wanted: Wanted) -> dict[int, int]:
    """Number -> label; raises for numbers without one."""
    ignored = {value for value in wanted.ignore if not is_colour(value)}
    if wanted.labels and not is_colour(wanted.labels[0]):
        mapping = {int(value): label for label, value in enumerate(wanted.labels)}
        labels = {key: mapping.get(key, IGNORE if key in ignored or key == IGNORE else -1) for key in tally}
    else:
        labels = {key: IGNORE if key in ignored else wanted.mapping.get(key, key) for key in tally}
    limit = wanted.known or MOST_CLASSES
    beyond = sorted(key for key, label in labels.items() if label != IGNORE and not 0 <= label < limit)
    if beyond and wanted.known is None and len(tally) <= MOST_CLASSES:
        _refuse_gaps(tally, sorted(key for key, label in labels.items() if label != IGNORE), wanted)
    if beyond:
        raise ValueError(_beyond(tally, beyond, labels, wanted))
    return labels


def _beyond(tally: _Tally, beyond: list[int], labels: Mapping[int, int], wanted: Wanted) -> str:
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


def _cure(tally: _Tally, beyond: list[int], labels: Mapping[int, int], wanted: Wanted) -> str:
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


def _label_colours(coloured: Mapping[Pair, Found], tally: _Tally, wanted: Wanted) -> dict[int, int]:
    """Colour -> label; raises for colours without one."""
    if not coloured:
        return {}
    table = _colour_table(wanted)
    ignored = {colour_of(value) for value in wanted.ignore if is_colour(value)}
    ignored |= {value * 0x010101 for value in wanted.ignore if not is_colour(value) and int(value) < 256}
    # index 255 of a palette is void whatever its colour
    void = {c for f in coloured.values() for v, c in zip(f.values, f.colours) if v == IGNORE} - {*table}
    labels = {key: IGNORE if key in ignored | void else table.get(key, -1) for key in tally}
    unknown = sorted((key for key, label in labels.items() if label < 0), key=lambda key: -tally[key].pixels)
    if not unknown:
        return labels
    ignore = option_text("--ignore", [*wanted.ignore, *(tally.word(key) for key in unknown)])
    cure = f"Add it, or leave it out: {ignore}"
    if len(unknown) > 6:
        cure = "Were the masks resized or smoothed? Make them again without interpolation, or add the colours"

    def write(room: int) -> str:
        colours = tally.shares(unknown, room)
        where = "--labels" if wanted.labels else wanted.origin
        return f"mask colour {colours}: none of the {len(table)} in {where}. {cure}"

    raise ValueError(fitted(write))


def _count_classes(tally: _Tally, labels: Mapping[int, int], wanted: Wanted, lines: list[str]) -> int:
    """The number of classes where nobody gave it: one more than the largest number, if the numbers look like it."""
    used = sorted(key for key, label in labels.items() if label != IGNORE)
    if not used:
        return 2
    count = used[-1] + 1
    _refuse_gaps(tally, used, wanted)
    if IGNORE in tally and IGNORE not in wanted.ignore:
        _refuse_common_void(tally, used, wanted)
    plateaus = [key for key in used if tally[key].pixels >= 0.01 * tally.total]
    plateaus += [IGNORE] if IGNORE in tally and tally.share([IGNORE]) >= 0.01 else []
    if len(used) > SMOOTH and len(plateaus) <= 8 and tally.share(plateaus) > 0.9:
        raise ValueError(
            f"the masks hold {len(used)} values, and {percent(tally.share(plateaus), 1)} of the pixels are "
            f"{listed([str(key) for key in plateaus], 30)} (as in {cut(tally[used[-1]].files[0], 30)}). Resized or "
            f"smoothed? Make them again without interpolation, or give --classes {count} if these are classes"
        )
    if missing := [str(number) for number in range(count) if number not in tally]:
        close = f": {option_text('--labels', used)} closes the gap" if len(used) <= OFFERED else ""
        lines.append(f"no mask holds {listed(missing, 60)}{close}.")
    return count


def _refuse_gaps(tally: _Tally, used: list[int], wanted: Wanted) -> None:
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


def _refuse_common_void(tally: _Tally, used: list[int], wanted: Wanted) -> None:
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


def _refuse_two_conventions(numbered: Mapping[Pair, Found], wanted: Wanted) -> None:
    """Some masks of two classes are 0 and 1, others 0 and 255: the foreground of the others would be ignored."""
    kinds: dict[int, list[str]] = {1: [], IGNORE: []}
    for pair, result in numbered.items():
        for value in kinds:
            values = {*_keys(result, False)} - {*wanted.ignore}
            if value in values and values <= {0, value} and (value == 1 or 0 in values):
                kinds[value].append(name_of(pair.mask))
    if kinds[1] and len(kinds[IGNORE]) >= MIXED * len(numbered):
        raise ValueError(
            f"{counted(kinds[IGNORE], 'mask')} of 0 and 255 ({cut(kinds[IGNORE][0], 30)}) beside {len(kinds[1])} of 0 "
            f"and 1 ({cut(kinds[1][0], 30)}), and 255 is ignored. Write 1 for it, or give "
            f"{option_text('--ignore', [*wanted.ignore, IGNORE])} if it is void"
        )


def _nothing_to_tell_apart(tally: _Tally, wanted: Wanted) -> str:
    held = sorted(tally)
    classes = [key for key in held if key not in wanted.ignore]
    hint = ""
    if not tally.coloured and IGNORE in classes and len(classes) == 2 and not wanted.labels:
        hint = f". Give the foreground the value 1, or say {option_text('--labels', classes)}: 255 means ignored"

    def write(room: int) -> str:
        values = tally.shares(held, room)
        return f"nothing to tell apart: the masks hold {values}, want two classes{hint}"

    return fitted(write)
