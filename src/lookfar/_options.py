"""What an option takes, asked in one place and answered in one voice: option, value, what is accepted, nearest word.

Constructors of blocks are checked by their annotations (:func:`check_arguments`); relations between options, and ops,
call the functions by name. Standard library alone, so that every part may use it.
"""

import difflib
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Bounds of a number in an annotation, ``Annotated[int, Range(0)]``; ``odd`` takes every second one from 1.

    An ``int`` without a range is at least 1, a ``float`` without one any finite number.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is refused
    odd: bool = False
    why: str = ""


@dataclass(frozen=True)
class Refused:
    """Why one value is not among the choices of an annotation, though a reader may expect it there."""

    value: Any
    why: str


Natural = Annotated[int, Range(0)]
Odd = Annotated[int, Range(1, odd=True, why="a window has a centre")]
Steps = Annotated[int, Range(1, 1000)]  # of an inner loop: more would look like a program that hangs
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]

_COUNT, _FINITE = Range(1), Range()


def choice(name: str, value: Any, accepted: Collection[Any], *, why: str = "") -> None:
    """Raise a ValueError unless ``value`` is one of ``accepted``; ``why`` is the reason, where there is one."""
    if not _among(value, accepted):
        raise ValueError(_refusal(name, value, _listed(accepted), why, nearest(value, accepted)))


def positive(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least 1."""
    check(name, value, int)


def odd(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is an odd positive integer, or a pair of them."""
    check(name, value, Odd | tuple[Odd, Odd])


def divides(name: str, value: Any, **widths: int) -> None:
    """Raise a ValueError unless the positive integer ``value`` divides each of the named ``widths``."""
    positive(name, value)
    left = [f"{width}={n}" for width, n in widths.items() if n % value]
    if left:
        near = largest_divisor(min(value, *widths.values()), *widths.values())
        raise ValueError(f"{name} must divide {' and '.join(left)}, got {value!r}: {near} does")


def largest_divisor(most: int, *widths: int) -> int:
    """The largest number up to ``most`` that divides all ``widths``: a published count where that does not fit."""
    return max(d for d in range(1, most + 1) if not any(n % d for n in widths))


def check(name: str, value: Any, annotation: Any) -> None:
    """Raise a ValueError unless ``value`` is what ``annotation`` says.

    >>> check("heads", 2, int)
    >>> check("mode", "sum", Literal["mean", "max"])
    Traceback (most recent call last):
    ValueError: mode must be mean or max, got 'sum'
    """
    if not _fits(value, annotation):
        marks = list(_marks(annotation))
        reasons = [m.why for m in marks if isinstance(m, Range) and isinstance(value, Real)]
        reasons += [no.why for no in refused_by(annotation) if no.value == value]
        near = nearest(value, words_of(annotation))
        raise ValueError(_refusal(name, value, _described(annotation), next(filter(None, reasons), ""), near))


def check_arguments(signature: inspect.Signature, hints: Mapping[str, Any], args: Any, kwargs: Any) -> None:
    """:func:`check` of every argument of a call that has a hint."""
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if name in hints:
            check(name, value, hints[name])


def words_of(annotation: Any) -> list[str]:
    """The words of the closed choice that an annotation is, in their order; none for other annotations."""
    return list(dict.fromkeys(mark for mark in _marks(annotation) if isinstance(mark, str)))


def refused_by(annotation: Any) -> list[Refused]:
    """The values that an annotation refuses with a reason."""
    return [mark for mark in _marks(annotation) if isinstance(mark, Refused)]


def nearest(value: Any, accepted: Collection[Any]) -> str | None:
    """The accepted word that looks most like ``value``, or None."""
    words = [word for word in accepted if isinstance(word, str)]
    return next(iter(difflib.get_close_matches(value, words, n=1)), None) if isinstance(value, str) else None


def _refusal(name: str, value: Any, accepted: str, why: str, near: str | None) -> str:
    message = f"{name} must be {accepted}, got {value!r}"
    message += f": {why}" if why else ""
    return f"{message}. Did you mean {near}?" if near else message


def _among(value: Any, accepted: Collection[Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in accepted)


def _fits(value: Any, wanted: Any, within: Range | None = None) -> bool:
    origin, inside = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _fits(value, inside[0], next((m for m in inside[1:] if isinstance(m, Range)), within))
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, within) for one in inside)
    if origin is Literal:
        return _among(value, inside)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, tuple | list):
            return False
        if origin is not tuple or inside[-1] is Ellipsis:
            return len(value) > 0 and all(_fits(one, inside[0], within) for one in value)
        return len(value) == len(inside) and all(_fits(one, to) for one, to in zip(value, inside))
    if origin is not None:
        return _is_made_by(value, origin)
    if wanted in (None, type(None)):
        return value is None
    if wanted in (int, float):
        kind, within = (Integral, within or _COUNT) if wanted is int else (Real, within or _FINITE)
        return isinstance(value, kind) and not isinstance(value, bool) and _is_within(value, within)
    return wanted is Any or not isinstance(wanted, type) or isinstance(value, wanted)


def _is_made_by(value: Any, origin: Any) -> bool:
    return callable(value) if origin in (Callable, type) else isinstance(value, origin)


def _is_within(value: Any, within: Range) -> bool:
    if not math.isfinite(value) or not within.low <= value <= within.high:
        return False
    return not (within.above and value == within.low) and not (within.odd and value % 2 == 0)


def _described(wanted: Any) -> str:
    parts = list(dict.fromkeys(_parts(wanted)))
    alone = [part for part in parts if ", each " not in part and part != "None"]
    if alone:
        parts = [part.replace(f", each {_listed(alone)}", " of these") for part in parts]
    return _listed(parts)


def _parts(wanted: Any, within: Range | None = None) -> list[str]:
    origin, inside = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _parts(inside[0], next((m for m in inside[1:] if isinstance(m, Range)), within))
    if origin in (Union, types.UnionType):
        return [part for one in inside for part in _parts(one, within)]
    if origin is Literal:
        return [word if isinstance(word, str) else repr(word) for word in inside]
    if origin in (tuple, list, Sequence):
        if origin is tuple and inside[-1] is not Ellipsis:
            return [f"a tuple of {len(inside)}, each {' or '.join(dict.fromkeys(map(_described, inside)))}"]
        return [f"a tuple, each {_described(inside[0])}"]
    if origin is Callable or origin is type:
        return ["a class or function that makes it, such as nn.BatchNorm2d"]
    if wanted in (None, type(None)):
        return ["None"]
    if wanted is bool:
        return ["True or False"]
    if wanted in (int, float):
        return [_number(wanted, within or (_COUNT if wanted is int else _FINITE))]
    return [getattr(wanted, "__name__", str(wanted))]


def _number(kind: type, within: Range) -> str:
    noun = "integer" if kind is int else "number"
    if within.odd:
        return f"an odd positive {noun}"
    if math.isfinite(within.low) and math.isfinite(within.high):
        return f"{_a(noun)} {noun} from {within.low:g} to {within.high:g}"
    if (kind is int and within.low == 1) or (within.low == 0 and within.above):
        return f"a positive {noun}"
    if math.isfinite(within.low):
        return f"{_a(noun)} {noun} {'above' if within.above else 'of at least'} {within.low:g}"
    return "an integer" if kind is int else "a finite number"


def _a(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _listed(accepted: Collection[Any]) -> str:
    words = [word if isinstance(word, str) else repr(word) for word in accepted]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _marks(wanted: Any) -> Iterator[Any]:
    """What stands in an annotation at any depth: ranges, reasons, words."""
    for one in get_args(wanted):
        yield one
        yield from _marks(one)
