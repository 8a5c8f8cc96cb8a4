"""From a file to pixels: images of any number of bands, masks whose values are labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff", ".npy"}
MASK_SUFFIXES = {".png", ".bmp", ".gif", ".pgm", ".tif", ".tiff", ".npy"}  # lossless: a JPEG invents labels

# what Pillow, zlib and NumPy raise on a file that is cut short or no image at all
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Picture:
    """Pixels as they stand in a file: ``(H, W, bands)``, and Pillow's word for them, ``"bands"`` for any number."""

    pixels: NDArray
    mode: str


def read_picture(path: Path, size: tuple[int, int] | None = None) -> Picture:
    """An image file; ``size`` (H, W) tells ``(bands, H, W)`` from ``(H, W, bands)`` in a ``.npy`` file."""
    if path.suffix.lower() == ".npy":
        pixels, mode = np.load(path, allow_pickle=False), "bands"
        if pixels.ndim == 3 and pixels.shape[:2] != size and pixels.shape[1:] == size:
            pixels = np.moveaxis(pixels, 0, -1)
    else:
        pixels, mode = _decode(path)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise ValueError(f"an array of shape {pixels.shape}, want (H, W), (H, W, bands) or (bands, H, W)")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "uif" or (pixels.dtype.kind in "if" and not pixels.min() >= 0):
        raise ValueError(f"{pixels.dtype} values below 0 or not a number; want 0 or more")
    return Picture(pixels, mode)


def _decode(path: Path) -> tuple[NDArray, str]:
    with Image.open(path) as image:
        if path.suffix.lower() in (".tif", ".tiff") and (pages := getattr(image, "n_frames", 1)) > 1:
            bands = []
            for page in range(pages):
                image.seek(page)
                bands.append(np.array(image))
            return np.stack(bands, -1), "bands"
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode in ("P", "PA"):
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")  # CMYK, YCbCr, LAB, HSV
        return np.array(image), image.mode


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
        pixels = (pixels.astype(np.float32) * (255.0 / peak)).round().clip(0, 255).astype(np.uint8)
    if pixels.shape[-1] == 3 and in_chans == 1:
        pixels = (pixels @ _GREY).round().astype(np.uint8)[..., None]
    if pixels.shape[-1] == 1 and in_chans == 3:
        pixels = pixels.repeat(3, -1)
    if pixels.shape[-1] != in_chans:
        raise ValueError(f"{pixels.shape[-1]} bands, {in_chans} wanted")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read_mask(path: Path) -> tuple[NDArray, str]:
    """Label values ``(H, W)``, and how the file holds them; the indices of a palette, not its colours."""
    if path.suffix.lower() == ".npy":
        values, mode = np.load(path, allow_pickle=False), "npy"
    else:
        with Image.open(path) as image:
            values, mode = np.array(image), image.mode
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]  # grey that was saved as colour
    if values.ndim != 2:
        raise ValueError("a mask in colours; want one value a pixel, the index of its class (8-bit grey or a palette)")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "ui" or (values.size and not 0 <= values.min() <= values.max() < 65536):
        raise ValueError(f"mask values of type {values.dtype} outside 0 to 65535; want the index of a class")
    return values, mode


def mask_words(mode: str) -> str:
    """A mask's storage in words."""
    return {"P": "8-bit indexed", "L": "8-bit grey", "1": "1-bit", "npy": ".npy"}.get(mode, mode)
