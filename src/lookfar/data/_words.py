"""Names and lists as a reader sees them: printable, and short enough for a message of three lines."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

MOST = 230  # characters of a message: three lines of 80 with the program's name


def shown(text: str) -> str:
    r"""Composed (NFC), with what cannot be printed or encoded as an escape: ``\x1b``, and ``\xff`` for a stray byte."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in unicodedata.normalize("NFC", text))


def _escape(sign: str) -> str:
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in a name
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode()


def name_of(path: Path) -> str:
    """A file's name for a message."""
    return shown(path.name)


def cut(text: str, most: int = 40) -> str:
    """A long name without its middle."""
    if len(text) <= most:
        return text
    tail = min(most // 2, 16)
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def listed(items: Sequence[str], room: int = 90) -> str:
    """As many of the items as fit, and how many are left: ``a, b, … 3 more``."""
    text = cut(items[0], max(room, 12)) if items else ""
    for index, item in enumerate(items[1:], 1):
        longer = f"{text}, {item}"
        left = len(items) - index - 1
        if len(longer) + (len(f", … {left} more") if left else 0) > room:
            return f"{text}, … {len(items) - index} more"
        text = longer
    return text


def fitted(write: Callable[[int], str], room: int = 150, most: int = MOST) -> str:
    """A message with lists in it: ``write(room)`` with as much room for them as keeps it within ``most``."""
    while len(text := write(room)) > most and room > 12:
        room -= max(min(len(text) - most, 12), 1)
    return text


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")


def counted(what: Sequence[object] | int, word: str) -> str:
    """``1 file``, ``1 204 files``."""
    number = what if isinstance(what, int) else len(what)
    return f"{grouped(number)} {word}{'' if number == 1 else 's'}"


def grouped(number: int) -> str:
    """Thousands apart: 1 204."""
    return f"{number:,}".replace(",", " ")


def percent(part: float, whole: float) -> str:
    """``12 %``, never 0 or 100 where that is not so."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 1:
        return "<1 %"
    return ">99 %" if 99 < share < 100 else f"{share:.0f} %"
