"""What images hold, by their beginnings: a hundred thousand files in under a minute.

Files of a few kilobytes are read whole, of others the beginning and samples of the rest. A file is decoded where its
beginning does not say enough, where its end is not what it should be, where its numbers are not 8-bit, and where a data
set is small enough to decode all of it: what is damaged in its middle shows only then.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image

from lookfar.data._memory import Memory, memory_file
from lookfar.data._png import SIGNATURE, chunks, outline
from lookfar.data._reading import read_picture
from lookfar.data._stored import CONVERTED, check_size, orientation
from lookfar.data._words import name_of
from lookfar.data.scan import File, Head, describe_image, reason

F = TypeVar("F", bound=File)

VERSION = 1  # of what is remembered
SMALL = 2**16  # bytes: such a file is read whole
SAMPLES, SAMPLE = 16, 4096  # of larger files, evenly spread from the first byte to the last, count for the digest
FEW, LIGHT = 20_000, 2**29  # files, and bytes in all, that are decoded before the first step
_ORIENTED = (b"xml:com.adobe.xmp", b"raw profile type exif")  # texts in a PNG that may say how it is turned
_PNG_BANDS = {0: ("L", 1), 2: ("RGB", 3), 3: ("RGB", 3), 4: ("LA", 2), 6: ("RGBA", 4)}


@dataclass(frozen=True, eq=False)  # found again by identity: there are very many
class Labelled(File):
    """An image with one label; ``name`` is class folder and path in it; in an array ``image`` is a set and an index."""

    label: int

    __hash__ = object.__hash__
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True)
class ImageHead(Head):
    """What an image holds.

    Attributes:
        digest: Equal for equal files; for those that are not small, of their length and of samples of their bytes.
        length: Bytes of the file.
        whole: It was decoded completely.
    """

    length: int = 0
    whole: bool = False


def scan_heads(files: Sequence[F], root: Path, *, whole: bool | None = None) -> dict[F, ImageHead]:
    """What every image holds, from memory where its file has not changed.

    Args:
        files: Images.
        root: Of the data set; names the file in which the result is remembered.
        whole: Decode all of them; by default where they are few and small.
    """
    memory = Memory(memory_file("heads", root), VERSION, ImageHead)
    if whole is None:
        whole = len(files) <= FEW and sum(map(_length, files)) <= LIGHT
    return memory.look(files, lambda file: look(file, whole), "Reading images", lambda head: head.whole or not whole)


def _length(file: File) -> int:
    try:
        return file.image.stat().st_size
    except (OSError, ValueError):
        return 0


def look(file: File, whole: bool = False) -> ImageHead:
    """What one image holds."""
    try:
        path = file.image
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        with path.open("rb") as opened:
            length = os.fstat(opened.fileno()).st_size
            digest, content = _digest(opened, length)
            head = None if whole or path.suffix.lower() == ".npy" else _begin(opened, content, length)
        if head is None:
            head = ImageHead(**describe_image(read_picture(path)), whole=True)
        return replace(head, digest=digest, length=length)
    except Exception as error:  # decoders raise whatever they like, MemoryError and warnings as errors too
        return ImageHead(error=f"{name_of(file.image)} ({reason(error)})", whole=True)


def _digest(opened: BinaryIO, length: int) -> tuple[str, bytes]:
    """A digest of a file, and its content where it is small."""
    digest = hashlib.blake2b(str(length).encode(), digest_size=16)
    if length <= SMALL:
        content = opened.read()
        digest.update(content)
        return digest.hexdigest(), content
    for i in range(SAMPLES):
        opened.seek((length - SAMPLE) * i // (SAMPLES - 1))
        digest.update(opened.read(SAMPLE))
    return digest.hexdigest(), b""


def _begin(opened: BinaryIO, content: bytes, length: int) -> ImageHead | None:
    """What the beginning says; None where the file must be decoded to know."""
    opened.seek(0)
    start = content[:64] or opened.read(64)
    if start.startswith(SIGNATURE):
        return _begin_png(chunks(content) if content else outline(opened))
    opened.seek(max(length - 64, 0))
    end = opened.read(64)
    opened.seek(0)
    if start[:2] == b"\xff\xd8":
        sound = end.rstrip(b"\0").endswith(b"\xff\xd9")
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        sound = 8 + int.from_bytes(start[4:8], "little") <= length
    else:
        return None
    if not sound:
        return None
    with Image.open(io.BytesIO(content) if content else opened, formats=("JPEG", "WEBP")) as image:
        frames = getattr(image, "n_frames", 1) if image.format == "WEBP" else 1
        mode = CONVERTED.get(image.mode, image.mode)
        if frames > 1 or mode not in ("L", "RGB", "RGBA"):
            return None
        width, height = image.size
        check_size(height, width, len(image.getbands()))
        return ImageHead((height, width), orientation(image.getexif()), len(mode), mode)


def _begin_png(parts: Iterable[tuple[bytes, bytes]]) -> ImageHead | None:
    header, clear = b"", False
    try:
        for kind, part in parts:
            if kind == b"IHDR":
                header = part
            clear = clear or kind == b"tRNS"
            if kind in (b"acTL", b"eXIf") or part.lower().startswith(_ORIENTED):
                return None
    except ValueError:  # damaged or cut short; its pixels may be whole
        return None
    if len(header) != 13 or header[8] == 16 or header[9] not in _PNG_BANDS:
        return None
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (0, 4))
    mode, bands = ("RGBA", 4) if clear and header[9] == 3 else _PNG_BANDS[header[9]]
    check_size(height, width, bands)
    return ImageHead((height, width), 1, bands, mode) if height and width else None
