"""Images as they are uploaded: decoded with limits, in memory alone."""

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BYTES = 20 * 2**20  # of a file
PIXELS = 50_000_000  # of an image: what a small file may unfold to
SIDE = 640  # longer side of what the page draws
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


@dataclass(frozen=True)
class Picture:
    """An image to look at.

    Attributes:
        name: As it is shown.
        image: Upright, RGB.
        bands: What the image shows some of, ``(C, H, W)`` uint8, for an image that comes with a network; else None.
    """

    name: str
    image: "Image.Image"
    bands: np.ndarray | None = None

    def to_json(self) -> dict[str, str | int]:
        """What the page draws: its size and the bytes of an RGBA canvas in base64, the longer side at most ``SIDE``."""
        shown = self.image.copy()
        shown.thumbnail((SIDE, SIDE))
        rgba = np.asarray(shown.convert("RGBA"))
        return {
            "name": self.name,
            "width": shown.width,
            "height": shown.height,
            "pixels": base64.b64encode(rgba.tobytes()).decode(),
        }


def read_picture(name: str, content: bytes) -> Picture:
    """Decode an uploaded file.

    Args:
        name: As the page shows it; at most 80 characters of it are kept.
        content: Of the file.

    Raises:
        ValueError: Too large, no image, a damaged one, or values that are no colours of 8 bits.

    >>> read_picture("notes.txt", b"no image")
    Traceback (most recent call last):
    ValueError: notes.txt is not an image that can be read here: want PNG, JPEG, WEBP, BMP, TIFF or GIF
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = "".join(c for c in name if c.isprintable())[:80] or "image"
    if len(content) > BYTES:
        raise ValueError(f"{name} has more than {BYTES >> 20} MB: make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images: they are refused below, before they are decoded
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > PIXELS:
                raise ValueError(f"{name} has {image.width}×{image.height} pixels, more than {PIXELS // 10**6} million")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{name} has values of more than 8 bits, which no page can show: convert it to 8 bits")
            upright = ImageOps.exif_transpose(image)
            return Picture(
                name, upright.convert("RGBA").convert("RGB") if "A" in image.mode else upright.convert("RGB")
            )
    except (UnidentifiedImageError, Image.DecompressionBombError):
        wanted = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"{name} is not an image that can be read here: want {wanted}") from None
    except (OSError, SyntaxError, EOFError):  # Pillow's words for a damaged file
        raise ValueError(f"{name} is damaged: it cannot be decoded") from None
