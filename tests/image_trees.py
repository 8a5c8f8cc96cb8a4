"""Small folders of images and masks for tests, with files of every kind written byte by byte where nobody else does."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lookfar.data import open_data

SIZE = (24, 32)


def noise(number, *shape, top=256, dtype=np.uint8):
    """Pixels of image ``number``, all different."""
    return np.random.RandomState(number).randint(0, top, shape).astype(dtype)


def stripes(*values, size=SIZE, dtype=np.uint8):
    """Vertical stripes of the values."""
    columns = np.array(values).repeat(-(-size[1] // len(values)))[: size[1]]
    return np.tile(columns, (size[0], 1)).astype(dtype)


def save(path, pixels, **options):
    """With Pillow, or as ``.npy``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def make_tree(root, masks, *, val=None, classes=None, size=SIZE):
    """train/ and val/ with one image per mask; a mask is an array, or a function that writes the file it is given."""
    splits = {"train": masks, "val": val if val is not None else masks[:1]}
    for number, (split, some) in enumerate(splits.items()):
        for i, mask in enumerate(some):
            save(root / split / "images" / f"{split}_{i}.png", noise(100 * number + i, *size, 3))
            path = root / split / "masks" / f"{split}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(mask):
                mask(path)
            else:
                save(path, mask)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def make_photos(root, *, train, val):
    """So many pairs that can be learned: images 24 x 32 are brighter where their mask, of two classes, is 1."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for n in range(count):
            mask = (np.arange(SIZE[0])[:, None] + np.arange(SIZE[1]) * (n % 3) > 30).astype(np.uint8)
            image = (draw.integers(0, 100, (*SIZE, 3)) + 100 * mask[..., None]).astype(np.uint8)
            save(root / part / "images" / f"{part}{n}.png", image)
            save(root / part / "masks" / f"{part}{n}.png", mask)
    return root


def refusal(root, **options):
    """The message with which a folder is refused; three lines of 80 columns are enough for it."""
    with pytest.raises(ValueError) as caught:
        open_data(str(root), **options)
    message = str(caught.value)
    assert len(f"lookfar: {message}") <= 240, len(message)
    assert message.isprintable()
    return message


def png(pixels, bits, colour=0, *, interlaced=False, size=None, filters=(0,)):
    """Bytes of a PNG of any depth and kind; Pillow writes few of them.

    ``size`` is what it says of itself, ``filters`` take turns from row to row.
    """
    height, width = size or pixels.shape[:2]
    parts = [pixels]
    if interlaced:
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [pixels[y::dy, x::dx] for y, x, dy, dx in starts]
    step = max(bits * (pixels.shape[2] if pixels.ndim > 2 else 1) // 8, 1)
    rows = [
        row for part in parts if part.size for row in _filtered([_packed(row, bits) for row in part], step, filters)
    ]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header)]
    if colour == 3:
        chunks.append((b"PLTE", bytes(range(3 * 2 ** min(bits, 6)))))
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _filtered(rows, step, filters):
    """Rows as differences, byte by byte as the specification has it."""
    before = bytes(len(rows[0]))
    for number, row in enumerate(rows):
        kind, out = filters[number % len(filters)], bytearray()
        for i, byte in enumerate(row):
            left, corner = (row[i - step], before[i - step]) if i >= step else (0, 0)
            guesses = (0, left, before[i], (left + before[i]) // 2, _paeth(left, before[i], corner))
            out.append((byte - guesses[kind]) % 256)
        yield bytes([kind]) + bytes(out)
        before = row


def _paeth(left, above, corner):
    guess = left + above - corner
    return min((left, above, corner), key=lambda byte: abs(guess - byte))


def _chunk(chunk):
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _packed(row, bits):
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    flat = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(flat.ravel()).tobytes()
