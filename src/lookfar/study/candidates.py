"""What a study compares: candidates as they are written in a plan, and the names of their folders."""

from __future__ import annotations

import hashlib
import keyword
import re
from dataclasses import dataclass
from typing import Any

REFERENCES = ("baseline", "control")  # always compared, whatever else is
_CONTROL = re.compile(r"control(\(parameters=(?P<parameters>\d+)\))?(@(?P<place>.+))?")


@dataclass(frozen=True)
class Candidate:
    """What is put into the host: ``baseline``, ``control``, or a block with options and a place.

    Attributes:
        name: Canonical name of a block, ``baseline`` or ``control``.
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
    def slug(self) -> str:
        """Name of its folder."""
        return slug(str(self))


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
        plain += f"-{hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=3).hexdigest()}"
    return plain


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
