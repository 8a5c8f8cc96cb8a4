"""What is drawn of predictions: labels, overlays, a legend, a confusion matrix; with Pillow alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lookfar.training.checkpoints import write_atomically

Palette = Sequence[Sequence[int]]
_MARGIN, _LINE = 8, 22
_MOST = 60  # classes whose names a confusion matrix has room for


def labels_picture(labels: NDArray, palette: Palette) -> Image.Image:
    """Labels ``(H, W)`` as indexed PNG, or as 16-bit grey where there are more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(bytes(np.array(palette, np.uint8)))
    return picture


def overlay(image: NDArray, labels: NDArray, palette: Palette, *, strength: int = 128) -> Image.Image:
    """The colours of the labels over the image ``(C, H, W)`` uint8; ``strength`` of 256 hides it."""
    bands = image if len(image) == 3 else image[:3] if len(image) > 3 else image[:1].repeat(3, 0)
    colours = np.array(palette, np.uint16) * strength
    out = np.empty((*labels.shape, 3), np.uint8)
    for top in range(0, len(labels), 256):  # 16 bits for all of a large image would be most of the memory
        some = slice(top, top + 256)
        shade = bands[:, some].transpose(1, 2, 0).astype(np.uint16) * (256 - strength)
        out[some] = (shade + colours[labels[some]]) >> 8
    return Image.fromarray(out)


def legend(classes: Sequence[str], palette: Palette) -> Image.Image:
    """Colours with the names of the classes, in columns of 30."""
    font, rows = _font(14), min(len(classes), 30)
    columns = -(-len(classes) // rows)
    width = max(int(font.getlength(name)) for name in classes) + _LINE + 3 * _MARGIN
    picture = Image.new("RGB", (columns * width, rows * _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(classes, palette)):
        column, row = divmod(number, rows)
        x, y = column * width + _MARGIN, row * _LINE + _MARGIN
        draw.rectangle((x, y + 2, x + _LINE, y + _LINE - 3), tuple(colour), "black")
        draw.text((x + _LINE + _MARGIN, y + 2), name, "black", font)
    return picture


def confusion_picture(confusion: NDArray, classes: Sequence[str]) -> Image.Image:
    """Shares in per cent of each true class (a row) by predicted class (a column)."""
    K, font = len(classes), _font(12)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    cell = 34 if K <= 20 else max(6, 680 // K)
    left = max(int(font.getlength(name)) for name in classes) + 2 * _MARGIN if K <= _MOST else _MARGIN
    picture = Image.new("RGB", (left + K * cell + _MARGIN, left + K * cell + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for (i, j), value in np.ndenumerate(share):
        x, y = left + j * cell, left + i * cell
        end = np.array([0, 90, 181] if i == j else [220, 50, 32])  # blue and red that colour-blind readers distinguish
        strength = value if i == j else value**0.5
        colour = (np.array([255, 255, 255]) * (1 - strength) + end * strength).astype(int)
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), tuple(colour.tolist()), "#dddddd" if cell > 12 else None)
        if cell >= 30 and value >= 0.005:
            said = f"{100 * value:.0f}"
            dark = strength > 0.6
            draw.text((x + (cell - font.getlength(said)) / 2, y + 9), said, "white" if dark else "black", font)
    if K <= _MOST:
        small = _font(min(12, max(cell - 1, 6)))
        for number, name in enumerate(classes):
            at = left + number * cell + (cell - small.size) / 2 - 1
            draw.text((left - _MARGIN - small.getlength(name), at), name, "black", small)
            upright = Image.new("RGB", (int(small.getlength(name)) + 2, int(small.size) + 4), "white")
            ImageDraw.Draw(upright).text((0, 0), name, "black", small)
            turned = upright.transpose(Image.Transpose.ROTATE_90)
            picture.paste(turned, (int(at), left - _MARGIN - turned.height))
    return picture


def save(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture that is there in full or not at all."""
    form = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    write_atomically(path, lambda part: picture.save(part, form, **options))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
