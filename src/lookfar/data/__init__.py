"""Data sets by one word: ``scenes:lookup``, ``camvid:PATH``, ``folder:PATH`` or just ``PATH``, ``voc:PATH``, ..."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from lookfar.data._base import IGNORE, Augment, Data, MemorySamples, Sample, Samples
from lookfar.data.scenes import CLASSES, SIZE, Task, open_scenes

__all__ = ["IGNORE", "KINDS", "Augment", "Data", "MemorySamples", "Sample", "Samples", "open_data"]

KINDS = {
    "scenes": "scenes:cue or scenes:lookup, embedded",
    "folder": "folder:PATH or just PATH, with images, masks and classes.txt",
    "camvid": "camvid:PATH",
    "voc": "voc:PATH",
    "cityscapes": "cityscapes:PATH",
    "oxford-iiit-pet": "oxford-iiit-pet:PATH",
}
_DOWNLOADABLE = ("voc", "oxford-iiit-pet")


def open_data(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    val: str | float | None = None,
    in_chans: int = 3,
    ignore: Sequence[int] = (),
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
        in_chans: Bands of an image. Grey and RGB are made of each other, alpha is dropped; other counts must agree.
        ignore: Mask values without a label, besides 255.
        skip_bad: Leave out damaged files and those without a partner, and count them in ``facts``.
        root: The folder that a relative path starts from; by default the current one.
        download: Fetch ``voc`` or ``oxford-iiit-pet`` where missing.

    Returns:
        The data set; its ``facts`` are for the reader.

    Raises:
        ValueError: The spec or an option is unknown, masks hold labels that do not exist, or files are damaged.
        FileNotFoundError: Nothing is there.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes":
        task = _scenes_task(rest)
        if (size or SIZE, val, in_chans, tuple(ignore), download) != (SIZE, None, 3, (), False):
            raise ValueError(f"{spec} is embedded as it is: 64×64, 3 bands, its own validation; want no such option")
        return open_scenes(task, spec)
    if kind not in KINDS or not colon:
        kind, rest = "folder", spec
    path = Path(root or ".", Path(rest).expanduser())
    if kind == "folder" and not path.exists():
        raise FileNotFoundError(
            f"no data called {spec!r}{_nearest(spec)}; want a folder or {', '.join(KINDS.values())}"
        )
    if download and kind not in _DOWNLOADABLE:
        raise ValueError(f"{kind} cannot be downloaded; {' and '.join(_DOWNLOADABLE)} can")
    _check_options(size, in_chans, ignore)

    # torchvision loads slowly, and the embedded scenes need none of it
    from lookfar.data import camvid, folder, torchvision_sets
    from lookfar.data._files import open_files

    wanted = None if val is None else str(val)
    if kind == "folder":
        source = folder.read_folder(path, wanted)
    elif kind == "camvid":
        source = camvid.read_camvid(path, wanted)
    else:
        source = torchvision_sets.read(kind, path, download=download)
        if wanted is not None:
            folder.hold_out(source, wanted, folder.find_images_and_masks)
    return open_files(source, spec, size=size, in_chans=in_chans, ignore=ignore, skip_bad=skip_bad)


def _scenes_task(word: str) -> Task:
    if word not in CLASSES:
        raise ValueError(f"no scenes called {word!r}; want {' or '.join(f'scenes:{task}' for task in CLASSES)}")
    return word


def _check_options(size: tuple[int, int] | None, in_chans: int, ignore: Sequence[int]) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"{size=}, want (height, width)")
    if in_chans < 1:
        raise ValueError(f"{in_chans=}, want 1 or more")
    if any(not 0 <= value < 65536 for value in ignore):
        raise ValueError(f"{ignore=}, want mask values from 0 to 65535")


def _nearest(spec: str) -> str:
    kind = spec.partition(":")[0]
    near = difflib.get_close_matches(kind, KINDS, n=1) if not Path(spec).is_absolute() else []
    return f" (did you mean {near[0]}?)" if near else ""
