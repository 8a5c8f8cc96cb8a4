"""Data sets by one word: ``scenes:lookup``, ``camvid:PATH``, ``folder:PATH`` or just ``PATH``, ``voc:PATH``, ..."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from lookfar._options import check, choice
from lookfar.data._base import IGNORE, Augment, Data, MemorySamples, Sample, Samples, Target
from lookfar.data._words import cut, shown
from lookfar.data._worlds import WORLDS
from lookfar.data.scenes import SIZE, open_scenes

__all__ = [
    "IGNORE",
    "KINDS",
    "Augment",
    "Data",
    "MemorySamples",
    "Sample",
    "Samples",
    "Target",
    "open_data",
    "target_of",
]

KINDS = {
    "scenes": f"{' or '.join(f'scenes:{name}' for name in WORLDS)}, embedded",
    "folder": "folder:PATH or just PATH, with images, masks and classes.txt",
    "camvid": "camvid:PATH",
    "voc": "voc:PATH",
    "cityscapes": "cityscapes:PATH",
    "oxford-iiit-pet": "oxford-iiit-pet:PATH",
}
Value = int | str  # in a mask: a number, or a colour as "#rrggbb"
_DOWNLOADABLE = ("voc", "oxford-iiit-pet")


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
        skip_bad: Leave out damaged files and those without a partner, and count them in ``facts``.
        root: The folder that a relative path starts from; by default the current one.
        download: Fetch ``voc`` or ``oxford-iiit-pet`` where missing.

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
    kind, colon, rest = spec.partition(":")
    if kind == "scenes":
        scenes = _scenes_kind(rest)
        given = (size or SIZE, val, also_val, in_chans, tuple(ignore), tuple(labels), classes, exif, download)
        if given != (SIZE, None, None, 3, (), (), None, None, False):
            raise ValueError(f"{spec} is embedded as it is: 64×64, 3 bands, its own validation; want no such option")
        return open_scenes(scenes, spec)
    if kind not in KINDS or not colon:
        kind, rest = "folder", spec
    path = Path(root or ".", Path(rest).expanduser())
    if kind == "folder" and not path.exists():
        raise FileNotFoundError(
            f"no data called {cut(shown(spec), 80)!r}{_nearest(spec)}; want a folder or {', '.join(KINDS.values())}"
        )
    if download and kind not in _DOWNLOADABLE:
        raise ValueError(f"{kind} cannot be downloaded; {' and '.join(_DOWNLOADABLE)} can")

    # torchvision loads slowly, and the embedded scenes need none of it
    from lookfar.data import camvid, folder, torchvision_sets
    from lookfar.data._files import Options, open_files
    from lookfar.data._matching import hold_out
    from lookfar.data._values import parse_values

    _check_options(size, in_chans, classes, exif)
    options = Options(
        size, in_chans, parse_values(ignore, "--ignore"), parse_values(labels, "--labels"), classes, exif, skip_bad
    )
    wanted = None if val is None else str(val)
    if kind == "folder":
        source = folder.read_folder(path, wanted)
    elif kind == "camvid":
        source = camvid.read_camvid(path, wanted)
    else:
        source = torchvision_sets.read(kind, path, download=download)
        source.find = lambda text: folder.find_split(path, text)
        if wanted is not None:
            split, source.notes = hold_out(source.train, wanted, source.find)
            source.val = split.pairs
            source.leave(split)
    if also_val is not None:
        split, notes = hold_out(source.train, str(also_val), source.find, option="--also-val")
        source.also = split.pairs
        source.leave(split)
        source.notes += notes
    return open_files(source, spec, options)


def target_of(spec: str) -> Target:
    """What is labelled in a data set, as :attr:`Data.target` says it, told without opening one image.

    Args:
        spec: As for :func:`open_data`.

    Raises:
        ValueError: No such scenes.

    >>> target_of("scenes:lookup"), target_of("scenes:red")
    ('mask', 'class')
    """
    kind, _, rest = spec.partition(":")
    return WORLDS[_scenes_kind(rest)].target if kind == "scenes" else "mask"


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
