"""What `lookfar inspect` does once its options are parsed."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lookfar._warnings import warnings_as_lines
from lookfar.cost.sizes import parse_size
from lookfar.insight.inspecting import Inspected, inspect_subject
from lookfar.insight.page import write_page
from lookfar.insight.pictures import check_inside, write_pictures
from lookfar.insight.subjects import find_subjects
from lookfar.insight.words import lines_of
from lookfar.study.words import counted

PICTURED = 4  # images of which queries are drawn


def inspect_command(
    target: str | None,
    images: Sequence[str],
    *,
    data: str | None,
    network: str | None,
    weights: str | None,
    queries: Sequence[str],
    size: str | None,
    margin: float | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Print what blocks need and what their maps are like, and write the page and the pictures.

    Args:
        target: As for :func:`lookfar.insight.find_subjects`, as are the others up to ``margin``.
        images: Files or folders.
        data: Instead of images.
        network: Instead of a target.
        weights: Of the network, or of one that ``target`` names.
        queries: Pixels ``x,y`` that are drawn.
        size: Of the images, ``HxW``.
        margin: Losses within it are practically none.
        out: Where page and pictures go; nothing is written without it where JSON is asked for.
        as_json: Print one JSON list.
    """
    pixels, wanted = [_pixel(text) for text in queries], None if size is None else parse_size(size)
    if wanted is not None and len(wanted) != 2:
        raise ValueError(f"size must be two numbers such as 360x480, got {size!r}")
    if margin is not None and not 0 <= margin <= 100:
        raise ValueError(f"margin must be from 0 to 100 points, got {margin:g}")
    height_width = None if wanted is None else (wanted[0], wanted[1])
    with warnings_as_lines():
        subjects = find_subjects(
            target, images, data=data, network=network, weights=weights, size=height_width, margin=margin
        )
    found: list[Inspected] = []
    for subject in subjects:  # before what takes long
        check_inside(subject, 0, pixels)
    for subject in subjects:
        with warnings_as_lines():
            blocks = inspect_subject(subject)
        for one in blocks:
            found.append(one)
            if not as_json:
                print("\n".join(["", *lines_of(one)]), flush=True)
    if as_json:
        print(json.dumps([one.as_json() for one in found], indent=1))
        if out is None:
            return 0
    folder = Path("inspect") if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    for one in found:
        for index in range(min(len(one.subject.data.val), PICTURED if images else 1)):
            written, reason = write_pictures(one, index, pixels, folder)
            pictures += written
            if index == 0 and reason not in ("", one.told.reason):  # the latter is said already
                print(f"lookfar: no pictures of {one.label}: {reason}", file=sys.stderr)
    write_page(found, folder / "inspect.html", shlex.join(["lookfar", *sys.argv[1:]]))
    if not as_json:
        print(
            f"\nPage: {folder / 'inspect.html'}"
            + (f", and {counted(len(pictures), 'picture')} of queries" if pictures else "")
        )
    return 0


def _pixel(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    if not comma or not (x.strip().isdecimal() and y.strip().isdecimal()):
        raise ValueError(f"want --query X,Y in pixels, such as 120,80, got {text!r}")
    return int(x), int(y)
