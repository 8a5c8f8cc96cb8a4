"""Images and masks of one name, in folders and by lists, and what of them validates."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lookfar.data._reading import IMAGE_SUFFIXES, MASK_SUFFIXES
from lookfar.data._words import counted, cut, fitted, listed, shown
from lookfar.data.scan import Pair

MASK_ENDINGS = ("_mask", "_label", "_labels", "_seg", "_gt", "-mask", ".mask")
NO_DATA = {"__MACOSX", "@eaDir"}  # folders that systems put beside files, as hidden ones are


class Split(NamedTuple):
    """Pairs, the files that have no partner, and which of them are masks."""

    pairs: list[Pair]
    alone: list[Path]
    masks: Sequence[Path] = ()


Find = Callable[[str], Split | None]  # a folder or a split by its name


def same_name(text: str) -> str:
    """Composed (NFC): some systems write é as one character, others as two."""
    return unicodedata.normalize("NFC", text)


def match(images: Path, masks: Path) -> Split:
    """Pairs of one name up to the suffix, sorted, and the files without a partner; sub-folders are part of the name."""
    pictures, labels = by_stem(images, IMAGE_SUFFIXES), by_stem(masks, MASK_SUFFIXES)
    # lossy masks are included, to be refused by name, but not beside a lossless one
    lossy = by_stem(masks, IMAGE_SUFFIXES - MASK_SUFFIXES)
    labels |= {stem: path for stem, path in lossy.items() if stem not in labels and stem in pictures}
    for stem in [stem for stem in labels if stem not in pictures]:
        plain = next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)
        if plain in pictures and plain not in labels:
            labels[plain] = labels.pop(stem)
    pairs = [Pair(shown(stem), pictures[stem], labels[stem]) for stem in sorted(pictures.keys() & labels.keys())]
    alone = sorted([*(pictures.keys() - labels.keys()), *(labels.keys() - pictures.keys())])
    lone_masks = [labels[stem] for stem in alone if stem in labels]
    return Split(pairs, [pictures.get(stem) or labels[stem] for stem in alone], lone_masks)


def by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Name without suffix -> file, of all in a folder and its sub-folders."""
    found: dict[str, Path] = {}
    for path in walk(folder):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = same_name(path.relative_to(folder).with_suffix("").as_posix())
        if stem in found:
            names = " and ".join(shown(other.name) for other in (found[stem], path))
            raise ValueError(f"two files of one name in {cut(shown(str(folder)), 80)}: {names}")
        found[stem] = path
    return found


def walk(folder: Path) -> Iterator[Path]:
    """All files, sorted; links are followed, but not in circles."""
    seen: set[str] = set()

    def complain(error: OSError) -> None:
        raise error

    for place, inside, files in os.walk(folder, followlinks=True, onerror=complain):
        real = os.path.realpath(place)
        inside[:] = [] if real in seen else sorted(name for name in inside if is_data_folder(name))
        if real not in seen:
            yield from (Path(place, name) for name in sorted(files))
        seen.add(real)


def is_data_folder(name: str) -> bool:
    """Not hidden, and none of those that systems make."""
    return not name.startswith(".") and name not in NO_DATA


def read_list(path: Path, known: Mapping[str, Pair]) -> Split:
    """The pairs that a list of names holds, one a line, with or without suffix and folder; other words don't count."""
    pairs, alone = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {shown(str(path))}: {error.strerror}") from None
    for line in map(str.strip, lines):
        if line:
            pair = next((known[name] for name in _readings(line) if name in known), None)
            pairs += [pair] if pair else []
            alone += [] if pair else [Path(path.name, line)]
    return Split(list(dict.fromkeys(pairs)), alone)


def _readings(line: str) -> Iterator[str]:
    for text in dict.fromkeys([line, line.split()[0]]):
        name = Path(same_name(text))
        plain = name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name
        parts = plain.parts
        yield from (Path(*parts[start:]).as_posix() for start in range(len(parts)))


def hold_out(train: list[Pair], val: str, find: Find, *, option: str = "--val") -> tuple[Split, list[str]]:
    """What ``val`` means: a share of train, another folder or split, or the images of train whose names start so.

    Args:
        train: What is held out leaves it.
        val: ``"0.2"``, a folder, a split such as ``"test"``, or a sequence such as ``"0001TP"``.
        find: A folder or split by its name.
        option: How the user gave it.

    Returns:
        The images held out, and what is to be said about them.
    """
    if not is_share(val) and (split := find(val)):
        return split, [is_called(val, option)]
    chosen, notes = pick([pair.name for pair in train], val, option)
    held = Split([pair for pair in train if pair.name in chosen], [])
    train[:] = [pair for pair in train if pair.name not in chosen]
    return held, notes


def pick(names: Sequence[str], val: str, option: str, classes: bool = False) -> tuple[set[str], list[str]]:
    """A share of the names, or those that start with a sequence, and what is to be said about them.

    Args:
        names: Of train.
        val: A share with a point, or a sequence.
        option: How the user gave it.
        classes: What stands before the first ``/`` is a class: the share is taken of each, a sequence is of the rest.
    """
    word = option.removeprefix("--").replace("-", " ")
    if is_share(val):
        share = float(val)
        if not 0 < share < 1:
            raise ValueError(f"a share of {val} for validation; want a number between 0 and 1, a folder or a sequence")
        by_class: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest()):
            by_class.setdefault(name.partition("/")[0] if classes else "", []).append(name)
        chosen = {name for some in by_class.values() for name in some[: _part(share, len(some), classes)]}
        of_each = " of each class" if classes else ""
        return chosen, [
            f"{word} is {share:.0%} of the images{of_each}, chosen by their names. If they are frames of videos, hold "
            f"out a whole one: {option} SEQUENCE."
        ]
    start = re.compile(re.escape(shown(val)) + r"(?![a-zA-Z0-9])")
    rests = {name: name.partition("/")[2] if classes else name for name in names}
    chosen = {name for name, rest in rests.items() if start.match(rest)}
    if not chosen:
        raise ValueError(_unknown_sequence([*rests.values()], val, option))
    return chosen, [f"{word} is the sequence {shown(val)}, held out of train."]


def _part(share: float, count: int, classes: bool) -> int:
    """How many of ``count`` are held out: at least one; of a class one stays in train."""
    part = max(round(share * count), 1)
    return min(part, count - 1) if classes else part


def is_called(val: str, option: str) -> str:
    """A note on a set that the user named."""
    return f"{option.removeprefix('--').replace('-', ' ')} is {shown(val)}."


def _unknown_sequence(names: Sequence[str], val: str, option: str) -> str:
    beginnings = (re.match(r".+?(?=[_./-])", name) for name in names)
    sequences = Counter(found[0] for found in beginnings if found)
    known = [f"{name} ({count})" for name, count in sequences.most_common() if count > 1]
    text = cut(shown(val), 40)
    return fitted(
        lambda room: (
            f"{option} {text!r} is neither a share between 0 and 1, nor a folder, nor the beginning of names "
            f"in train{f'; these begin with {listed(known, room)}' if known else ''}"
        )
    )


def is_share(text: str) -> bool:
    """A share has a point: ``0002`` may well be a sequence."""
    return re.fullmatch(r"-?\d*\.\d*", text) is not None and text.strip("-.") != ""


def find_folder(root: Path, text: str) -> Path | None:
    """A folder by what a user types, relative to the data or to the current folder."""
    for path in (root / text, Path(text).expanduser()):
        if path.is_dir():
            return path
        if path.parent.is_dir():
            named = [p for p in path.parent.iterdir() if same_name(p.name) == same_name(path.name) and p.is_dir()]
            if named:
                return named[0]
    return None


def unused(word: str, split: Split) -> str:
    """A note on a split that is there and does nothing."""
    return f"{shown(word)} ({counted(split.pairs, 'image')}) is not used; --val {shown(word)} judges by it."
