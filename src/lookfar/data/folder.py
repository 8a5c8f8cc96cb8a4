"""``folder:PATH``, or just ``PATH``: images and masks in folders, matched by name, with an optional ``classes.txt``.

Four layouts are understood; the words have the usual synonyms (``labels`` for masks, ``valid`` for val, ...)::

    PATH/train/images  PATH/train/masks  PATH/val/images  PATH/val/masks
    PATH/images/train  PATH/images/val   PATH/masks/train PATH/masks/val
    PATH/images        PATH/masks        with lists of names: ImageSets/Segmentation/train.txt, val.txt, ...
    PATH/images        PATH/masks        with a share, a sequence or another folder for validation

A split that is there is used or named; one that is there in part stops.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from lookfar.data._files import Source
from lookfar.data._matching import (
    Find,
    Split,
    by_stem,
    find_folder,
    hold_out,
    is_data_folder,
    match,
    read_list,
    same_name,
    unused,
)
from lookfar.data._reading import IMAGE_SUFFIXES, MASK_SUFFIXES
from lookfar.data._words import counted, cut, fitted, listed, shown

IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASKS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir", "gt", "SegmentationClass",
    "segmentation", "ground_truth", "groundtruth", "targets",
)  # fmt: skip
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
LISTS = ("ImageSets/Segmentation", "ImageSets", "splits", "split", "lists", ".")
VAL_SHARE = "0.2"


@dataclass
class _Layout:
    """What was found: complete splits by the word they are called, and what is wrong with others."""

    splits: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def word(self, split: str) -> str | None:
        """The first word of a split, such as ``valid`` for ``val``, that is complete."""
        return next((word for word in SPLITS[split] if word in self.splits), None)


def read_folder(root: Path, val: str | None = None) -> Source:
    """The source of a folder; ``val`` is a share as ``"0.2"``, another folder or split, or the prefix of a sequence."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {cut(shown(str(root)), 120)}")
    layout = _find_layout(root)
    found = read_classes(root / "classes.txt")
    source = Source(root, [], [], found and found.names, "classes.txt" if found else "", found and found.table)
    source.notes += layout.notes
    splits = {word: match(*folders) for word, folders in layout.splits.items()}
    train = layout.word("train")
    if train is None:
        splits, train = _split_flat(root, layout, splits, source)
    source.find = _finder(root, splits)
    source.train = list(splits[train].pairs)
    source.leave(splits[train])
    used = {train}
    if val is not None:
        _take(source, *hold_out(source.train, val, source.find))
        used.add(val)
    elif (word := next((w for w in (*SPLITS["val"], *SPLITS["test"]) if w in {*splits, *layout.broken}), None)) is None:
        _take(source, *hold_out(source.train, VAL_SHARE, source.find))
    elif word in splits:
        notes = [f"{word} is used for validation: there is no val."] if word in SPLITS["test"] else []
        _take(source, splits[word], notes)
        used.add(word)
    elif word in SPLITS["val"]:
        raise ValueError(f"{layout.broken[word]}; complete it, or give --val {VAL_SHARE} for a share of train")
    else:
        _take(source, *hold_out(source.train, VAL_SHARE, source.find))
    source.notes += [unused(word, split) for word, split in splits.items() if word not in used and split.pairs]
    source.notes += [f"{text}: not used." for word, text in layout.broken.items() if word not in SPLITS["train"]]
    held = {pair.image for pair in source.val}
    # for val in a sub-folder of train; where val is all of train, the check for shared images reports it
    source.train = [pair for pair in source.train if pair.image not in held] or source.train
    return source


def read_judged(root: Path, split: str | None = None) -> Source:
    """One split alone: its own validation, else its test images, and of a folder without splits all of it."""
    layout, notes = _find_layout(root), list[str]()
    word = next((w for w in (*SPLITS["val"], *SPLITS["test"]) if w in layout.splits), None) if split is None else split
    flat = None if split or layout.splits or _find_lists(root) else _images_and_masks(root, notes)
    if word in layout.splits or flat:
        chosen = match(*(flat or layout.splits[str(word)]))
    elif split is None or (named := find_split(root, split)) is None:
        source = read_folder(root, split)
        source.train = source.val
        return source
    else:
        chosen = named
    found = read_classes(root / "classes.txt")
    source = Source(root, chosen.pairs, chosen.pairs, found and found.names, "classes.txt", found and found.table)
    source.leave(chosen)
    source.notes += notes
    return source


def _take(source: Source, split: Split, notes: list[str]) -> None:
    source.val = split.pairs
    source.leave(split)
    source.notes += notes


def _find_layout(root: Path) -> _Layout:
    """Folders of images and masks for every split, split first or kind first."""
    layout = _Layout()
    images, masks = _child(root, IMAGES), _child(root, MASKS)
    for words in SPLITS.values():
        for word in words:
            folder = _child(root, [word])
            if folder and (pair := _images_and_masks(folder, layout.notes)):
                layout.splits[word] = pair
            elif folder and (text := _incomplete(folder)):
                layout.broken[word] = text
            if not images or word in layout.splits:
                continue
            halves = _child(images, [word]), _child(masks, [word]) if masks else None
            if halves[0] and halves[1]:
                layout.splits[word] = (halves[0], halves[1])
                layout.broken.pop(word, None)
            elif half := halves[0] or halves[1]:
                other = "masks" if halves[0] else "images"
                if by_stem(half, IMAGE_SUFFIXES):
                    layout.broken[word] = f"{half.parent.name}/{half.name} has no {other}/{half.name}"
    return layout


def _incomplete(folder: Path) -> str:
    """What a split lacks; empty where it holds no pictures at all."""
    if not by_stem(folder, IMAGE_SUFFIXES):
        return ""
    missing = "no masks" if _child(folder, IMAGES) else "no folders images and masks"
    return f"{folder.name}/ holds {_inside(folder)}, {missing}"


def _inside(folder: Path, room: int = 60) -> str:
    return listed(sorted(shown(path.name) for path in folder.iterdir()), room) or "nothing"


def _images_and_masks(folder: Path, notes: list[str]) -> tuple[Path, Path] | None:
    """The two folders in a folder: masks by their usual names, else the only other folder with files of equal names."""
    images = _child(folder, IMAGES)
    if images is None:
        return None
    if masks := _child(folder, MASKS):
        return images, masks
    pictures = by_stem(images, IMAGE_SUFFIXES)
    others = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path != images and is_data_folder(path.name) and path.name.lower() not in _ALL_WORDS
    ]
    fitting = [
        path for path in others if 2 * len(pictures.keys() & by_stem(path, MASK_SUFFIXES).keys()) > len(pictures)
    ]
    if len(fitting) != 1:
        return None
    notes.append(f"masks of {shown(folder.name)} are in {shown(fitting[0].name)}.")
    return images, fitting[0]


_ALL_WORDS = {word for words in SPLITS.values() for word in words}


def find_images_and_masks(folder: Path) -> tuple[Path, Path] | None:
    """The two folders in a folder, or None."""
    return _images_and_masks(folder, [])


def mask_folders(root: Path) -> list[Path]:
    """Folders of images and of masks that lie in a folder or its splits."""
    splits = [folder for word in sorted(_ALL_WORDS) if (folder := _child(root, [word]))]
    pairs = (find_images_and_masks(folder) for folder in (root, *splits))
    return [folder for pair in pairs if pair for folder in pair]


def _split_flat(root: Path, layout: _Layout, splits: dict[str, Split], source: Source) -> tuple[dict[str, Split], str]:
    """Images and masks that lie in one folder each: split by lists where there are some."""
    folders = _images_and_masks(root, source.notes)
    if folders is None:
        if broken := next((layout.broken[word] for word in SPLITS["train"] if word in layout.broken), None):
            raise ValueError(f"{broken}. Want train/images and train/masks, or images/train and masks/train")
        raise ValueError(
            fitted(
                lambda room: (
                    f"no images and masks in {cut(shown(str(root)), 60)}: it holds {_inside(root, room)}. Want train/"
                    "images, train/masks, val/...; images/train, masks/train, ...; images, masks; or a folder a class"
                )
            )
        )
    everything = match(*folders)
    lists = _find_lists(root)
    if not lists:
        return {"train": everything, **splits}, "train"
    known = {
        same_name(pair.image.relative_to(folders[0]).with_suffix("").as_posix()): pair for pair in everything.pairs
    }
    by_list = {word: read_list(path, known) for word, path in lists.items()}
    train = next((word for word in (*SPLITS["train"], "trainval") if word in by_list), None)
    named = {pair for split in by_list.values() for pair in split.pairs}
    rest = [pair for pair in everything.pairs if pair not in named]
    if train is None:
        train, by_list["train"], rest = "train", Split(rest, []), []
    else:
        by_list = {word: split for word, split in by_list.items() if word == train or word != "trainval"}
    where = next(iter(lists.values())).parent
    source.notes.append(f"splits are the lists in {'.' if where == root else where.relative_to(root).as_posix()}.")
    if rest:
        source.notes.append(f"{counted(rest, 'image')} in none of the lists: not used.")
    return {**splits, **by_list}, train


def _find_lists(root: Path) -> dict[str, Path]:
    """Word -> list of names, from the first place that has a list of train or val."""
    for place in LISTS:
        folder = root / place
        if not folder.is_dir():
            continue
        files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
        words = ("trainval", *(word for words in SPLITS.values() for word in words))
        found = {word: files[name] for word in words for name in (f"{word}_list.txt", f"{word}.txt") if name in files}
        if found.keys() & {"trainval", *SPLITS["train"], *SPLITS["val"]}:
            return found
    return {}


def _finder(root: Path, splits: dict[str, Split]) -> Find:
    def find(text: str) -> Split | None:
        if text in splits:
            return splits[text]
        return find_split(root, text)

    return find


def find_split(root: Path, text: str) -> Split | None:
    """Images and masks in a folder that the user names; None where there is no such folder."""
    folder = find_folder(root, text)
    if folder is None:
        return None
    pair = find_images_and_masks(folder)
    if pair is None:
        raise ValueError(f"no images and masks in {cut(shown(str(folder)), 90)}, which is to be a validation set")
    return match(*pair)


def _child(folder: Path, names: Collection[str]) -> Path | None:
    """The first sub-folder with one of the names, whatever their case."""
    present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


# ---- classes.txt -------------------------------------------------------------------------------------------------

_GAP = r"[\s,;]+"
_BYTE = r"(\d{1,3})"
_NAME_FIRST = re.compile(rf"(\S.*?){_GAP}{_BYTE}{_GAP}{_BYTE}{_GAP}{_BYTE}")
_COLOUR_FIRST = re.compile(rf"{_BYTE}{_GAP}{_BYTE}{_GAP}{_BYTE}{_GAP}(\S.*)")


@dataclass(frozen=True)
class Classes:
    """Names, and the colour of each as 0xRRGGBB where the file has them."""

    names: list[str]
    table: list[int] | None = None


def read_classes(path: Path) -> Classes | None:
    """One name a line, or with a colour ``road 128 64 128`` or ``128 64 128 road``; empty lines do not count."""
    lines = text_lines(path)
    if lines is None:
        return None
    read = [_read_line(line) for line in lines]
    colours = [colour for _, colour in read if colour is not None]
    if colours and len(colours) < len(read):
        line = next(line for line, (_, colour) in zip(lines, read) if colour is None)
        raise ValueError(
            f"{path.name} has {len(colours)} classes with colours and {cut(shown(line), 40)!r} without; want lines "
            "`name r g b` for all or for none"
        )
    names = [shown(name) for name, _ in read]
    twice = [name for name, times in Counter(names).items() if times > 1]
    twice += [f"#{colour:06x}" for colour, times in Counter(colours).items() if times > 1]
    if len(names) < 2 or twice:
        where = cut(shown(str(path)), 90)
        raise ValueError(
            f"{where} names {len(names)} classes{f', {listed(twice, 40)} twice' if twice else ''}; want two or more"
        )
    return Classes(names, colours or None)


def text_lines(path: Path) -> list[str] | None:
    """The lines of a text that are not empty; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{cut(shown(str(path)), 90)} is not text in UTF-8; save it as such") from None


def _read_line(line: str) -> tuple[str, int | None]:
    if found := _NAME_FIRST.fullmatch(line):
        name, parts = found[1], found.groups()[1:]
    elif found := _COLOUR_FIRST.fullmatch(line):
        name, parts = found[4], found.groups()[:3]
    else:
        return line, None
    red, green, blue = map(int, parts)
    return (name, red << 16 | green << 8 | blue) if max(red, green, blue) < 256 else (line, None)
