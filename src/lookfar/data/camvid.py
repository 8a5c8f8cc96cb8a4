"""``camvid:PATH``: road scenes of CamVid with 11 classes, in the layout of the public SegNet tutorial.

``train`` and ``val`` hold images, ``trainannot`` and ``valannot`` their masks; label 11 ("unlabelled") is ignored.
Lists of pairs (``train.txt``, ``val.txt``) are followed where they exist; of their paths the last two parts count, the
published ones begin with a folder of the authors. Brostow, Fauqueur, Cipolla, Semantic object classes in video, Pattern
Recognition Letters 2009.

Validation is one short clip: ``val="0001TP"``, ``"0006R0"`` or ``"0016E5"`` holds that sequence out of train instead.
"""

from pathlib import Path

from lookfar.data._files import Source
from lookfar.data.folder import hold_out, match, read_classes
from lookfar.data.scan import Pair

CLASSES = [
    "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist",
]  # fmt: skip
VOID = 11


def read_camvid(root: Path, val: str | None = None) -> Source:
    """The source of a CamVid folder; ``val`` as in :func:`lookfar.data.folder.hold_out`."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    classes = read_classes(root / "classes.txt") or CLASSES
    origin = "classes.txt" if (root / "classes.txt").is_file() else "the SegNet tutorial"
    labels = {VOID: 255} if len(classes) <= VOID else {}
    source = Source(root, [], [], classes, origin, labels)
    source.task = f"Name every pixel of a street scene seen from a car, {len(classes)} classes."
    source.train, source.unmatched = _read_split(root, "train")
    if val is None:
        source.val, unmatched = _read_split(root, "val")
        source.unmatched += unmatched
    else:
        hold_out(source, val, _find)
    return source


def _find(folder: Path) -> tuple[Path, Path] | None:
    masks = folder.with_name(f"{folder.name}annot")
    return (folder, masks) if masks.is_dir() else None


def _read_split(root: Path, split: str) -> tuple[list[Pair], list[str]]:
    table = root / f"{split}.txt"
    if table.is_file():
        return _read_table(root, table)
    folders = _find(root / split)
    if folders is None or not folders[0].is_dir():
        raise FileNotFoundError(f"no {table}, and no {split} with {split}annot in {root}")
    return match(*folders)


def _read_table(root: Path, table: Path) -> tuple[list[Pair], list[str]]:
    """Lines of an image's path and its mask's; what does not exist is left without a partner."""
    pairs, missing = [], []
    for line in table.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2:
            raise ValueError(f"{table}: {line.strip()!r}; want the paths of an image and of its mask")
        image, mask = (root.joinpath(*Path(word).parts[-2:]) for word in words)
        if image.is_file() and mask.is_file():
            pairs.append(Pair(image.stem, image, mask))
        else:
            missing.append(f"{image.parent.name}/{image.name}")
    return pairs, missing
