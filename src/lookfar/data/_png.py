"""PNG: its parts, and pixels in colours of 16 bits, of which Pillow keeps the upper eight.

torchvision's reader crashes on damaged files.

PNG Specification (Third Edition), W3C 2025: chunks, the five filters, and the seven passes of an interlaced image.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BANDS = {2: 3, 4: 2, 6: 4}  # kind of colours -> bands
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def decode_png_of_16_bits(content: bytes) -> NDArray:
    """``(H, W, bands)`` uint16.

    Raises:
        ValueError: The file is damaged, or another kind of PNG.
    """
    header, data = b"", []
    for kind, chunk in chunks(content):
        if kind == b"IHDR":
            header = chunk
        elif kind == b"IDAT":
            data.append(chunk)
    if len(header) != 13 or header[8] != 16 or header[9] not in BANDS or header[12] > 1:
        raise ValueError("no PNG in colours of 16 bits")
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (0, 4))
    bands = BANDS[header[9]]
    passes = [part for part in (_PASSES if header[12] else ((0, 0, 1, 1),)) if part[0] < height and part[1] < width]
    sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for y, x, dy, dx in passes]
    wanted = sum(rows * (1 + 2 * bands * columns) for rows, columns in sizes)
    try:
        raw = zlib.decompressobj().decompress(b"".join(data), wanted)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from None
    if len(raw) < wanted:
        raise ValueError("cut short")
    pixels, start = np.empty((height, width, bands), np.uint16), 0
    for (y, x, dy, dx), (rows, columns) in zip(passes, sizes):
        end = start + rows * (1 + 2 * bands * columns)
        lines = np.frombuffer(raw[start:end], np.uint8).reshape(rows, -1)
        plain = _unfilter(lines[:, 0], lines[:, 1:].reshape(rows, columns, 2 * bands).astype(np.int16))
        pixels[y::dy, x::dx] = plain.astype(np.uint8).view(">u2")
        start = end
    return pixels


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every part, as far as the last.

    Raises:
        ValueError: A part is damaged, or the file is cut short.
    """
    at = len(SIGNATURE)
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        chunk, check = content[at + 8 : at + 8 + size], content[at + 8 + size : at + 12 + size]
        if len(check) < 4:
            raise ValueError("cut short")
        if zlib.crc32(kind + chunk) != int.from_bytes(check, "big"):
            raise ValueError(f"a damaged part {kind!r}")
        yield kind, chunk
        if kind == b"IEND":
            return
        at += 12 + size
    raise ValueError("cut short")


def outline(opened: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and the first bytes of every part of a large file, unchecked, without its pixels.

    Raises:
        ValueError: The file is cut short.
    """
    at = len(SIGNATURE)
    while True:
        opened.seek(at)
        part = opened.read(64)
        size, kind = int.from_bytes(part[:4], "big"), part[4:8]
        if len(part) < 12:
            raise ValueError("cut short")
        yield kind, part[8 : 8 + size]
        if kind == b"IEND":
            return
        at += 12 + size


def _unfilter(filters: NDArray, bytes_: NDArray) -> NDArray:
    """What was stored as a difference to left, upper and upper left pixel, ``(rows, columns, bytes a pixel)``.

    All pixels of an anti-diagonal are done at once: they depend only on the two before it.
    """
    if filters.max() > 4:
        raise ValueError(f"an unknown filter {filters.max()}")
    rows, columns, size = bytes_.shape
    out = np.zeros((rows + 1, columns + 1, size), np.int16)  # a rim of zeros above and at the left
    for diagonal in range(rows + columns - 1):
        y = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        x = diagonal - y
        left, above, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        kind = filters[y][:, None]
        guess = left + above - corner
        to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where(
            (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
        )
        expected = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [left, above, (left + above) // 2, paeth], 0)
        out[y + 1, x + 1] = (bytes_[y, x] + expected) & 255
    return out[1:, 1:]
