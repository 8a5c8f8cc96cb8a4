"""``folder:PATH``, or just ``PATH``: images and masks in folders, matched by name, with an optional ``classes.txt``.

Three layouts are understood; the words have the usual synonyms (``labels`` for masks, ``valid`` for val, ...)::

    PATH/train/images  PATH/train/masks  PATH/val/images  PATH/val/masks
    PATH/images/train  PATH/images/val   PATH/masks/train PATH/masks/val
    PATH/images        PATH/masks        with a share, a sequence or another folder for validation
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from lookfar.data._files import Source
from lookfar.data._reading import IMAGE_SUFFIXES, MASK_SUFFIXES
from lookfar.data.scan import Pair, shorten

IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASKS = ("masks", "mask", "labels", "label", "annotations", "ann_dir", "gt", "SegmentationClass")
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
MASK_ENDINGS = ("_mask", "_label", "_labels", "_seg", "_gt", "-mask", ".mask")
VAL_SHARE = 0.2


def read_folder(root: Path, val: str | None = None) -> Source:
    """The source of a folder; ``val`` is a share as ``"0.2"``, another folder or the prefix of a sequence."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    splits = _find_layout(root)
    if "train" not in splits:
        inside = shorten(sorted(path.name for path in root.iterdir()), 8) or "nothing"
        raise ValueError(
            f"no images and masks in {root}: it holds {inside}. Want train/images, train/masks, val/images, val/masks; "
            "or images/train, images/val, masks/train, masks/val; or images, masks"
        )
    classes = read_classes(root / "classes.txt")
    source = Source(root, [], [], classes, "classes.txt" if classes else "")
    source.train, source.unmatched = match(*splits["train"])
    if "val" in splits and val is None:
        source.val, unmatched = match(*splits["val"])
        source.unmatched += unmatched
    else:
        hold_out(source, val or str(VAL_SHARE), find_images_and_masks)
    return source


def _find_layout(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> folder of images, folder of masks."""
    splits = {}
    images, masks = _child(root, IMAGES), _child(root, MASKS)
    for split, words in (("train", TRAIN), ("val", VAL)):
        folder = _child(root, words)
        split_first = (_child(folder, IMAGES), _child(folder, MASKS)) if folder else (None, None)
        kind_first = (_child(images, words), _child(masks, words)) if images and masks else (None, None)
        for pair in (split_first, kind_first):
            if pair[0] and pair[1]:
                splits.setdefault(split, pair)
    if images and masks and not splits:
        splits["train"] = (images, masks)
    return splits


def find_images_and_masks(folder: Path) -> tuple[Path, Path] | None:
    """The two folders in a folder, or None."""
    images, masks = _child(folder, IMAGES), _child(folder, MASKS)
    return (images, masks) if images and masks else None


def _child(folder: Path, names: Collection[str]) -> Path | None:
    """The first sub-folder with one of the names, whatever their case."""
    present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def match(images: Path, masks: Path) -> tuple[list[Pair], list[str]]:
    """Pairs of one name up to the suffix, sorted, and the files without a partner; sub-folders are part of the name."""
    pictures, labels = _by_stem(images, IMAGE_SUFFIXES), _by_stem(masks, MASK_SUFFIXES)
    for stem in [stem for stem in labels if stem not in pictures]:
        plain = next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)
        if plain in pictures and plain not in labels:
            labels[plain] = labels.pop(stem)
    pairs = [Pair(stem, pictures[stem], labels[stem]) for stem in sorted(pictures.keys() & labels.keys())]
    alone = sorted([*(pictures.keys() - labels.keys()), *(labels.keys() - pictures.keys())])
    unmatched = [_short(pictures.get(stem) or labels[stem]) for stem in alone]
    return pairs, unmatched


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"two files of one name in {folder}: {found[stem].name} and {path.name}")
        found[stem] = path
    return found


def hold_out(source: Source, val: str, find: Callable[[Path], tuple[Path, Path] | None]) -> None:
    """Fill ``source.val``: a share of train, another folder, or the images of train whose names start with ``val``.

    Args:
        source: Its ``train`` is filled; what is held out leaves it.
        val: ``"0.2"``, a folder (also relative to the root), or a sequence such as ``"0001TP"``.
        find: A folder -> its images and masks, or None.
    """
    if _is_share(val):
        share = float(val)
        if not 0 < share < 1:
            raise ValueError(f"a share of {val} for validation; want a number between 0 and 1, a folder or a sequence")
        by_chance = sorted(source.train, key=lambda pair: hashlib.blake2b(pair.name.encode()).digest())
        chosen = set(by_chance[: max(round(share * len(by_chance)), 1)])
        source.notes.append(
            f"val is {share:.0%} of the images, chosen by their names. If they are frames of videos, hold out a whole "
            "one: --val SEQUENCE."
        )
    elif folder := next((f for f in (source.root / val, Path(val).expanduser()) if f.is_dir()), None):
        pair = find(folder)
        if pair is None:
            raise ValueError(f"no images and masks in {folder}, which is to be the validation set")
        source.val, unmatched = match(*pair)
        source.unmatched += unmatched
        source.notes.append(f"val is {folder}.")
        return
    else:
        chosen = {p for p in source.train if re.match(re.escape(val) + r"(?![a-zA-Z0-9])", p.name)}
        if not chosen:
            beginnings = (re.match(r".+?(?=[_./-])", p.name) for p in source.train)
            sequences = Counter(found[0] for found in beginnings if found)
            known = shorten([f"{name} ({count})" for name, count in sequences.most_common() if count > 1], 8)
            raise ValueError(
                f"validation on {val!r}: neither a share between 0 and 1, nor a folder, nor the beginning of names in "
                f"train{f'; these begin with {known}' if known else ''}"
            )
        source.notes.append(f"val is the sequence {val}, held out of train; the given val is not used.")
    source.val = [pair for pair in source.train if pair in chosen]
    source.train = [pair for pair in source.train if pair not in chosen]


def _is_share(text: str) -> bool:
    """A share has a point: ``0002`` may well be a sequence."""
    return re.fullmatch(r"-?\d*\.\d*", text) is not None and text.strip("-.") != ""


def read_classes(path: Path) -> list[str] | None:
    """One name a line; empty lines do not count."""
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if len(names) < 2 or twice:
        raise ValueError(
            f"{path} names {len(names)} classes{f', {shorten(twice)} twice' if twice else ''}; want two or more"
        )
    return names
