"""``camvid:PATH``: road scenes of CamVid with 11 classes, in the layout of the public SegNet tutorial.

``train`` and ``val`` hold images, ``trainannot`` and ``valannot`` their masks; label 11 ("unlabelled") is ignored.
Lists of pairs (``train.txt``, ``val.txt``) are followed where they exist; of their paths the last two parts count, the
published ones begin with a folder of the authors. Brostow, Fauqueur, Cipolla, Semantic object classes in video, Pattern
Recognition Letters 2009.

Validation is one short clip: ``val="0001TP"``, ``"0006R0"`` or ``"0016E5"`` holds that sequence out of train instead.
"""

from pathlib import Path

from lookfar.data._files import Source
from lookfar.data._matching import Split, find_folder, hold_out, match
from lookfar.data._words import cut, shown
from lookfar.data.folder import read_classes
from lookfar.data.scan import Pair

CLASSES = [
    "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist",
]  # fmt: skip
VOID = 11


def read_camvid(root: Path, val: str | None = None) -> Source:
    """The source of a CamVid folder; ``val`` as in :func:`lookfar.data._matching.hold_out`."""
    source = _source(root)
    train = _read_split(root, "train")
    source.train = train.pairs
    source.leave(train)
    if val is None:
        split = _read_split(root, "val")
    else:
        split, source.notes = hold_out(source.train, val, source.find)
    source.val = split.pairs
    source.leave(split)
    return source


def read_judged(root: Path, split: str) -> Source:
    """One split alone, ``test`` or a folder with its masks beside it; the others need not be there."""
    source = _source(root)
    found = _find(root, split) or _read_split(root, split)
    source.train = source.val = found.pairs
    source.leave(found)
    return source


def _source(root: Path) -> Source:
    """What is known before any file is looked for."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {cut(shown(str(root)), 120)}")
    found = read_classes(root / "classes.txt")
    classes, table = (found.names, found.table) if found else (CLASSES, None)
    labels = {VOID: 255} if len(classes) <= VOID else {}
    source = Source(root, [], [], list(classes), "classes.txt" if found else "the SegNet tutorial", table, labels)
    source.question = f"Name every pixel of a street scene seen from a car, {len(classes)} classes."
    source.find = lambda text: _find(root, text)
    return source


def _folders(folder: Path) -> tuple[Path, Path] | None:
    masks = folder.with_name(f"{folder.name}annot")
    return (folder, masks) if masks.is_dir() and folder.is_dir() else None


def _find(root: Path, text: str) -> Split | None:
    if text in ("train", "val", "test") and (root / f"{text}.txt").is_file():
        return _read_split(root, text)
    folder = find_folder(root, text)
    if folder is None:
        return None
    if (pair := _folders(folder)) is None:
        raise ValueError(
            f"no {cut(shown(folder.name), 60)}annot beside {cut(shown(str(folder)), 90)}, which is to judge"
        )
    return match(*pair)


def _read_split(root: Path, split: str) -> Split:
    table = root / f"{split}.txt"
    if table.is_file():
        return _read_table(root, table)
    folders = _folders(root / split)
    if folders is None:
        raise FileNotFoundError(f"no {cut(shown(str(table)), 90)}, and no {split} with {split}annot beside it")
    return match(*folders)


def _read_table(root: Path, table: Path) -> Split:
    """Lines of an image's path and its mask's; what does not exist is left without a partner."""
    pairs, missing = [], []
    for line in table.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines():
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2:
            text = cut(shown(line.strip()), 60)
            raise ValueError(f"{table.name}: {text!r}; want the paths of an image and of its mask")
        image, mask = (root.joinpath(*Path(word).parts[-2:]) for word in words)
        if image.is_file() and mask.is_file():
            pairs.append(Pair(shown(image.stem), image, mask))
        else:
            missing.append(image)
    return Split(pairs, missing)
