"""From a file to pixels: images of any number of bands, masks whose values are labels or colours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookfar.data._stored import CONVERTED, LOSSY, Stored, read_stored

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff", ".npy"}
MASK_SUFFIXES = {".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".npy"}  # lossless: a JPEG invents labels

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Picture:
    """An image as the file has it, not turned: ``(H, W, bands)``, 0 or more.

    Attributes:
        pixels: uint8, or wider integers or floats whose largest value is for the data set to say.
        mode: Pillow's word for the bands, ``"bands"`` for any number.
        turn: Its EXIF orientation, 1 to 8.
    """

    pixels: NDArray
    mode: str
    turn: int = 1

    @property
    def depth(self) -> str:
        """What kind of numbers these are: 8-bit, 16-bit (or wider) or floating-point."""
        if self.pixels.dtype == np.uint8:
            return "8-bit"
        return "floating-point" if self.pixels.dtype.kind == "f" else "16-bit"


@dataclass(frozen=True)
class Mask:
    """A mask as the file has it, not turned.

    Attributes:
        values: ``(H, W)``: numbers from 0 to 65535, or colours as 0xRRGGBB.
        mode: How the file holds them.
        coloured: The values are colours.
        palette: Colours of the numbers where they are indices, as 0xRRGGBB.
        turn: Its EXIF orientation.
    """

    values: NDArray
    mode: str
    coloured: bool = False
    palette: NDArray | None = None
    turn: int = 1


def read_picture(path: Path, size: tuple[int, int] | None = None) -> Picture:
    """An image file; ``size`` (H, W) distinguishes ``(bands, H, W)`` from ``(H, W, bands)`` in ``.npy``."""
    stored = read_stored(path)
    pixels, mode = _as_picture(stored)
    if stored.format == "NPY" and pixels.ndim == 3 and pixels.shape[:2] != size and pixels.shape[1:] == size:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if not pixels.size:
        raise ValueError("no pixels")
    if pixels.dtype.kind not in "uif" or (pixels.dtype.kind in "if" and not pixels.min() >= 0):
        raise ValueError(f"{pixels.dtype} values below 0 or not a number; want 0 or more")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels.max()):
        raise ValueError("infinite values; want finite numbers")
    return Picture(pixels, mode, stored.turn)


def _as_picture(stored: Stored) -> tuple[NDArray, str]:
    """Colours for indices, white at 255 where it was less, a positive of a negative."""
    pixels, mode = stored.pixels, stored.mode
    if stored.palette is not None:
        indices = pixels[..., 0] if mode == "PA" else pixels
        pixels = stored.palette[indices]
        if mode == "PA":
            pixels = np.concatenate([pixels[..., :3], stored.pixels[..., 1:]], -1)
        return pixels, "RGBA" if pixels.shape[-1] == 4 else "RGB"
    if mode == "1":
        mode = "L"
    if mode in CONVERTED:
        mode = CONVERTED[mode]
    white = stored.white or (np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 0)
    if stored.negative:
        if not white:
            raise ValueError("a negative (0 is white) of this depth; want a positive")
        pixels = white - pixels
    if stored.white and pixels.dtype == np.uint8:
        pixels = (pixels.astype(np.float32) * (255 / white)).round().astype(np.uint8)
    return pixels, mode


def bands_fit(mode: str, bands: int, in_chans: int) -> bool:
    """Whether :func:`to_bands` can make ``in_chans`` bands of it without inventing or losing a measurement."""
    if bands == in_chans or (bands == 1 and in_chans == 3):
        return True
    return mode in ("RGB", "RGBA", "LA") and in_chans in (1, 3)


def to_bands(picture: Picture, in_chans: int, peak: float = 255.0) -> Tensor:
    """``(in_chans, H, W)``, uint8: grey from colours, colours from grey, no alpha; ``peak`` becomes 255."""
    pixels, mode = picture.pixels, picture.mode
    if mode in ("RGBA", "LA") and in_chans != pixels.shape[-1]:
        pixels = pixels[..., :-1]
    if pixels.dtype != np.uint8:
        wide = pixels if pixels.dtype.kind == "f" else pixels.astype(np.float32)
        pixels = (wide / peak * 255).round().clip(0, 255).astype(np.uint8)
    if pixels.shape[-1] == 3 and in_chans == 1:
        pixels = (pixels @ _GREY).round().astype(np.uint8)[..., None]
    if pixels.shape[-1] == 1 and in_chans == 3:
        pixels = pixels.repeat(3, -1)
    if pixels.shape[-1] != in_chans:
        raise ValueError(f"{pixels.shape[-1]} bands, {in_chans} wanted")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read_mask(path: Path) -> Mask:
    """A mask file: numbers as they are stored, indices of a palette with its colours, or colours.

    Raises:
        ValueError: It holds something from which no labels can be read, and would be read wrongly.
    """
    stored = read_stored(path)
    if stored.format in LOSSY:
        raise ValueError(f"a {'JPEG' if stored.format == 'MPO' else stored.format} invents labels; want PNG")
    if stored.pages > 1:
        raise ValueError(f"{stored.pages} pages of one size; want one page whose values are the classes")
    if stored.negative:
        raise ValueError("0 is white in this TIFF; save it with black at 0")
    pixels, mode, palette = stored.pixels, stored.mode, None
    if stored.palette is not None:
        palette = _packed(stored.palette)
        pixels = pixels[..., 0] if mode == "PA" else pixels
    elif pixels.ndim == 3:
        pixels, coloured = _one_band(stored)
        if coloured:
            return Mask(pixels, mode, coloured=True, turn=stored.turn)
    if stored.format == "NPY":
        mode = "npy"
    return Mask(_numbers(pixels), mode, palette=palette, turn=stored.turn)


def _one_band(stored: Stored) -> tuple[NDArray, bool]:
    """Numbers, or packed colours, of pixels in several bands."""
    pixels, mode, bands = stored.pixels, stored.mode, stored.pixels.shape[-1]
    if stored.format == "NPY":
        if bands == 1:
            return pixels[..., 0], False
        if pixels.shape[0] == 1 and not (bands in (3, 4) and pixels.dtype == np.uint8):
            return pixels[0], False
        mode = {3: "RGB", 4: "RGBA"}.get(bands, "") if pixels.dtype == np.uint8 else ""
    if mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"{bands} bands ({mode or pixels.dtype}); want one value a pixel, the number of its class")
    if mode in ("LA", "RGBA"):
        _check_alpha(pixels)
        pixels = pixels[..., :-1]
    if mode == "LA" or (pixels.dtype != np.uint8 and (pixels == pixels[..., :1]).all()):
        return pixels[..., 0], False
    if pixels.dtype != np.uint8:
        raise ValueError(f"colours of {8 * pixels.dtype.itemsize} bits; want numbers of classes, or colours of 8 bits")
    return _packed(pixels), True


def _packed(colours: NDArray) -> NDArray:
    """``(..., 3) -> (...)``: 0xRRGGBB."""
    parts = colours.astype(np.uint32)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


def _check_alpha(pixels: NDArray) -> None:
    """Transparency that does not follow from the colours would be a mask of its own."""
    alpha = pixels[..., -1]
    if (alpha == alpha.flat[0]).all():
        return
    wide = pixels.astype(np.uint64)
    both = np.unique(sum(wide[..., band] << np.uint64(16 * band) for band in range(pixels.shape[-1])))
    if len(np.unique(both & np.uint64(2 ** (16 * (pixels.shape[-1] - 1)) - 1))) < len(both):
        raise ValueError("transparency says what the colours do not; want one value a pixel, the number of its class")


def _numbers(values: NDArray) -> NDArray:
    """Whole numbers from 0 to 65535."""
    if values.ndim != 2 or not values.size:
        raise ValueError(f"an array of shape {values.shape}; want one value a pixel, the number of its class")
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "uif":
        raise ValueError(f"{values.dtype} values; want the number of a class")
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high < 65536):
        raise ValueError(f"values from {low:g} to {high:g}; want numbers of classes, 0 to 65535")
    if values.dtype.kind == "f" and (values != values.round()).any():
        raise ValueError("values with a fraction; want numbers of classes")
    return values.astype(np.uint8 if high < 256 else np.uint16)


def mask_words(mode: str) -> str:
    """A mask's storage in words."""
    known = {"P": "8-bit indexed", "PA": "8-bit indexed", "L": "8-bit grey", "1": "1-bit", "npy": ".npy"}
    return known.get(mode, "16-bit grey" if mode.startswith("I;16") else mode)
