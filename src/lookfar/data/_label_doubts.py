"""What cannot be right about images with one label each: files that are there twice, classes that lose their images."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from lookfar.data._heads import SMALL, ImageHead, Labelled
from lookfar.data._judging import find_absent
from lookfar.data._words import counted, cut, fitted, listed
from lookfar.data.scan import File

_CURE = "Keep each in one, or give --skip-bad to train without them"
Sets = Mapping[str, Sequence[Labelled]]
Group = list[tuple[str, Labelled]]  # a set, and a file in it, for all that hold the same bytes


def find_doubles(
    sets: Sets, heads: Mapping[Labelled, ImageHead], skip_bad: bool, published: bool
) -> tuple[dict[str, set[Labelled]], list[str]]:
    """The files to leave out of each set since they are there twice, and lines on all that are.

    The same file under two labels contradicts itself and is left out altogether; one that is judged by leaves train.

    Args:
        sets: Files by the names of their sets.
        heads: What they hold; files without one do not count.
        skip_bad: Leave out what would stop otherwise.
        published: Report it, and leave nothing out.

    Raises:
        ValueError: There are such files, and the user did not ask to go on without them.
    """
    groups = [group for same in _equal(sets, heads) for group in _apart(same, heads)]
    two_labels = [group for group in groups if len({file.label for _, file in group}) > 1]
    rest = [group for group in groups if len({file.label for _, file in group}) == 1]
    judged = [group for group in rest if len({split for split, _ in group}) > 1]
    faults = [
        ("the same file in two classes", [_pair(group, False) for group in two_labels]),
        ("the same file in two sets", [_pair(group, True) for group in judged]),
    ]
    lines = []
    for words, names in faults:
        if names and not (skip_bad or published):
            raise ValueError(fitted(lambda room, names=names, words=words: f"{words}: {listed(names, room)}. {_CURE}"))
        left = "" if published else "; left out" if names is faults[0][1] else "; kept in the last"
        lines += [f"{words}, {counted(names, 'time')}{left}: {listed(names, 60)}."] if names else []
    again = [_pair(group, False) for group in rest if len(group) > len({split for split, _ in group})]
    if again:
        lines.append(f"{counted(again, 'image')} more than once in a class: {listed(again, 60)}.")
    return _left_out(sets, *(([], []) if published else (two_labels, judged))), lines


def _left_out(sets: Sets, two_labels: Sequence[Group], judged: Sequence[Group]) -> dict[str, set[Labelled]]:
    out: dict[str, set[Labelled]] = {split: set() for split in sets}
    for split, file in (entry for group in two_labels for entry in group):
        out[split].add(file)
    order = list(sets)
    for group in judged:
        last = max((split for split, _ in group), key=order.index)
        for split, file in group:
            if split != last:
                out[split].add(file)
    return out


def _pair(group: Group, with_sets: bool) -> str:
    """A file, and another that differs in what is wrong."""
    split, first = group[0]
    other, second = next(
        (entry for entry in group if (entry[0] != split if with_sets else entry[1].label != first.label)), group[1]
    )
    names = (f"{split}/{first.name}", f"{other}/{second.name}") if with_sets else (first.name, second.name)
    return " = ".join(cut(name, 36) for name in names)


def _equal(sets: Sets, heads: Mapping[Labelled, ImageHead]) -> list[Group]:
    """Files of one digest, for each digest that several have."""
    found: dict[str, Group] = defaultdict(list)
    for split, files in sets.items():
        for file in files:
            if file in heads:
                found[heads[file].digest].append((split, file))
    return [group for group in found.values() if len(group) > 1]


def _apart(group: Group, heads: Mapping[Labelled, ImageHead]) -> list[Group]:
    """Groups of files that are equal to the last byte: of large ones a digest knows samples."""
    if heads[group[0][1]].length <= SMALL:
        return [group]
    found: dict[str, Group] = defaultdict(list)
    for split, file in group:
        with file.image.open("rb") as opened:
            digest = hashlib.blake2b(digest_size=16)
            while part := opened.read(2**20):
                digest.update(part)
        found[digest.hexdigest()].append((split, file))
    return [same for same in found.values() if len(same) > 1]


def check_learned(train: Sequence[Labelled], classes: Sequence[str], published: bool) -> None:
    """A class of which all images are held out is judged and never learned."""
    gone = sorted({*range(len(classes))} - {file.label for file in train})
    if gone and not published:
        raise ValueError(
            f"no images are left in train of {listed([classes[k] for k in gone], 90)}: all of them are held out. "
            "Give --val a share, as 0.2, or another folder or sequence"
        )


def check_left(before: Sequence[Labelled], after: Sequence[Labelled], classes: Sequence[str]) -> None:
    """What is left out may be most of train, or all that there is of a class."""
    if 2 * len(after) < len(before):
        raise ValueError(
            f"--skip-bad would leave out {len(before) - len(after)} of the {len(before)} images of train. Correct them"
        )
    gone = sorted({file.label for file in before} - {file.label for file in after})
    if gone:
        raise ValueError(
            f"--skip-bad would leave out all images in train of {listed([classes[k] for k in gone], 90)}. Correct them"
        )


def count_lines(sets: Sets, classes: Sequence[str]) -> list[str]:
    """How many images classes have, and which of them a set never shows."""
    present = {split: Counter(file.label for file in files) for split, files in sets.items()}
    train = present["train"]
    few, many = (function(train, key=lambda k: (train[k], -k)) for function in (min, max))
    line = (
        f"each class has {counted(train[few], 'image')} in train."
        if train[few] == train[many]
        else f"images of a class in train: {train[few]} ({cut(classes[few], 30)}) to {train[many]} "
        f"({cut(classes[many], 30)})."
    )
    return [line, *find_absent(present, classes)]


def turn_lines(heads: Mapping[Labelled, ImageHead], upright: Collection[File]) -> list[str]:
    """How many images are turned."""
    turned = sum(head.turn != 1 for head in heads.values())
    if not turned:
        return []
    return [
        f"{counted(turned, 'image')} turned upright by EXIF."
        if upright
        else f"{counted(turned, 'image')} not turned by EXIF."
    ]
