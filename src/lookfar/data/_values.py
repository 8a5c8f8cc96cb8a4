"""What users say about the values of masks: which is which class, how many classes there are, what is ignored."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lookfar.data._words import listed

Value = int | str  # a number, or a colour as "#rrggbb"
MOST_CLASSES = 255  # labels are bytes, and 255 is taken


def parse_values(given: Value | Iterable[object], option: str) -> tuple[Value, ...]:
    """Numbers and colours from ``"0,128,255"``, ``"1-150"``, ``"#000000,#800000"`` or a list with such parts.

    Raises:
        ValueError: Something else, or a value that is there twice.
    """
    parts: list[object] = []
    for part in [given] if isinstance(given, str | int) else given:
        parts.extend(filter(str.strip, part.split(",")) if isinstance(part, str) else [part])
    values: list[Value] = []
    for part in parts:
        values.extend(_parse_value(part, option))
        if len(values) > 2**16:
            break
    if twice := [str(value) for value, times in Counter(values).items() if times > 1]:
        raise ValueError(f"{option} names {listed(twice, 40)} twice")
    return tuple(values)


def _parse_value(part: object, option: str) -> list[Value]:
    if isinstance(part, tuple | list) and len(part) == 3 and all(isinstance(c, int) and 0 <= c < 256 for c in part):
        return [colour_word(part[0] << 16 | part[1] << 8 | part[2])]
    if isinstance(part, int | np.integer) and not isinstance(part, bool) and 0 <= part < 2**16:
        return [int(part)]
    text = part.strip().lower() if isinstance(part, str) else ""
    if re.fullmatch(r"#[0-9a-f]{6}", text):
        return [text]
    if re.fullmatch(r"#[0-9a-f]{3}", text):
        return ["#" + "".join(2 * sign for sign in text[1:])]
    if found := re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII):
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last < 2**16:
            return list(range(first, last + 1))
    raise ValueError(
        f"{option} must be numbers from 0 to 65535 or colours, as in 0,128,255 or '#000000,#800000'; got {part!r}"
    )


def colour_word(colour: int) -> str:
    """``0xFF0000 -> "#ff0000"``."""
    return f"#{colour:06x}"


def colour_of(value: Value) -> int:
    """``"#ff0000" -> 0xFF0000``."""
    return int(str(value)[1:], 16)


def is_colour(value: Value) -> bool:
    """Whether it is not a number."""
    return isinstance(value, str)


def option_text(name: str, values: Iterable[Value]) -> str:
    """As one types it: ``--labels 0,128,255``, colours in quotes, long runs as ``1-150``."""
    texts: list[str] = []
    values = list(values)
    while values:
        run = 1
        while run < len(values) and not is_colour(values[0]) and values[run] == values[0] + run:  # type: ignore[operator]
            run += 1
        step = run if run > 3 else 1
        texts.append(str(values[0]) if step == 1 else f"{values[0]}-{values[step - 1]}")
        values = values[step:]
    text = ",".join(texts)
    return f"{name} '{text}'" if "#" in text else f"{name} {text}"


@dataclass(frozen=True)
class Wanted:
    """What is known of the classes before a mask is read.

    Attributes:
        names: Of the classes, or None.
        origin: Where the names are from.
        table: Colour of each class from there, or None.
        mapping: File value -> label, where a data set has its own.
        labels: The file's value of class 0, 1, 2 ..., as the user says.
        count: Number of classes, as the user says.
        ignore: Values without a label, as the user says; 255 beside them unless a class has it.
    """

    names: Sequence[str] | None = None
    origin: str = ""
    table: Sequence[int] | None = None
    mapping: Mapping[int, int] = field(default_factory=dict)
    labels: tuple[Value, ...] = ()
    count: int | None = None
    ignore: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        counts = {f"--labels names {len(self.labels)}": len(self.labels)} if self.labels else {}
        if self.count is not None:
            counts[f"--classes {self.count}"] = self.count
        if self.names is not None:
            counts[f"{self.origin} has {len(self.names)}"] = len(self.names)
        if any(not 2 <= count <= MOST_CLASSES for count in counts.values()):
            raise ValueError(f"{', '.join(counts)}; want 2 to {MOST_CLASSES} classes")
        if len(set(counts.values())) > 1:
            raise ValueError(f"how many classes: {', '.join(counts)}; want one number")
        if len({is_colour(value) for value in self.labels}) > 1:
            raise ValueError("--labels has numbers and colours; want one kind")
        if both := [str(value) for value in self.labels if value in self.ignore]:
            raise ValueError(f"{listed(both, 40)} in --labels and in --ignore; want one of them")

    @property
    def known(self) -> int | None:
        """Number of classes, None where it is not known."""
        return len(self.labels) or self.count or (None if self.names is None else len(self.names))
