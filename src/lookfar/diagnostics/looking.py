"""Where the blocks of a network look from a pixel, and where they look from anywhere."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import Tensor, nn

from lookfar._tables import by_size, map_names
from lookfar.diagnostics.seeing import Seen, see

if TYPE_CHECKING:
    from PIL import Image

SIDE = 240  # pixels of the longer side of a picture's panel, at least
_HEAT, _COLD = np.array([255.0, 96, 0]), np.array([0.0, 128, 255])  # weights above and below zero
_MARK = (255, 255, 255)
_TEXT = 14  # pixels


@dataclass(frozen=True)
class Look:
    """Where one block looks in one of its calls.

    Attributes:
        name: Of its module in the network.
        block: Registered name.
        query: The position (y, x) of the pixel on the map that the block sees.
        size: Of that map.
        maps: The query's weights ``(heads, h, w)`` on the grid of the block's keys; None where there are none.
        mean: The mean of the maps of all queries, ``(heads, h, w)``: what does not depend on the query.
        reason: Why there are no maps; an empty string where there are.
        outside: The share of the query's weight on class and register tokens, ``(heads,)``; None without such tokens.
        call: Which of its calls this is, counted from 1.
        calls: How often the network calls it for an image.
        kinds: What the maps are where they are not heads of one, as ``("pairwise", "unary")``: each has all heads.
    """

    name: str
    block: str
    query: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    maps: Tensor | None = None
    mean: Tensor | None = None
    reason: str = ""
    outside: Tensor | None = None
    call: int = 1
    calls: int = 1
    kinds: tuple[str, ...] = ()

    @property
    def map_names(self) -> tuple[str, ...]:
        """What each of the maps is called, as ``"head 0"`` or ``"pairwise"``; a single one has an empty name."""
        return () if self.maps is None else map_names(self.kinds, len(self.maps))

    def __str__(self) -> str:
        name = f"{self.name} ({self.block})" if self.name else self.block
        name += f", call {self.call} of {self.calls}" if self.calls > 1 else ""
        if self.maps is None:
            return f"{name}: no maps, {self.reason}"
        grid, heads = by_size(self.maps.shape[1:]), len(self.maps) // max(len(self.kinds), 1)
        many = (f", {heads} heads" if heads > 1 else "") + (f"; maps: {', '.join(self.kinds)}" if self.kinds else "")
        share = (
            "" if self.outside is None else f", {100 * float(self.outside.mean()):.0f} % on class and register tokens"
        )
        return f"{name}: query {self.query} of {by_size(self.size)}, {grid} keys{many}{share}"


@dataclass(frozen=True)
class Looks(Sequence[Look]):
    """Where each block of a network looks; notebooks show it as a picture.

    Attributes:
        image: What the network saw, ``(C, H, W)``.
        at: The pixel (y, x).
        of_blocks: Block by block, in the order of the network's modules; a block that is called several times stands
            there as often.
    """

    image: Tensor
    at: tuple[int, int]
    of_blocks: tuple[Look, ...]

    @overload
    def __getitem__(self, index: int) -> Look: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Look]: ...
    def __getitem__(self, index: int | slice) -> Look | Sequence[Look]:
        return self.of_blocks[index]

    def __len__(self) -> int:
        return len(self.of_blocks)

    def __iter__(self) -> Iterator[Look]:
        return iter(self.of_blocks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.of_blocks))

    def picture(self) -> "Image.Image":
        """A row for each map of each block: the image with the pixel, the pixel's map, the mean of all maps.

        Colours follow the square root of the weight, from zero to the largest in the two maps of a row; weights below
        zero are blue. A block without maps has a line that says why.
        """
        shown, factor = _enlarged(self.image)
        rows: list[tuple[str, list[np.ndarray]]] = []
        for look in self:
            if look.maps is None or look.mean is None:
                rows.append((str(look), []))
                continue
            for name, *pair in zip(look.map_names, look.maps, look.mean):
                label = f"{look}: {name}" if name else str(look)
                found = [one.numpy() for one in pair]
                rows.append((f"{label}. Image, map of the query, mean map", _row(shown, found)))
        return _sheet(shown, rows, self.at, factor, columns=3)

    def save(self, path: str | Path) -> None:
        """Write :meth:`picture` into a file; its ending says in which format."""
        self.picture().save(path)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.picture().save(file, "PNG")
        return file.getvalue()


def look(network: nn.Module, image: Tensor, at: tuple[int, int]) -> Looks:
    """Where the blocks of a network look from a pixel, beside where they look on average from anywhere.

    Maps show where weights lie, not what the network makes of them. The network is left as it was: modes, random
    state, no hooks.

    Args:
        network: Any network with blocks of ours, inserted or its own; without one, with attention of torch, timm or
            transformers; or a block, whose input is then the image.
        image: ``(C, H, W)`` or ``(1, C, H, W)``, as the network takes it.
        at: The pixel (y, x) of the image.

    Raises:
        ValueError: No block in the network, an image of another form, a pixel outside it.

    >>> import torch
    >>> from lookfar import insert
    >>> network, image = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU()), torch.rand(3, 17, 13)
    >>> insert(network, "nonlocal", at="1", example=image[None])
    ['1.non_local']
    >>> looks = look(network, image, (9, 4))
    >>> print(looks)
    1.non_local (nonlocal): query (4, 2) of 8×6, 8×6 keys
    >>> looks[0].maps.shape, looks.picture().size
    (torch.Size([1, 8, 6]), (593, 273))
    """
    size = image.shape[-2:]
    if len(at) != 2 or not all(0 <= place < n for place, n in zip(at, size)):
        raise ValueError(f"want a pixel (y, x) of the {by_size(size)} image, got {tuple(at)}")
    looks = tuple(_look(seen, at) for seen in see(network, image))
    return Looks(image.detach().reshape(image.shape[-3:]).cpu(), (int(at[0]), int(at[1])), looks)


def _look(seen: Seen, at: Sequence[int]) -> Look:
    which: dict[str, Any] = {"call": seen.call, "calls": seen.calls}
    if seen.reason:
        return Look(seen.name, seen.block, reason=seen.reason, **which)
    outside = seen.outside(at) if seen.prefix else None
    return Look(
        seen.name, seen.block, seen.query(at), seen.size, seen.weights(at), seen.mean,
        outside=outside, kinds=seen.kinds, **which,
    )  # fmt: skip


def _shown(image: Tensor) -> np.ndarray:
    """``(C, H, W)`` of any range as ``(H, W, 3)``, 0 to 255; bands that are no colours: the first of two."""
    bands = image.double()
    bands = bands[:3] if len(bands) >= 3 else bands[:1].expand(3, -1, -1)
    low, high = bands.min(), bands.max()
    return (255 * (bands - low) / (high - low if high > low else 1)).permute(1, 2, 0).numpy()


def _over(shown: np.ndarray, weights: np.ndarray, largest: float) -> np.ndarray:
    """The weights ``(h, w)`` as colour over a grey and darkened image ``(H, W, 3)``."""
    H, W = shown.shape[:2]
    rows, columns = (np.arange(n) * cells // n for n, cells in zip((H, W), weights.shape))
    wide = weights[rows[:, None], columns]
    strength = 0.85 * np.sqrt(np.abs(wide) / (largest or 1))[..., None]  # the image shows through
    colour = np.where(wide[..., None] < 0, _COLD, _HEAT)
    return (1 - strength) * 0.5 * shown.mean(-1, keepdims=True) + strength * colour


def panels(
    image: Tensor, maps: Mapping[str, np.ndarray], at: tuple[int, int], title: str, kinds: Sequence[str] = ()
) -> "Image.Image":
    """An image with a pixel, and some maps of it beside: a row a head, colours as in :meth:`Looks.picture`.

    Args:
        image: ``(C, H, W)``.
        maps: ``(heads, h, w)`` each, by name.
        at: The pixel (y, x).
        title: Above it.
        kinds: What the maps are where they are not heads of one.

    >>> import torch
    >>> panels(torch.rand(3, 8, 8), {"map": np.ones((2, 4, 4))}, (1, 2), "two heads").size
    (484, 516)
    """
    shown, factor = _enlarged(image)
    rows = []
    for number, name in enumerate(map_names(kinds, max(len(of) for of in maps.values()))):
        of_head = [of[min(number, len(of) - 1)] for of in maps.values()]
        label = f"{title}{name and f', {name}'}. Image, {', '.join(maps)}"
        rows.append((label, _row(shown, of_head)))
    return _sheet(shown, rows, at, factor, columns=1 + len(maps))


def _enlarged(image: Tensor) -> tuple[np.ndarray, int]:
    """The image as it is shown, small ones as a multiple of their size, and that multiple."""
    shown = _shown(image)
    factor = max(math.ceil(SIDE / max(shown.shape[:2])), 1)
    return shown.repeat(factor, 0).repeat(factor, 1), factor


def _row(shown: np.ndarray, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The image, then each map over it, all on one scale."""
    largest = max(float(np.abs(one).max()) for one in maps)
    return [shown, *(_over(shown, one, largest) for one in maps)]


def _sheet(
    shown: np.ndarray, rows: Sequence[tuple[str, list[np.ndarray]]], at: tuple[int, int], factor: int, columns: int
) -> "Image.Image":
    from PIL import Image, ImageDraw

    H, W = shown.shape[:2]
    height = sum(_TEXT + (H + 4) * bool(beside) for _, beside in rows)
    sheet = Image.new("RGB", (columns * (W + 4) - 4, max(height, 1)), (24, 24, 24))
    draw, top = ImageDraw.Draw(sheet), 0
    y, x = (round((c + 0.5) * factor) for c in at)
    for label, beside in rows:
        draw.text((2, top + 1), label.replace("×", "x"), fill=_MARK)
        top += _TEXT
        for column, panel in enumerate(beside):
            left = column * (W + 4)
            sheet.paste(Image.fromarray(panel.round().astype(np.uint8)), (left, top))
            draw.ellipse((left + x - 4, top + y - 4, left + x + 4, top + y + 4), outline=_MARK, width=2)
        top += (H + 4) * bool(beside)
    return sheet
