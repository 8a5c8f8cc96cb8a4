"""Which validation images belong together: frames of a video, tiles of a picture, slices of a patient.

Neighbouring frames err alike, so forty frames of five clips say about as much as five images: samples are drawn again
by groups. Groups come from the reader of the data set where it knows them, from ``--groups``, or from the names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

KNOWN: dict[str, tuple[str, str]] = {
    "camvid": (r"^[^_]+", "sequence"),  # 0016E5_07961
    "voc": ("none", "image"),  # 2007_000033: a year is no video
    "scenes": ("none", "image"),
    # collected one by one
    **dict.fromkeys(
        ("cifar10", "cifar100", "fashion-mnist", "stl10", "flowers102", "food101", "imagenet"), ("none", "image")
    ),
}
FEWEST, SIZE = 2, 2.0  # groups, and images in each on average, for names to tell of groups


@dataclass(frozen=True)
class Groups:
    """The group of every sample, and what to call one.

    Attributes:
        labels: A group's name for each sample.
        noun: ``image`` where every image is its own, else ``group of images`` or ``sequence``.
    """

    labels: tuple[str, ...]
    noun: str

    @property
    def number(self) -> int:
        return len(set(self.labels))

    def __str__(self) -> str:
        first, *rest = self.noun.split(" ", 1)
        plural = " ".join([f"{first}s", *rest])
        return f"1 {self.noun}" if self.number == 1 else f"{self.number} {plural}"


def groups_of(
    names: Sequence[str], pattern: str | None = None, *, noun: str = "group of images", classes: bool = False
) -> Groups:
    """Groups of samples by their names.

    Without a pattern they are a folder level, or else the name up to its last number, where that gives at least two
    groups of two samples on average: ``clip1/0003`` and ``clip1_0003`` belong to ``clip1``, while ``img_0003`` beside
    nothing but ``img_...`` belongs to nobody.

    Args:
        names: Of the samples, ``folder/name`` or ``name``, without or with the ending of a file.
        pattern: A regular expression whose first bracket (or whole match) names the group; ``none``: no groups.
        noun: What a group of this pattern is called.
        classes: The first folder is the class: groups are looked for in what follows, and the same name in two classes
            is one group, such as a patient's.

    Raises:
        ValueError: No regular expression; a name in which it finds nothing.

    >>> groups_of(["a_001", "a_002", "b_001", "b_002"]).labels
    ('a_', 'a_', 'b_', 'b_')
    >>> str(groups_of(["img_001", "img_002", "img_003"]))
    '3 images'
    >>> groups_of(["cat/a_1", "cat/b_1", "dog/a_2", "dog/b_2"], classes=True).labels
    ('a_', 'b_', 'a_', 'b_')
    """
    single = Groups(tuple(str(i) for i in range(len(names))), "image")
    if pattern == "none":
        return single
    if pattern is not None:
        return Groups(tuple(_found(_expression(pattern), name) for name in names), noun)
    known = [name.partition("/")[0] for name in names] if classes else []
    rests = [name.partition("/")[2] for name in names] if classes else names
    for labels in _by_folders(rests), _by_numbers(rests):
        if _tells(labels) and not _same_sets(labels, known):
            return Groups(tuple(labels), noun)
    return single


def known_pattern(data: str) -> tuple[str | None, str]:
    """Pattern and noun of the groups that a reader of data knows, by the ``data`` of a plan."""
    reader, colon, _ = data.partition(":")
    return KNOWN.get(reader if colon else "", (None, "group of images"))


def groups_of_data(names: Sequence[str], data: str, pattern: str | None = None, *, classes: bool = False) -> Groups:
    """Groups of samples as a study of these data has them.

    Args:
        names: Of the samples.
        data: As a plan writes it; empty for images that are no data set.
        pattern: Of the plan; without one what the reader of the data knows, or what names tell.
        classes: Whether the task is classification, see :func:`groups_of`.

    Raises:
        ValueError: As :func:`groups_of`.

    >>> groups_of_data(["0001TP_1", "0001TP_2", "0006R0_1", "0006R0_2"], "camvid:data/CamVid").noun
    'sequence'
    """
    if pattern is not None:
        return groups_of(names, pattern)
    known, noun = known_pattern(data)
    return groups_of(names, known, noun=noun, classes=classes)


def _tells(labels: Sequence[str]) -> bool:
    number = len(set(labels))
    return number >= FEWEST and len(labels) >= SIZE * number


def _same_sets(labels: Sequence[str], classes: Sequence[str]) -> bool:
    """Groups that are the classes, as ``n01/n01_7``, tell of no group."""
    return bool(classes) and len(set(labels)) == len(set(classes)) == len({*zip(labels, classes)})


def _by_folders(names: Sequence[str]) -> list[str]:
    """The first level of folders at which there are two."""
    folders = [name.replace("\\", "/").split("/")[:-1] for name in names]
    for level in range(min(map(len, folders), default=0)):
        labels = ["/".join(folder[: level + 1]) for folder in folders]
        if len(set(labels)) > 1:
            return labels
    return []


def _by_numbers(names: Sequence[str]) -> list[str]:
    """What stands before the last number; an ending that all share (``_leftImg8bit``) is no part of the name."""
    shared = 0
    for signs in zip(*(reversed(name) for name in names)):
        if len(set(signs)) > 1:
            break
        shared += 1
    ending = names[0][len(names[0]) - shared :] if names else ""
    ending = ending.lstrip("0123456789")  # frames 10, 20, 30 share a digit of their numbers
    stems = [name[: len(name) - len(ending)] for name in names]
    found = [re.fullmatch(r"(.*?)\d+\D*", stem, flags=re.DOTALL) for stem in stems]
    return [match[1] if match else stem for match, stem in zip(found, stems)]


def _expression(pattern: str) -> "re.Pattern[str]":
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"groups must be a regular expression or none, got {pattern!r}: {error}. '^[^_]+' takes what stands before "
            "the first _"
        ) from None


def _found(expression: "re.Pattern[str]", name: str) -> str:
    match = expression.search(name)
    label = match and (match[1] if expression.groups else match[0])
    if not label:
        raise ValueError(f"groups: {expression.pattern!r} finds nothing in the image {name!r}")
    return label
