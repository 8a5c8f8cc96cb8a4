"""What the values of masks mean: numbers and colours of files become labels 0, 1, 2 ..., and 255 where ignored.

A value that belongs to no class raises here, with its share, its files and the option that says what it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookfar.data._base import IGNORE
from lookfar.data._doubts import (
    OFFERED,
    nothing_to_tell_apart,
    refuse_colours,
    refuse_common_void,
    refuse_gaps,
    refuse_palettes,
    refuse_smoothed,
    refuse_two_conventions,
    without_class,
)
from lookfar.data._reading import Mask
from lookfar.data._tally import Tally, keys_of, kind_of
from lookfar.data._values import MOST_CLASSES, Wanted, colour_of, is_colour, option_text
from lookfar.data._words import fitted, listed
from lookfar.data.scan import Found, Pair


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
        for label, pixels in zip(self.of_values(found), found.counts):
            total[label] = total.get(label, 0) + pixels
        return total

    def of_values(self, found: Found) -> list[int]:
        """The label of each of the values of a mask that was looked at."""
        by_colour = kind_of(found) in self.by_colour
        keys = keys_of(found, by_colour)
        return [self.colours.get(key, IGNORE) if by_colour else int(self.numbers[key]) for key in keys]


def give_meaning(found: Mapping[Pair, Found], wanted: Wanted) -> tuple[Labels, int, list[str]]:
    """Labels of the values, the number of classes, and what is to be said about the masks, one line each.

    Args:
        found: Of every usable pair.
        wanted: What is known of the classes.

    Raises:
        ValueError: Values that belong to no class, or may not be the classes that they seem to be.
    """
    by_colour, lines = _choose_kinds(found, wanted)
    numbered = {pair: result for pair, result in found.items() if kind_of(result) not in by_colour}
    coloured = {pair: result for pair, result in found.items() if kind_of(result) in by_colour}
    refuse_colours(numbered)
    if not wanted.labels:
        refuse_palettes(numbered, wanted)
    numbers, colours = Tally(numbered, False), Tally(coloured, True)
    number_labels = _label_numbers(numbers, wanted)
    colour_labels = _label_colours(coloured, colours, wanted)
    for tally, labels in ((numbers, number_labels), (colours, colour_labels)):
        lines += [f"{tally.line(key)} → ignored." for key in sorted(tally) if labels[key] == IGNORE]
    if (wanted.known or 2) == 2 and not wanted.labels and not wanted.mapping and IGNORE not in wanted.ignore:
        refuse_two_conventions(numbered, wanted)
    count = wanted.known or _count_classes(numbers, number_labels, wanted, lines)
    used = {label for labels in (number_labels, colour_labels) for label in labels.values()} - {IGNORE}
    if len(used) < 2:
        raise ValueError(nothing_to_tell_apart(numbers or colours, wanted))
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
    greys = {value for result in found.values() if kind_of(result) == "grey" for value in result.values} - {IGNORE}
    numbers = all(v < len(wanted.table) or v in wanted.ignore for v in greys)
    if greys and not numbers and all(value * 0x010101 in known for value in greys):
        kinds.add("grey")
    return frozenset(kinds), lines


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


def _label_numbers(tally: Tally, wanted: Wanted) -> dict[int, int]:
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
        refuse_gaps(tally, sorted(key for key, label in labels.items() if label != IGNORE), wanted)
    if beyond:
        raise ValueError(without_class(tally, beyond, labels, wanted))
    return labels


def _label_colours(coloured: Mapping[Pair, Found], tally: Tally, wanted: Wanted) -> dict[int, int]:
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


def _count_classes(tally: Tally, labels: Mapping[int, int], wanted: Wanted, lines: list[str]) -> int:
    """The number of classes where it was not given: the largest number plus one, if the numbers look like classes."""
    used = sorted(key for key, label in labels.items() if label != IGNORE)
    if not used:
        return 2
    count = used[-1] + 1
    refuse_gaps(tally, used, wanted)
    if IGNORE in tally and IGNORE not in wanted.ignore:
        refuse_common_void(tally, used, wanted)
    refuse_smoothed(tally, used)
    if missing := [str(number) for number in range(count) if number not in tally]:
        close = f": {option_text('--labels', used)} closes the gap" if len(used) <= OFFERED else ""
        lines.append(f"no mask holds {listed(missing, 60)}{close}.")
    return count
