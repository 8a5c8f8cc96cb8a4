"""One split of a data set alone, to judge by: what else lies there need not be there, and is not read."""

from collections.abc import Sequence
from pathlib import Path

from lookfar.data import KINDS, LABELLED, Value, open_data
from lookfar.data._base import Data
from lookfar.data._judging import WHITE


def open_judged(
    spec: str,
    split: str | None = None,
    *,
    ignore: Sequence[Value] | str = (),
    labels: Sequence[Value] | str = (),
    classes: int | None = None,
    exif: str | None = None,
    skip_bad: bool = False,
    in_chans: int = 3,
    white: float = WHITE,
) -> Data:
    """A data set whose ``val`` is a split; its ``train`` is no more than that.

    Args:
        spec: As for :func:`lookfar.data.open_data`.
        split: ``val``, ``test``, ``train``, or a folder of images and masks; by default the data set's own validation,
            and of a folder without splits all of it.
        ignore: Mask values without a label.
        labels: The mask value of class 0, 1, 2 ...
        classes: How many there are, where no names say it.
        exif: ``apply`` or ``ignore`` orientations where masks fit both ways.
        skip_bad: Leave out damaged files.
        in_chans: Bands of an image.
        white: The number that is white in images that do not hold bytes; by default the largest of 16 bits.

    Raises:
        ValueError: As :func:`lookfar.data.open_data` raises it.
        FileNotFoundError: Nothing is there.

    >>> len(open_judged("scenes:lookup").val)
    600
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes":
        return open_data(spec, val=split)
    if kind not in KINDS or not colon:
        kind, rest = "folder", spec
    if kind in LABELLED:
        raise ValueError(f"{spec} has a label for each image; want images with masks")
    root = Path(rest).expanduser()
    if not root.is_dir():
        return open_data(spec)  # which says what is wrong

    from lookfar.data import camvid, folder, torchvision_sets
    from lookfar.data._files import Options, Source, open_files
    from lookfar.data._values import parse_values

    if kind == "camvid":
        source = camvid.read_judged(root, split or "val")
    elif kind == "folder":
        source = folder.read_judged(root, split)
    else:
        whole = torchvision_sets.read(kind, root, download=False)
        found = folder.find_split(root, split) if split not in (None, "val", "train") else None
        if found is None and split not in (None, "val", "train"):
            raise ValueError(f"{kind} has no split {split!r}: want train, val, or a folder of images and masks")
        pairs = found.pairs if found else whole.train if split == "train" else whole.val
        source = Source(root, pairs, pairs, whole.classes, whole.classes_from, whole.table, whole.labels)
    parsed = parse_values(ignore, "--ignore"), parse_values(labels, "--labels")
    return open_files(source, spec, Options(None, in_chans, *parsed, classes, exif, skip_bad, white=white))
