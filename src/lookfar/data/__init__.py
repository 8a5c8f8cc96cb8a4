"""Data sets by one word: ``scenes:lookup``, ``camvid:PATH``, ``cifar10:PATH``, or just the ``PATH`` of a folder."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lookfar._options import Range, check, choice
from lookfar.data._base import IGNORE, Augment, Data, MemorySamples, Sample, Samples, Target
from lookfar.data._usual import EMBEDDED, OF_TARGET, Usual
from lookfar.data._words import cut, shown
from lookfar.data._worlds import WORLDS
from lookfar.data.scenes import open_scenes

__all__ = [
    "EMBEDDED",
    "IGNORE",
    "KINDS",
    "Augment",
    "Data",
    "MemorySamples",
    "Sample",
    "Samples",
    "Target",
    "Usual",
    "open_data",
    "target_of",
    "usual",
]

KINDS = {
    "scenes": f"{' or '.join(f'scenes:{name}' for name in WORLDS)}, embedded",
    "folder": "folder:PATH or just PATH, with images, masks and classes.txt",
    "camvid": "camvid:PATH",
    "voc": "voc:PATH",
    "cityscapes": "cityscapes:PATH",
    "oxford-iiit-pet": "oxford-iiit-pet:PATH, its trimaps",
    "classify": "classify:PATH or just PATH, with a folder of images for each class",
    "cifar10": "cifar10:PATH",
    "cifar100": "cifar100:PATH",
    "fashion-mnist": "fashion-mnist:PATH",
    "stl10": "stl10:PATH",
    "flowers102": "flowers102:PATH",
    "food101": "food101:PATH",
    "oxford-iiit-pet-category": "oxford-iiit-pet-category:PATH, its breeds",
    "imagenet": "imagenet:PATH",
}
Value = int | str  # in a mask: a number, or a colour as "#rrggbb"
LABELLED = tuple(KINDS)[tuple(KINDS).index("classify") :]  # those with one label an image
_DOWNLOADABLE = ("voc", "oxford-iiit-pet", *LABELLED[1:-1])


def open_data(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    val: str | float | None = None,
    also_val: str | float | None = None,
    in_chans: int = 3,
    ignore: Sequence[Value] | str = (),
    labels: Sequence[Value] | str = (),
    classes: int | None = None,
    exif: str | None = None,
    skip_bad: bool = False,
    crop_pct: float | None = None,
    flip: bool = True,
    root: str | Path | None = None,
    download: bool = False,
) -> Data:
    """Open a data set; every file is read once, and what would break training later is raised here.

    Args:
        spec: One of :data:`KINDS`, as in ``"scenes:lookup"`` or a path.
        size: Height and width that the network sees; by default the images' own, or their median where they differ.
        val: What validates instead of the given split: a share of train (``0.2``), a folder, or the beginning of names
            in train, such as the sequence ``"0001TP"`` of CamVid.
        also_val: A second set to judge by, named in the same way; it leaves train and is used for nothing else.
        in_chans: Bands of an image. Grey and RGB are made of each other, alpha is dropped; other counts must agree.
        ignore: Mask values without a label, besides 255: numbers, or colours as ``"#rrggbb"``.
        labels: The value in the files of class 0, 1, 2 ..., in this order: ``[0, 128, 255]``, ``"1-150"`` or
            ``["#000000", "#800000"]``; 255 among them is a class.
        classes: How many classes there are, where no names say it and the masks do not show them all.
        exif: Whether images whose masks fit both ways are turned by their EXIF orientation. Where only one way fits,
            that way is taken without asking.
        skip_bad: Leave out damaged files and those without a partner, files that are in two classes or sets, classes
            without images; ``facts`` counts them.
        crop_pct: Share of the shorter side that validation sees of images with one label, where they have another size
            than ``size``; by default 0.875. Networks of timm say what they were judged at.
        flip: Whether training sees mirror images too; False where left and right are not the same, as for digits.
        root: The folder that a relative path starts from; by default the current one.
        download: Fetch a public set where it is missing; ``cityscapes`` and ``imagenet`` cannot be fetched.

    Returns:
        The data set; its ``facts`` are for the reader.

    Raises:
        ValueError: The spec or an option is unknown, masks hold values that belong to no class, or files are damaged.
        FileNotFoundError: Nothing is there.

    >>> data = open_data("scenes:lookup")
    >>> data.classes
    ['background', 'digit odd', 'digit even', 'square odd', 'square even']
    >>> images, masks = data.batch(seed=0, step=0, batch_size=4)
    >>> images.shape, masks.shape
    (torch.Size([4, 3, 64, 64]), torch.Size([4, 64, 64]))
    """
    kind, _, rest = spec.partition(":")
    if kind == "scenes":
        scenes = _scenes_kind(rest)
        own = WORLDS[scenes].size
        given = (size or own, val, also_val, in_chans, tuple(ignore), tuple(labels), classes, exif, download)
        if (*given, crop_pct, flip) != (own, None, None, 3, (), (), None, None, False, None, True):
            raise ValueError(
                f"{spec} is embedded as it is: {WORLDS[scenes].things} with their own validation; want no such option"
            )
        return open_scenes(scenes, spec)
    kind, path = _kind_and_path(spec, root)
    if download and kind not in _DOWNLOADABLE:
        raise ValueError(f"{kind} cannot be downloaded; {', '.join(_DOWNLOADABLE)} can")
    _check_options(size, in_chans, classes, exif)
    if crop_pct is not None:
        check("crop_pct", crop_pct, Annotated[float, Range(0, 1, above=True)])
    wanted, also = (None if text is None else str(text) for text in (val, also_val))
    options = {"size": size, "in_chans": in_chans, "exif": exif, "skip_bad": skip_bad, "flip": flip}
    if kind in LABELLED:
        given = [name for name, value in (("ignore", ignore), ("labels", labels), ("classes", classes)) if value]
        if given:
            raise ValueError(f"--{given[0]} is for masks; what the classes of {cut(shown(spec), 60)} are is known")
        return _open_classes(spec, kind, path, wanted, also, download, {**options, "crop_pct": crop_pct})
    if crop_pct is not None:
        raise ValueError(f"--crop-pct is for images with one label: {cut(shown(spec), 60)} has masks")
    options |= {"ignore": ignore, "labels": labels, "classes": classes}
    return _open_masks(spec, kind, path, wanted, also, download, options)


def _kind_and_path(spec: str, root: str | Path | None = None) -> tuple[str, Path]:
    """What kind of data on disk, and where; a ``PATH`` alone is read as what it holds."""
    kind, colon, rest = spec.partition(":")
    path = Path(root or ".", Path(rest).expanduser())
    if kind in KINDS and colon and kind not in ("folder", "classify"):
        return kind, path
    plain = kind not in KINDS or not colon
    path = Path(root or ".", Path(spec).expanduser()) if plain else path
    if not path.exists():
        if plain and spec in KINDS:
            raise FileNotFoundError(f"{spec} needs a path: {spec}:PATH")
        if "/" in spec and ":" not in spec:
            raise FileNotFoundError(
                f"no data called {cut(shown(spec), 40)!r}: there is no such folder; want a folder of images "
                "(docs/data.md), or scenes:lookup for a first try"
            )
        raise FileNotFoundError(
            f"no data called {cut(shown(spec), 40)!r}{_nearest(spec)}; want a folder, scenes:lookup, or one of "
            f"{', '.join([*KINDS][2:])} with :PATH"
        )
    if not path.is_dir():
        raise ValueError(_no_folder(path))
    if not plain:
        return kind, path
    from lookfar.data.class_folders import holds_classes

    return "classify" if holds_classes(path) else "folder", path


def _no_folder(path: Path) -> str:
    where, ending = cut(shown(str(path)), 80), path.suffix.lower()
    if ending in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"):
        return f"{where} is an archive: unpack it, and give its folder"
    if ending in (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".parquet"):
        return (
            f"{where} is a file; labels in tables are not read. Want a folder with CLASS/*.png, a folder a class, or "
            "with images and masks"
        )
    return f"{where} is a file; want a folder"


def _open_classes(
    spec: str, kind: str, path: Path, val: str | None, also_val: str | None, download: bool, options: dict[str, Any]
) -> Data:
    from lookfar.data import class_folders, torchvision_classes
    from lookfar.data._labelled import ClassOptions, open_labelled

    chosen = ClassOptions(**options)
    if kind == "classify":
        source = class_folders.read_class_folders(path, val, skip_bad=chosen.skip_bad)
        if not spec.startswith("classify:"):
            source.notes.append("read as a folder for each class, since it holds no masks; folder:PATH reads masks.")
    else:
        source = torchvision_classes.read(kind, path, val, download=download)
    if also_val is not None:
        source.also, notes = class_folders.hold_out(source.train, also_val, source.find, option="--also-val")
        source.notes += notes
    return open_labelled(source, spec, chosen)


def _open_masks(
    spec: str, kind: str, path: Path, val: str | None, also_val: str | None, download: bool, options: dict[str, Any]
) -> Data:
    # torchvision loads slowly, and the embedded scenes need none of it
    from lookfar.data import camvid, folder, torchvision_sets
    from lookfar.data._files import Options, open_files
    from lookfar.data._matching import hold_out
    from lookfar.data._values import parse_values

    values = {name: parse_values(options[name], f"--{name}") for name in ("ignore", "labels")}
    chosen = Options(**{**options, **values})
    if kind == "folder":
        source = folder.read_folder(path, val)
    elif kind == "camvid":
        source = camvid.read_camvid(path, val)
    else:
        source = torchvision_sets.read(kind, path, download=download)
        source.find = lambda text: folder.find_split(path, text)
        if val is not None:
            split, source.notes = hold_out(source.train, val, source.find)
            source.val = split.pairs
            source.leave(split)
    if also_val is not None:
        split, notes = hold_out(source.train, also_val, source.find, option="--also-val")
        source.also = split.pairs
        source.leave(split)
        source.notes += notes
    return open_files(source, spec, chosen)


def target_of(spec: str) -> Target:
    """What is labelled in a data set, as :attr:`Data.target` says it, told without opening one image.

    Args:
        spec: As for :func:`open_data`.

    Raises:
        ValueError: No such scenes; a folder that may be read in two ways.
        FileNotFoundError: Nothing is there.

    >>> target_of("scenes:lookup"), target_of("scenes:red")
    ('mask', 'class')
    """
    kind, _, rest = spec.partition(":")
    if kind == "scenes":
        return WORLDS[_scenes_kind(rest)].target
    return "class" if _kind_and_path(spec)[0] in LABELLED else "mask"


def usual(spec: str) -> Usual:
    """Host, steps and batch size that fit a data set, told without opening one image.

    Args:
        spec: As for :func:`open_data`.

    >>> usual("scenes:lookup").steps, usual("camvid:data/CamVid").host
    (1000, 'resnet18')
    """
    if spec in EMBEDDED:
        return EMBEDDED[spec]
    try:
        return OF_TARGET[target_of(spec)]
    except FileNotFoundError:  # opening them says so
        return Usual()


def _scenes_kind(word: str) -> str:
    if word not in WORLDS:
        raise ValueError(f"no scenes called {word!r}; want {' or '.join(f'scenes:{name}' for name in WORLDS)}")
    return word


def _check_options(size: tuple[int, int] | None, in_chans: int, classes: int | None, exif: str | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"{size=}, want (height, width)")
    if in_chans < 1:
        raise ValueError(f"{in_chans=}, want 1 or more")
    check("classes", classes, int | None)
    choice("exif", exif, ("apply", "ignore", None))


def _nearest(spec: str) -> str:
    kind = spec.partition(":")[0]
    near = difflib.get_close_matches(kind, KINDS, n=1) if not Path(spec).is_absolute() else []
    return f" (did you mean {near[0]}?)" if near else ""
