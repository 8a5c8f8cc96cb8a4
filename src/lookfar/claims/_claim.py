"""What a claim is, and what came of it."""

from dataclasses import dataclass
from typing import Literal

Word = Literal["confirmed", "refuted", "open"]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, made so sharp that a run can refute it.

    Attributes:
        says: The hypothesis.
        source: Paper and place.
        refuted_by: What would refute it.
    """

    says: str
    source: str
    refuted_by: str


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        word: ``confirmed``, ``refuted`` or ``open``.
        found: The numbers, in a sentence.
    """

    word: Word
    found: str
