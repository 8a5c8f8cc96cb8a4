"""The numbers of a file as they are stored: nothing scaled, turned, dropped or averaged on the way.

Traps: Pillow scales grey of 1, 2 and 4 bits and PGM with another largest value to 255, cuts colours of 16 bits to 8,
drops bands beside RGB, turns TIFF (and nothing else) by its orientation, and takes some BMP of two colours for 1-bit.
"""

import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookfar.data._png import BANDS, SIGNATURE, decode_png_of_16_bits

PIXELS = 2**26  # 8192 × 8192: checked before anything is decoded
BYTES = 2**30
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "PPM", "GIF", "TIFF")  # no format that starts a program
LOSSY = ("JPEG", "MPO", "WEBP")
CONVERTED = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA"}

# numpy reads headers as literals of Python, whose depth some versions of it count for all threads together (gh-106905):
# a whole file would be called damaged now and then
_PARSING = threading.Lock()
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P([2356])" + (_GAP + rb"(\d{1,9})") * 3 + rb"\s")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLES, _KIND = 0x0112, 258, 262, 277, 254
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_REDUCED, _TRANSPARENCY = 1, 4  # bits of a TIFF page's kind


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes:
        pixels: ``(H, W)`` or ``(H, W, bands)``, as stored; indices where there is a palette.
        mode: Pillow's word for the bands, ``"bands"`` where it has none. The pixels of a mode in ``CONVERTED`` are
            converted already: they are the only ones that are not as stored.
        format: ``"PNG"``, ``"TIFF"``, ``"NPY"``, ...; ``"JPEG"`` also for a TIFF compressed so.
        white: The number that is white where it is neither 255 nor the largest of the type: 1, 3, 15, a PGM's maxval.
        negative: White is 0 instead.
        palette: Colours of the indices, ``(256, 3)`` or with alpha ``(256, 4)``.
        turn: EXIF orientation, 1 to 8.
        pages: Pages of equal size; they are the bands where there are several.
    """

    pixels: NDArray
    mode: str
    format: str
    white: int = 0
    negative: bool = False
    palette: NDArray | None = None
    turn: int = 1
    pages: int = 1


def read_stored(path: Path) -> Stored:
    """Decode a file completely.

    Raises:
        Exception: Of any class, from whatever reads the format; ValueError for what we refuse.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise ValueError("an empty file")
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    if head[:2] in (b"P2", b"P3", b"P5", b"P6"):
        return _read_pnm(path, head)
    try:
        # by its handle: given a name, Pillow maps the file into memory, and swaps height and width where it is to be
        # turned
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            check_size(image.size[1], image.size[0], len(image.getbands()))
            return _read_tiff(image, path) if image.format == "TIFF" else _read_with_pillow(image, path, head)
    except Image.UnidentifiedImageError:
        if head[:4] not in _TIFF:
            raise ValueError("no image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"more than {PIXELS // 10**6} million pixels; cut it into tiles") from None
    return _read_with_tifffile(path)


def check_size(height: int, width: int, bands: int = 1, item: int = 1) -> None:
    """Raise a ValueError for an image that is too large to decode, before memory is asked for."""
    if height * width > PIXELS:
        raise ValueError(f"{height}×{width}, more than {PIXELS // 10**6} million pixels; cut it into tiles")
    if height * width * bands * item > BYTES:
        size = height * width * bands * item / 2**30
        raise ValueError(f"{height}×{width} of {bands} bands, {size:.1f} GB; cut it into tiles")


def turned(pixels: NDArray, turn: int) -> NDArray:
    """Upright, from ``(H, W, ...)`` and its EXIF orientation."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def turned_size(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """Height and width once upright."""
    return size if turn < 5 else (size[1], size[0])


def _read_npy(path: Path) -> Stored:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with _PARSING:
            shape, by_columns, dtype = read(file)
        if dtype.hasobject or len(shape) not in (2, 3):
            raise ValueError(
                f"an array of {dtype} and shape {shape}; want numbers (H, W), (H, W, bands) or (bands, H, W)"
            )
        height, width, bands = sorted((*shape, 1)[:3], reverse=True)  # whichever comes first
        check_size(height, width, bands, dtype.itemsize)
        numbers = np.fromfile(file, dtype, math.prod(shape))
    if len(numbers) < math.prod(shape):
        raise ValueError(f"it ends after {len(numbers)} of {math.prod(shape)} numbers")
    return Stored(numbers.reshape(shape, order="F" if by_columns else "C"), "bands", "NPY")


def _read_pnm(path: Path, head: bytes) -> Stored:
    found = _PNM.match(head)
    if found is None:
        raise ValueError("a damaged header")
    kind, width, height, top = map(int, found.groups())
    if not (width and height and 0 < top < 65536):
        raise ValueError("a damaged header")
    bands = 3 if kind in (3, 6) else 1
    dtype: Any = np.dtype("u1" if top < 256 else ">u2")
    check_size(height, width, bands, dtype.itemsize)
    count = height * width * bands
    if kind > 3:
        numbers = np.fromfile(path, dtype, count, offset=found.end())
    else:
        body = re.sub(rb"#[^\r\n]*", b"", path.read_bytes()[found.end() :])
        words = body.split(maxsplit=count)[:count]
        numbers = np.array([int(word) for word in words])
    if len(numbers) < count or numbers.max() > top:
        raise ValueError("cut short" if len(numbers) < count else f"numbers beyond {top}, its largest")
    numbers = numbers.astype(np.uint8 if top < 256 else np.uint16)
    shape, mode = ((height, width), "L") if bands == 1 else ((height, width, 3), "RGB")
    return Stored(numbers.reshape(shape), mode, "PPM", 0 if top in (255, 65535) else top)


def _read_with_pillow(image: Image.Image, path: Path, head: bytes) -> Stored:
    if image.format in ("GIF", "PNG", "WEBP") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"{frames} frames; want one picture")
    bits = head[24] if head.startswith(SIGNATURE) else 8
    mode = image.mode
    if image.format == "PNG" and bits == 16 and head[25] in BANDS:
        pixels = decode_png_of_16_bits(path.read_bytes())
        mode = {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[-1]]
        return Stored(pixels, mode, "PNG", turn=orientation(image.getexif()))
    if image.format in ("BMP", "DIB") and head[:2] == b"BM":
        depth = int.from_bytes(head[28:30], "little")
        if (mode == "1" and depth != 1) or (mode == "L" and depth != 8):
            raise ValueError(f"a BMP of {depth} bits in shades of grey; save it as PNG")
    pixels = _pixels(image)
    stored = Stored(pixels, mode, image.format or "", palette=_palette(image), turn=orientation(image.getexif()))
    return _unscaled(stored, 1 if mode == "1" else bits)


def _pixels(image: Image.Image) -> NDArray:
    pixels = np.array(image.convert(CONVERTED[image.mode]) if image.mode in CONVERTED else image)
    return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))


def _unscaled(stored: Stored, bits: int) -> Stored:
    """Grey of 1, 2 or 4 bits as it is stored."""
    if stored.mode == "1":
        return replace(stored, pixels=stored.pixels.astype(np.uint8), white=1)
    if stored.mode == "L" and bits in (1, 2, 4):
        white = 2**bits - 1
        return replace(stored, pixels=stored.pixels // (255 // white), white=white)
    return stored


def orientation(exif: Any) -> int:
    """1 to 8, from the tags of an image."""
    turn = exif.get(_ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _palette(image: Image.Image) -> NDArray | None:
    """Colours of all 256 indices; black where the file has fewer."""
    if image.mode not in ("P", "PA"):
        return None
    colours = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colours[: len(given)] = given
    clear = image.info.get("transparency")
    if clear is None:
        return colours
    alpha = np.full((256, 1), 255, np.uint8)
    if isinstance(clear, bytes):
        alpha[: min(len(clear), 256), 0] = np.frombuffer(clear, np.uint8)[:256]
    elif isinstance(clear, int) and 0 <= clear < 256:
        alpha[clear] = 0
    return np.hstack([colours, alpha])


# ---- TIFF --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    index: int
    size: tuple[int, int]
    kind: int


def _whole_pages(pages: Sequence[_Page]) -> list[int]:
    """The pages that are pictures of full size: neither overviews nor transparency masks."""
    if not pages:
        raise ValueError("no pages")
    pictures = [page for page in pages if not page.kind & (_REDUCED | _TRANSPARENCY)] or list(pages)
    largest = max(page.size[0] * page.size[1] for page in pictures)
    size = next(page.size for page in pictures if page.size[0] * page.size[1] == largest)
    return [page.index for page in pictures if page.size == size]


def _read_tiff(image: Any, path: Path) -> Stored:
    pages = []
    try:
        for index in range(image.n_frames):
            image.seek(index)
            pages.append(_Page(index, image.size, int(image.tag_v2.get(_KIND, 0))))
    except SyntaxError:  # a page of a kind that Pillow has no mode for
        return _read_with_tifffile(path)
    whole = _whole_pages(pages)
    image.seek(whole[0])
    bits, samples = image.tag_v2.get(_BITS, (1,)), image.tag_v2.get(_SAMPLES, 1)
    if samples > len(image.getbands()) or image.mode == "RGBX" or (samples > 1 and max(bits) > 8):
        return _read_with_tifffile(path, whole)
    check_size(image.size[1], image.size[0], len(whole) * len(image.getbands()), 4 if image.mode in "IF" else 2)
    found = [_read_tiff_page(image, index, bits[0]) for index in whole]
    return _stacked(found)


def _read_tiff_page(image: Any, index: int, bits: int) -> Stored:
    image.seek(index)
    turn = orientation(image.tag_v2)
    white_is_zero = image.tag_v2.get(_PHOTOMETRIC) == 0
    image.load()
    mode, pixels = image.mode, _pixels(image)
    if turn > 1:  # Pillow has turned it already
        pixels = np.ascontiguousarray(turned(pixels, {6: 8, 8: 6}.get(turn, turn)))
    kind = "JPEG" if image.info.get("compression") in _LOSSY_TIFF else "TIFF"
    stored = _unscaled(Stored(pixels, mode, kind, palette=_palette(image), turn=turn), bits)
    if white_is_zero and mode == "L":  # Pillow has made a positive of it, and does not of 16 bits
        return replace(stored, pixels=(stored.white or 255) - stored.pixels, negative=True)
    return replace(stored, negative=white_is_zero and mode.startswith("I"))


def _stacked(pages: list[Stored]) -> Stored:
    """Pages as bands."""
    if len(pages) == 1:
        return pages[0]
    if any(page.pixels.ndim != 2 or page.palette is not None for page in pages):
        raise ValueError(f"{len(pages)} pages in colours; want one picture, or a page a band")
    pixels = np.stack([page.pixels for page in pages], -1)
    return replace(pages[0], pixels=pixels, mode="bands", pages=len(pages))


def _read_with_tifffile(path: Path, whole: Sequence[int] | None = None) -> Stored:
    """What Pillow has no mode for: bands beside RGB, colours of more than 8 bits, 64 bits."""
    import tifffile

    log = logging.getLogger("tifffile")  # what it says about damaged tags belongs in a log, not on the terminal
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    with tifffile.TiffFile(path) as file:
        if whole is None:
            pages = [
                _Page(index, (page.imagewidth, page.imagelength), int(page.subfiletype))
                for index, page in enumerate(map(_with_tags, file.pages))
            ]
            whole = _whole_pages(pages)
        first: Any = _with_tags(file.pages[whole[0]])
        if not first.dtype:
            raise ValueError("numbers of a kind that no reader knows")
        bands = len(whole) * first.samplesperpixel
        check_size(first.imagelength, first.imagewidth, bands, first.dtype.itemsize)
        return _stacked([_read_tifffile_page(_with_tags(file.pages[index])) for index in whole])


def _with_tags(page: Any) -> Any:
    """A page of its own, where tifffile keeps only what differs from the one before."""
    return page.aspage() if hasattr(page, "aspage") else page


def _read_tifffile_page(page: Any) -> Stored:
    if page.photometric == 3:
        raise ValueError("a palette of 16 bits; want 8")
    try:
        pixels = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(f"{page.compression.name} compression; save it with deflate or none") from None
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise ValueError(f"axes {page.axes}; want a picture")
    alpha = any(int(extra) in (1, 2) for extra in page.extrasamples)
    words = {(1, False): "L", (2, True): "LA", (3, False): "RGB", (4, True): "RGBA"}
    bands = 1 if pixels.ndim == 2 else pixels.shape[-1]
    coloured = page.photometric == 2
    mode = words.get((bands, alpha), "bands") if coloured == (bands > 2) else "bands"
    tag = page.tags.get(_ORIENTATION)
    turn = orientation({_ORIENTATION: int(tag.value)}) if tag is not None else 1
    white = 2**page.bitspersample - 1 if page.bitspersample % 8 else 0
    return Stored(np.ascontiguousarray(pixels), mode, "TIFF", white, page.photometric == 0, None, turn)
