"""What a study compares: candidates as they are written in a plan, and the names of their folders."""

from __future__ import annotations

import contextlib
import hashlib
import keyword
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookfar.blocks._own import Address

LONGEST = 120  # characters of a folder's name; systems take 255 bytes
REFERENCES = ("baseline", "control")  # always compared, whatever else is
_CONTROL = re.compile(r"control(\(parameters=(?P<parameters>\d+)\))?(@(?P<place>.+))?")


@dataclass(frozen=True)
class Candidate:
    """What is put into the host: ``baseline``, ``control``, or a block with options and a place.

    Attributes:
        name: Canonical name of a block, ``baseline`` or ``control``; ``my.py:MyBlock`` for a block of the user's own.
        options: Options of the block.
        place: Where it goes; None for the place of the plan.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    place: str | None = None

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read ``nonlocal(mode=gaussian)@layer3``; names and options are checked, aliases become canonical names.

        Raises:
            ValueError: Text of another form, an unknown block; the message names the nearest.
            TypeError: An unknown option.

        >>> str(Candidate.parse("pam(reduction=4) @ layer3"))
        'position_attention(reduction=4)@layer3'
        """
        from lookfar.blocks import parse_block
        from lookfar.blocks._own import parse_address, split_address

        if parts := split_address(text):  # a path may hold an @, and what else it likes
            where, name, rest = parts
            at = rest.rfind("@", rest.rfind(")") + 1)
            inside, place = (rest, None) if at < 0 else (rest[:at].strip(), rest[at + 1 :].strip())
            if place == "":
                raise ValueError(f"cannot read {text!r}: a place must follow the @, as in {text}layer3")
            address = parse_address(f"{where}:{name}{inside}")
            assert address is not None
            return cls(str(address), tuple(sorted(address.options.items())), place)
        parse_address(text)  # a file without a class behind it
        at = text.rfind("@", text.rfind(")") + 1)
        body, place = (text, None) if at < 0 else (text[:at], text[at + 1 :].strip())
        if place == "":
            raise ValueError(f"cannot read {text!r}: a place must follow the @, as in {text}layer3")
        if (control := _CONTROL.fullmatch(body.strip().replace(" ", ""))) and control["parameters"]:
            return cls("control", (("parameters", int(control["parameters"])),), place)
        if body.strip() in REFERENCES:
            if place is not None:
                raise ValueError(f"{body.strip()} has no place of its own; give --place for the whole study")
            return cls(body.strip())
        name, options = parse_block(body)
        return cls(name, tuple(sorted(options.items())), place)

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={_format(value)}" for name, value in self.options)
        return self.name + (f"({inside})" if inside else "") + (f"@{self.place}" if self.place else "")

    @property
    def own(self) -> Address | None:
        """Where the block stands, if it is one of the user's own."""
        from lookfar.blocks._own import Address

        parts = _own_parts(self.name)
        return Address(parts[0], parts[1], dict(self.options)) if parts else None

    @property
    def replaces(self) -> bool:
        """Whether it is a layer, which takes the place of a convolution: that one is then its control."""
        from lookfar.blocks import block_info
        from lookfar.blocks._mixers import is_layer

        known = self.name not in REFERENCES and self.own is None
        return known and is_layer(block_info(self.name), dict(self.options))

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return slug(str(self))


def written(block: Any) -> Any:
    """The text of a candidate that may be given as a class, or as a function that gives a module; others as they are.

    Raises:
        ValueError: It stands where a trial, a process of its own, cannot import it from.
        TypeError: An object that is called and is neither a class nor a function.
    """
    if not callable(block):
        return block
    from lookfar.blocks import block_info
    from lookfar.blocks._own import address_of

    if isinstance(block, type):
        with contextlib.suppress(ValueError):
            return block_info(block).name
    return address_of(block)


def canonical_own(what: str, text: str) -> str:
    """A host or task as plans hold it: a path and options of the user's own written one way, others as they are.

    Args:
        what: Name of the entry.
        text: As the user wrote it.
    """
    from lookfar.blocks._own import parse_address, split_address

    if split_address(text) is None:
        parse_address(text)  # a file without a function behind it
        return text
    found = Candidate.parse(text)
    if found.place is not None:
        raise ValueError(f"{what} must be FILE.py:NAME(option=value, ...), got {text!r}: --place says where blocks go")
    return str(found)


def short_name(candidate: str) -> str:
    """A candidate without options, place and path; for sentences, where that leaves it different.

    >>> short_name("nonlocal(mode=gaussian)@layer3"), short_name("blocks/my.py:MyBlock(reduction=8)@layer3")
    ('nonlocal', 'MyBlock')
    """
    parts = _own_parts(candidate)
    return parts[1] if parts else candidate.partition("(")[0].partition("@")[0]


def place_of(candidate: str) -> str:
    """The place that a candidate names, or an empty string.

    >>> place_of("nonlocal(mode=gaussian)@layer3"), place_of("me@home/my.py:MyBlock")
    ('layer3', '')
    """
    parts = _own_parts(candidate)
    rest = parts[2] if parts else candidate
    at = rest.rfind("@", rest.rfind(")") + 1)
    return "" if at < 0 else rest[at + 1 :]


def _own_parts(candidate: str) -> tuple[str, str, str] | None:
    if ":" not in candidate:  # a report is made without loading torch
        return None
    from lookfar.blocks._own import split_address

    return split_address(candidate)


def is_reference(candidate: str) -> bool:
    """Whether this is the baseline or a control."""
    return candidate == "baseline" or _CONTROL.fullmatch(candidate) is not None


def slug(text: str) -> str:
    """A name for files: letters, digits, ``.``, ``_`` and ``-``; texts that differ only in other signs stay apart.

    >>> slug("nonlocal(mode=gaussian)@layer3")
    'nonlocal-mode-gaussian-at-layer3'
    """
    plain = re.sub(r"[^\w.]+", "-", text.replace("@", "-at-"), flags=re.ASCII).strip("-.")
    # what words do not distinguish: scale=-1 and scale=1, (1, 3) and (13)
    if re.search(r"[^\w.@=()]", text, flags=re.ASCII):
        plain = f"{plain[-LONGEST:].lstrip('-.')}-{_digest(text)}"
    return plain if len(plain) <= LONGEST + 7 else f"{plain[-LONGEST:].lstrip('-.')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=3).hexdigest()


def split_candidates(text: str) -> list[str]:
    """Cut a list at its commas, but not inside brackets.

    >>> split_candidates("nonlocal(mode=dot_product,subsample=2)@layer3, cbam")
    ['nonlocal(mode=dot_product,subsample=2)@layer3', 'cbam']
    """
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _format(value: Any) -> str:
    word = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    if word and value not in ("True", "False", "None"):
        return value
    return repr(value)
