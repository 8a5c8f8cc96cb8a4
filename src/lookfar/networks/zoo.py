"""What the name of a published file says: settings that no parameter shows, and the figure it was published with."""

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A checkpoint of mmsegmentation's table.

    Attributes:
        file: Name of the file.
        head: As mmsegmentation calls it.
        backbone: Such as ``R-50-D8``; ``b`` has the plain stem.
        dataset: What it was trained on.
        crop: Height and width it was trained at.
        miou: As published, in percent, with a single scale.
    """

    file: str
    head: str
    backbone: str
    dataset: str
    crop: tuple[int, int]
    miou: float | None


@functools.cache
def table() -> dict[str, Entry]:
    """All entries by the name of their file.

    >>> table()["ccnet_r50-d8_769x769_80k_cityscapes_20200617_010421-73eed8ca.pth"].miou
    79.29
    """
    with Path(__file__).with_name("zoo.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["checkpoint_file"]: Entry(
                row["checkpoint_file"],
                row["head"],
                row["backbone"],
                row["dataset"],
                tuple(int(n) for n in row["crop"].split("x")),  # type: ignore[arg-type]
                float(row["mIoU"]) if row["mIoU"] else None,
            )
            for row in csv.DictReader(file)
        }


_STRIDE = re.compile(r"(?:^|[_-])r\d+b?-d(8|16|32)(?:-mg(\d)(\d)(\d))?(?:[_-]|$)")
_CROP = re.compile(r"(?:^|[_-])(\d{3,4})x(\d{3,4})(?:[_.-]|$)")


_START = re.compile(r"([a-z0-9]+)[_-](?:d6[_-])?r(\d+)b?-d\d")


def network_of(name: str) -> tuple[str, int] | None:
    """Head and depth of the ResNet that a file's name tells, None where it tells none.

    >>> network_of("dnl_r101-d8_769x769_40k_cityscapes_20200820_171256-76c596df.pth")
    ('dnl', 101)
    """
    match = _START.match(name)
    return (match[1], int(match[2])) if match else None


def said_by(name: str) -> dict[str, Any]:
    """Arguments of :func:`lookfar.networks.create_network` that a file's name tells, by mmsegmentation's customs.

    Depth and stem are not among them: shapes tell those.

    >>> said_by("fcn_d6_r50-d16_769x769_40k_cityscapes_20210305_185744-1aab18ed.pth")
    {'output_stride': 16, 'dilations_of_stages': (1, 2), 'last_dilations': None, 'dilation': 6, 'align_corners': True}
    """
    found: dict[str, Any] = {}
    stem = name.removesuffix(Path(name).suffix)
    if match := _STRIDE.search(stem):
        found["output_stride"] = int(match[1])
        # D32 strides and dilates
        found["dilations_of_stages"] = {8: (2, 4), 16: (1, 2), 32: (2, 4)}[found["output_stride"]]
        found["last_dilations"] = None if match[2] is None else tuple(int(n) for n in match.groups()[1:])
        if re.match(r"fcn[_-]d6[_-]", stem):
            found["dilation"] = 6
        elif stem.startswith("fcn"):
            found["dilation"] = 1
        if stem.startswith("deeplabv3"):
            found["dilations"] = (12, 24, 36) if found["output_stride"] == 8 else (6, 12, 18)
    if match := _CROP.search(stem):
        # crops of 769 x 769 were trained with aligned corners, all others without
        found["align_corners"] = match.groups() == ("769", "769")
    return found
