"""Images for a network: upright, 8 bits a band, as many bands as it takes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookfar.data._reading import IMAGE_SUFFIXES, bands_fit, read_picture, to_bands
from lookfar.data._stored import turned
from lookfar.data._words import shown
from lookfar.data.scan import reason


def read_image(path: str | Path, in_chans: int = 3, *, peak: float | None = None) -> Tensor:
    """``(in_chans, H, W)``, uint8, RGB: turned by its EXIF orientation, grey repeated, alpha dropped, 16 bits to 8.

    Args:
        path: Of the file.
        in_chans: Bands that are wanted.
        peak: What becomes 255 where the file does not hold bytes; by default the largest number of its 16 bits.

    Raises:
        ValueError: It cannot be read, or holds something else; the message names the file.
        FileNotFoundError: There is none.

    >>> from PIL import Image
    >>> Image.new("LA", (5, 4), (200, 0)).save("grey.png")
    >>> read_image("grey.png")[:, 0, 0]
    tensor([200, 200, 200], dtype=torch.uint8)
    """
    path = Path(path)
    name = shown(str(path))
    if not path.exists():
        raise FileNotFoundError(f"no image {name}")
    if path.is_dir():
        raise ValueError(f"{name} is a folder, want an image")
    try:
        picture = read_picture(path)
    except MemoryError:
        raise
    except Exception as error:  # of any class, from whatever reads the format
        raise ValueError(f"cannot read {name}: {reason(error)}") from error
    bands = picture.pixels.shape[-1]
    if not bands_fit(picture.mode, bands, in_chans):
        raise ValueError(f"{name} has {bands} bands, the network takes {in_chans}")
    kind = picture.pixels.dtype
    if peak is None:
        if kind.kind != "u" or kind.itemsize > 2:
            raise ValueError(f"{name} holds {kind} numbers, and nothing says which is white: want 8 or 16 bits")
        peak = float(np.iinfo(kind).max)
    image = to_bands(picture, in_chans, peak)
    upright = turned(image.numpy().transpose(1, 2, 0), picture.turn).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(upright))


def find_images(given: list[str]) -> list[Path]:
    """Files, folders (the images that lie in them, not deeper) and patterns, each file once.

    Raises:
        ValueError: A folder without images, a pattern that no file matches.
    """
    import glob

    found: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            files = (file for file in path.iterdir() if not file.name.startswith("."))
            inside = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"no images in the folder {shown(text)}")
            found += inside
        elif not path.exists() and glob.has_magic(text):
            names = glob.glob(text, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
            matched = sorted(Path(name) for name in names if Path(name).is_file())
            if not matched:
                raise ValueError(f"no file matches {shown(text)}")
            found += matched
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())
