"""``classify:PATH``, or a ``PATH`` without masks: a folder of images for each class, as ImageFolder reads it.

Two layouts are understood; ``valid``, ``validation``, ``dev`` ... are val, sub-folders of a class are part of it::

    PATH/train/cat  PATH/train/dog  PATH/val/cat  PATH/val/dog
    PATH/cat        PATH/dog        with a share, a sequence or another folder for validation

Classes are numbered in the order of ImageFolder, by the code points of their folders' names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lookfar.data._class_names import rename_classes
from lookfar.data._heads import Labelled
from lookfar.data._labelled import ClassSource, Find
from lookfar.data._matching import find_folder, is_called, is_data_folder, is_share, pick, same_name, walk
from lookfar.data._reading import IMAGE_SUFFIXES
from lookfar.data._words import counted, cut, fitted, grouped, listed, shown
from lookfar.data.folder import IMAGES, MASKS, SPLITS, VAL_SHARE, mask_folders

_WORDS = {word for words in SPLITS.values() for word in words}
_MASKS = {name.lower() for name in MASKS}
_OF_MASKS = _MASKS | {name.lower() for name in IMAGES}
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".parquet"}
_OF_SYSTEMS = {"thumbs.db", "desktop.ini", "classes.txt"}


@dataclass
class _Layout:
    """Folders of a data set by their names: ``splits`` hold class folders, ``others`` images or nothing."""

    splits: dict[str, Path] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)

    def word(self, split: str) -> str | None:
        """What a split is called, such as ``valid``; None where it is not there."""
        by_word = {name.lower(): name for name in self.splits}
        return next((by_word[word] for word in SPLITS[split] if word in by_word), None)

    @property
    def holding(self) -> dict[str, Path]:
        """The others that hold images."""
        return {name: path for name, path in self.others.items() if _any_image(path)}


def _find_layout(root: Path) -> _Layout:
    layout = _Layout()
    for name, path in _folders(root).items():
        split = name.lower() in _WORDS and any(map(_any_image, _folders(path).values()))
        (layout.splits if split else layout.others)[name] = path
    return layout


def _folders(folder: Path) -> dict[str, Path]:
    """Sub-folders that hold data, in ImageFolder's order."""
    return {path.name: path for path in sorted(folder.iterdir(), key=lambda path: path.name) if _is_folder(path)}


def _is_folder(path: Path) -> bool:
    if not (is_data_folder(path.name) and path.is_dir()):
        return False
    # a study that is kept beside its data is none of its classes, nor is a folder of studies
    return not _is_study(path) and not (any(inside := [*path.iterdir()]) and all(map(_is_study, inside)))


def _is_study(path: Path) -> bool:
    return (path / ".lock").exists() or (path / "study.yaml").exists()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _any_image(folder: Path) -> bool:
    return any(map(_is_image, walk(folder)))


# ---- which reading -----------------------------------------------------------------------------------------------


def holds_classes(root: Path) -> bool:
    """Whether a folder is read as a folder for each class, rather than as images and masks.

    Raises:
        ValueError: Both readings make sense.
    """
    if not root.is_dir():
        return False
    layout, masks = _find_layout(root), mask_folders(root)
    train = layout.word("train")
    inside = {} if train is None else _folders(layout.splits[train])
    names = _names_of_classes(inside, masks)
    if len(names) < (2 if masks else 1):
        names = _names_of_classes(layout.holding, masks)
        splits = sum(name.lower() in _WORDS for name in names)
        # folders elsewhere than beside images and masks are what they were before there were classes: not used
        if len(names) < 2 or splits > 1 or (masks and (splits or root not in {path.parent for path in masks})):
            return False
    if masks:
        where, held = cut(shown(str(root)), 60), [shown(path.relative_to(root).as_posix()) for path in masks]
        raise ValueError(
            f"{where} holds images and masks ({listed(held, 40)}) and folders of images ({listed(names, 30)}). Which? "
            "folder:PATH reads the masks, classify:PATH a folder a class"
        )
    return True


def _names_of_classes(folders: Mapping[str, Path], masks: Sequence[Path]) -> list[str]:
    """Folders that may be classes: neither called as images or masks are, nor found to be that."""
    return [shown(name) for name, path in folders.items() if name.lower() not in _OF_MASKS and path not in masks]


# ---- reading -----------------------------------------------------------------------------------------------------


def read_class_folders(root: Path, val: str | None = None, *, skip_bad: bool = False) -> ClassSource:
    """The source of a folder; ``val`` is a share as ``"0.2"``, another folder or split, or the prefix of a sequence.

    Raises:
        ValueError: No class folders are there, one has no images, or those of a split are not those of train.
        FileNotFoundError: No such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {cut(shown(str(root)), 120)}")
    layout = _find_layout(root)
    train = layout.word("train")
    notes = _check_layout(root, layout, train)
    reader = _Reader(root if train is None else layout.splits[train], skip_bad, _judges(layout, root, val))
    source = ClassSource(root, reader.read(reader.train), [], *rename_classes(reader.folders, root), notes=notes)
    splits = {name.lower(): path for name, path in layout.splits.items() if name != train}
    source.find = partial(_find_set, root, splits, reader)
    word = layout.word("val") or layout.word("test")
    if val is None and word is not None:
        source.val = reader.read(splits[word.lower()])
        notes += [f"{word} is used for validation: there is no val."] if word.lower() in SPLITS["test"] else []
    else:
        source.val, said = hold_out(source.train, val or VAL_SHARE, source.find)
        notes += said
        word = val
    for other, path in splits.items():
        if other != (word or "").lower():
            notes.append(f"{shown(path.name)} is not used; --val {shown(path.name)} judges by it.")
    notes += reader.notes
    held = {file.image for file in source.val}
    # for val in a sub-folder of train; where val is all of train, the check for files that are there twice reports it
    source.train = [file for file in source.train if file.image not in held] or source.train
    return source


def hold_out(train: list[Labelled], val: str, find: Find, *, option: str = "--val") -> tuple[list[Labelled], list[str]]:
    """What ``val`` means: a share of each class, another folder or split, or the images whose names start so.

    Args:
        train: What is held out leaves it.
        val: ``"0.2"``, a folder, a split such as ``"test"``, or the beginning of names within their classes.
        find: A set by its name.
        option: How the user gave it.

    Returns:
        The images held out, and what is to be said about them.
    """
    if not is_share(val) and (files := find(val)) is not None:
        return files, [is_called(val, option)]
    chosen, notes = pick([file.name for file in train], val, option, classes=True)
    held = [file for file in train if file.name in chosen]
    train[:] = [file for file in train if file.name not in chosen]
    return held, notes


def _judges(layout: _Layout, root: Path, val: str | None) -> Path | None:
    """The folder that the user validates on, where it lies beside the classes and holds folders called like them."""
    folder = None if val is None or is_share(val) else find_folder(root, val)
    inside = folder and folder.parent == root and {same_name(name) for name in _folders(folder)}
    return folder if inside and inside & {same_name(name) for name in layout.others} else None


def _find_set(root: Path, splits: dict[str, Path], reader: "_Reader", text: str) -> list[Labelled] | None:
    folder = splits.get(text.lower()) or find_folder(root, text)
    if folder is None or (folder.parent == reader.train and folder != reader.judges):
        return None  # the folder of a class is no set: its name may be the beginning of names
    return reader.read(folder)


def _check_layout(root: Path, layout: _Layout, train: str | None) -> list[str]:
    """Notes on what is beside the classes; raises where it is not clear which folders are the classes."""
    where, beside = cut(shown(str(root)), 60), [shown(name) for name in layout.holding]
    if train is not None:
        if len(beside) > 1 and len(layout.splits) == 1:
            raise ValueError(
                f"{where} holds {shown(train)} with folders of images, and others beside it ({listed(beside, 40)}). "
                f"Which are the classes? Give classify:PATH/{shown(train)}, or a folder that holds them alone"
            )
        return [f"{listed(beside, 60)}: beside {shown(train)}, not used."] if beside else []
    if layout.splits:
        raise ValueError(
            f"{where} holds class folders in {listed([*map(shown, layout.splits)], 40)}, and no train. Want "
            "train/CLASS and val/CLASS, or classify:PATH of the folder of all classes, of which a share validates"
        )
    words = [name for name in beside if name.lower() in _WORDS]
    if len(words) > 1 or words == beside:
        tables = sorted(shown(p.name) for p in root.rglob("*") if p.suffix.lower() in _TABLES)[:9] if root else []
        hint = f". Labels in tables ({listed(tables, 30)}) are not read" if tables else ""
        inside = listed(sorted(shown(path.name) for path in root.iterdir()), 50) or "nothing"
        raise ValueError(
            f"no class folders in {where}: it holds {inside}{hint}. Want train/CLASS/*.png and val/CLASS/*.png, or "
            "CLASS/*.png"
        )
    return [f"{words[0]} is a class: it holds images, and no folders of images."] if words else []


class _Reader:
    """Reads sets of one data set: the classes are the folders of the first."""

    def __init__(self, train: Path, skip_bad: bool, judges: Path | None = None) -> None:
        self.train, self.skip_bad, self.judges = train, skip_bad, judges
        self.notes: list[str] = []
        found = {name: path for name, path in _folders(train).items() if path != judges}
        empty = [name for name, path in found.items() if not _any_image(path)]
        if empty and not skip_bad:
            raise ValueError(
                fitted(
                    lambda room: (
                        f"{counted(empty, 'folder')} without images in {cut(shown(str(train)), 60)}: "
                        f"{listed([*map(shown, empty)], room)}. Fill or remove them, or give --skip-bad to go on "
                        "without these classes"
                    )
                )
            )
        if empty:
            self.notes.append(f"no classes, since they hold no images: {listed([*map(shown, empty)], 60)}.")
        self.folders = [name for name in found if name not in empty]
        self.labels = {same_name(name): label for label, name in enumerate(self.folders)}
        if len(self.labels) < len(self.folders):
            twice = [n for n, c in Counter(map(same_name, self.folders)).items() if c > 1]
            raise ValueError(f"two folders of one name in {cut(shown(str(train)), 90)}: {listed(twice, 60)}")
        of_masks = [name for name in self.folders if name.lower() in _OF_MASKS]
        if len({name.lower() in _MASKS for name in of_masks}) == 2:
            raise ValueError(
                f"{cut(shown(str(train)), 80)} holds images and masks ({listed(of_masks, 50)}), which are not classes. "
                "Want folder:PATH, or a folder for each class"
            )
        if len(self.folders) < 2:
            raise ValueError(self._one_class())

    def _one_class(self) -> str:
        name = self.folders[0] if self.folders else ""
        inside = _folders(self.train / name)
        where = f"{cut(shown(str(self.train)), 70)} holds one class{f', {cut(shown(name), 30)}' if name else ''}"
        if len(inside) > 1:
            return f"{where}, which holds {listed([*map(shown, inside)], 40)}. Are these the classes? Give " + (
                f"classify:PATH/{cut(shown(name), 30)}"
            )
        return f"{where}: nothing to tell apart. Want a folder for each of two classes or more"

    def read(self, folder: Path) -> list[Labelled]:
        """The images of a set."""
        files, unread, deep = [], Counter(), 0
        if folder != self.train:
            self._compare(folder)
        for name, path in _folders(folder).items():
            label = self.labels.get(same_name(name))
            if label is None:
                continue
            self._refuse_splits(path)
            start = len(path.as_posix()) + 1
            for image in walk(path):
                if _is_image(image):
                    files.append(Labelled(shown(f"{name}/{image.as_posix()[start:]}"), image, label))
                    deep += image.parent != path
                elif not image.name.startswith(".") and image.name.lower() not in _OF_SYSTEMS:
                    unread[image.suffix.lower() or "no ending"] += 1
        where = shown(folder.name)
        if deep:
            self.notes.append(f"{counted(deep, 'image')} of {where} in sub-folders of the class folders.")
        if unread:
            kinds = ", ".join(f"{shown(kind)} {grouped(count)}" for kind, count in unread.most_common(5))
            self.notes.append(f"files of {where} that are not images, not read: {kinds}.")
        if loose := [path for path in sorted(folder.iterdir()) if _is_image(path)]:
            names = listed([shown(path.name) for path in loose], 50)
            if len(loose) > len(files):
                raise ValueError(f"most images of {where} ({names}) lie in no class folder: they have no label")
            self.notes.append(f"{counted(loose, 'image')} of {where} in no class folder, not used: {names}.")
        return files

    def _compare(self, folder: Path) -> None:
        """Folders of a set must be those of train."""
        found = {same_name(name): path for name, path in _folders(folder).items()}
        where = cut(shown(str(folder)), 50)
        if not found.keys() & self.labels.keys():
            raise ValueError(
                f"{where} has no class folder of train ({listed([*map(shown, self.folders)], 40)}): it holds "
                f"{listed(sorted(shown(path.name) for path in folder.iterdir()), 40) or 'nothing'}"
            )
        filled = {name for name, path in found.items() if _any_image(path)}
        new = [shown(name) for name in found if name not in self.labels]
        missing = [shown(name) for name in self.labels if name not in filled]
        parts = [f"{word} {listed(names, 50)}" for names, word in ((missing, "no"), (new, "but")) if names]
        if not parts:
            return
        text = f"classes of {where} are not those of train: {', '.join(parts)}"
        if not self.skip_bad:
            raise ValueError(f"{text}. Correct them, or give --skip-bad to judge by the classes that both have")
        self.notes.append(f"{text}.")

    def _refuse_splits(self, path: Path) -> None:
        """A class folder that holds splits would mix what is learned from with what is judged by."""
        words = [name for name in _folders(path) if name.lower() in _WORDS]
        if len({split for split, some in SPLITS.items() for word in words if word.lower() in some}) > 1:
            name = cut(shown(path.name), 30)
            raise ValueError(
                f"{name} holds {listed(words, 40)}: one class would mix them. Want {words[0]}/{name} and "
                f"{words[1]}/{name}, the class inside the split"
            )
