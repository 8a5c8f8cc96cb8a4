"""What a claim is, and what came of it."""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Answer:
    """What trainings say to one part of a claim.

    Attributes:
        holds: None where they leave it open.
        said: The numbers, in words.
    """

    holds: bool | None
    said: str


def word_of(answers: Sequence[Answer], some: bool = False) -> Word:
    """The word for a claim all of whose parts are to hold, or some.

    >>> word_of([Answer(True, ""), Answer(None, "")]), word_of([Answer(None, ""), Answer(False, "")])
    ('open', 'refuted')
    >>> word_of([Answer(True, ""), Answer(False, "")], some=True)
    'confirmed'
    """
    found = [answer.holds for answer in answers]
    decided = some in found  # one part is enough
    if decided or not found or None in found:
        return ("confirmed" if some else "refuted") if decided else "open"
    return "refuted" if some else "confirmed"
