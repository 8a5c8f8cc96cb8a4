"""``voc:ROOT``, ``cityscapes:ROOT``, ``oxford-iiit-pet:ROOT``: public sets through torchvision's own classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchvision import datasets

from lookfar.data._base import IGNORE
from lookfar.data._files import Source
from lookfar.data._words import shown
from lookfar.data.scan import Pair

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
PET_CLASSES = ["pet", "background", "border"]


def read(kind: str, root: Path, *, download: bool = False) -> Source:
    """The source of ``kind`` in ``root``, downloaded first where asked for."""
    if kind == "cityscapes":
        return read_cityscapes(root)
    return {"voc": read_voc, "oxford-iiit-pet": read_pets}[kind](root, download=download)


def read_voc(root: Path, *, download: bool = False) -> Source:
    """PASCAL VOC 2012 segmentation: 21 classes, borders ignored."""
    splits: list[list[Pair]] = []
    for split in ("train", "val"):
        with explained("voc", root, "ROOT/VOCdevkit/VOC2012, or download=True"):
            data = datasets.VOCSegmentation(root, year="2012", image_set=split, download=download)
        splits.append(_pairs(data.images, data.masks))
    return Source(root, splits[0], splits[1], list(VOC_CLASSES), "PASCAL VOC 2012")


def read_pets(root: Path, *, download: bool = False) -> Source:
    """Oxford-IIIT Pet trimaps: pet, background, border; the published test part serves as validation."""
    splits = []
    for split in ("trainval", "test"):
        with explained("oxford-iiit-pet", root, "ROOT/oxford-iiit-pet with images and annotations, or download=True"):
            data = datasets.OxfordIIITPet(root, split, target_types="segmentation", download=download)
        splits.append(_pairs(data._images, data._segs))
    labels = {1: 0, 2: 1, 3: 2, 0: IGNORE}
    return Source(root, splits[0], splits[1], list(PET_CLASSES), "Oxford-IIIT Pet", labels=labels)


def read_cityscapes(root: Path) -> Source:
    """Cityscapes, fine annotations: the 19 classes of its benchmark, everything else ignored."""
    splits = []
    for split in ("train", "val"):
        with explained("cityscapes", root, "ROOT/leftImg8bit and ROOT/gtFine, from cityscapes-dataset.com"):
            data = datasets.Cityscapes(str(root), split=split, mode="fine", target_type="semantic")
        splits.append(_pairs(data.images, [targets[0] for targets in data.targets]))
    scored = {c.train_id: c.name for c in datasets.Cityscapes.classes if 0 <= c.train_id < IGNORE}
    labels = {c.id: c.train_id if c.train_id in scored else IGNORE for c in datasets.Cityscapes.classes if c.id >= 0}
    question = f"Name every pixel of a street scene, {len(scored)} classes."
    names = [scored[i] for i in sorted(scored)]
    return Source(root, splits[0], splits[1], names, "Cityscapes", labels=labels, question=question)


def _pairs(images: list[str] | list[Path], masks: list[str] | list[Path]) -> list[Pair]:
    return [Pair(shown(Path(image).stem), Path(image), Path(mask)) for image, mask in zip(images, masks)]


@contextmanager
def explained(kind: str, root: Path, want: str) -> Iterator[None]:
    """torchvision's complaints about a folder, with what should be in it."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(f"{kind} is not in {root} ({error}); want {want}") from error
