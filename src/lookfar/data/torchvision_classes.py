"""``cifar10:ROOT``, ``stl10:ROOT``, ``food101:ROOT``, ...: public sets of images with one label each.

torchvision's own classes read and download them; images stay in their files, or in the arrays that torchvision made.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from lookfar.data._heads import Labelled
from lookfar.data._labelled import ClassSource
from lookfar.data._words import cut, shown
from lookfar.data.class_folders import hold_out, read_class_folders
from lookfar.data.torchvision_sets import explained

# kind: torchvision's class, its sets, where they lie
_SETS: dict[str, tuple[Callable[..., Any], tuple[str, ...], str]] = {
    "cifar10": (datasets.CIFAR10, ("train", "test"), "cifar-10-batches-py"),
    "cifar100": (datasets.CIFAR100, ("train", "test"), "cifar-100-python"),
    "fashion-mnist": (datasets.FashionMNIST, ("train", "test"), "FashionMNIST/raw"),
    "stl10": (datasets.STL10, ("train", "test"), "stl10_binary"),
    "flowers102": (datasets.Flowers102, ("train", "val", "test"), "flowers-102"),
    "food101": (datasets.Food101, ("train", "test"), "food-101"),
    "oxford-iiit-pet-category": (datasets.OxfordIIITPet, ("trainval", "test"), "oxford-iiit-pet"),
}
_BY_FLAG = ("cifar10", "cifar100", "fashion-mnist")  # train=True or False, where others have split="train"


def read(kind: str, root: Path, val: str | None = None, *, download: bool = False) -> ClassSource:
    """The source of ``kind`` in ``root``, downloaded first where asked for; test validates where there is no val.

    Raises:
        FileNotFoundError: It is not there.
    """
    if kind == "imagenet":
        return read_imagenet(root, val)
    make, words, where = _SETS[kind]
    source = ClassSource(root, [], [], [], kind, published=True)
    sets: dict[str, list[Labelled]] = {}
    arrays: dict[str, Any] = {}
    for word in words:
        with explained(kind, root, f"ROOT/{where}, or download=True"):
            choice = {"train": word == "train"} if kind in _BY_FLAG else {"split": word}
            data = make(root, **choice, download=download)
        labels = [int(label) for label in _first(data, "targets", "labels", "_labels")]
        names = getattr(data, "classes", None) or [f"class {k}" for k in range(max(labels) + 1)]
        source.classes = source.classes or [str(name) for name in names]
        files = _first(data, "_image_files", "_images")
        if files is None:
            arrays[word] = _array(data.data)
            files = [Path(word, f"{i:05}") for i in range(len(labels))]
        named = [f"{source.classes[label]}/{file.name}" for file, label in zip(files, labels)]
        if arrays:
            named = [f"{source.classes[label]}/{word}_{file.name}" for file, label in zip(files, labels)]
        sets[word] = [Labelled(shown(name), Path(file), label) for name, file, label in zip(named, files, labels)]
    source.arrays, source.find, source.train = arrays, sets.get, sets[words[0]]
    if val is None:
        source.val = sets.get("val") or sets["test"]
    else:
        source.val, source.notes = hold_out(source.train, val, source.find)
    return source


def _first(data: Any, *names: str) -> Any:
    """The first attribute that there is: torchvision's classes call the same things differently."""
    return next((getattr(data, name) for name in names if getattr(data, name, None) is not None), None)


def _array(images: Any) -> np.ndarray:
    """``(S, H, W)`` or ``(S, H, W, 3)``."""
    array = np.asarray(images)
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 and array.shape[1] == 3 else array


def read_imagenet(root: Path, val: str | None = None) -> ClassSource:
    """ImageNet as torchvision unpacks it: ``train`` and ``val`` with a folder for each class, names in ``meta.bin``."""
    if not all((root / split).is_dir() for split in ("train", "val")):
        where = cut(shown(str(root)), 80)
        raise FileNotFoundError(
            f"imagenet is not in {where}; want ROOT/train and ROOT/val with a folder for each class"
        )
    source = read_class_folders(root, val)
    source.published = True
    if (root / datasets.imagenet.META_FILE).is_file() and source.classes_from == "a folder each":
        words, _ = datasets.imagenet.load_meta_file(root)
        first = [words.get(wnid, (wnid,))[0] for wnid in source.classes]
        source.classes = [f"{n} ({wnid})" if first.count(n) > 1 else n for n, wnid in zip(first, source.classes)]
        source.classes_from = f"names from {datasets.imagenet.META_FILE}"
    return source
