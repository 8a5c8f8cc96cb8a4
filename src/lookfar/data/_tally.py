"""The values of masks, counted: how many pixels and which files hold each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lookfar.data._values import colour_word
from lookfar.data._words import counted, cut, listed, name_of, percent
from lookfar.data.scan import Found, Pair


def kind_of(found: Found) -> str:
    return "coloured" if found.coloured else "indexed" if found.colours else "grey"


def keys_of(found: Found, by_colour: bool) -> Sequence[int]:
    """The values by which a mask is read: its colours or its numbers."""
    if not by_colour:
        return [value & 255 for value in found.values] if found.coloured else found.values
    if found.coloured or found.colours:
        return found.values if found.coloured else found.colours
    return [value * 0x010101 if value < 256 else -1 - value for value in found.values]


@dataclass
class Use:
    """How often a value occurs, and in which files."""

    pixels: int = 0
    files: list[str] = field(default_factory=list)


class Tally(dict[int, Use]):
    """Value -> how many pixels and which files hold it; colours and numbers apart."""

    def __init__(self, found: Mapping[Pair, Found], by_colour: bool) -> None:
        super().__init__()
        self.total, self.coloured = 0, by_colour
        for pair, result in found.items():
            name = name_of(pair.mask)
            for key, pixels in zip(keys_of(result, by_colour), result.counts):
                use = self.setdefault(key, Use())
                use.pixels += pixels
                self.total += pixels
                if not use.files or use.files[-1] != name:
                    use.files.append(name)

    def word(self, key: int) -> str:
        return colour_word(key) if self.coloured and key >= 0 else str(key if key >= 0 else -1 - key)

    def shares(self, keys: Sequence[int], room: int) -> str:
        """Shares and files, and one that holds the rarest: ``0 (97 %, 8 files), 3 (3 %, 1 file: a.png)``."""
        rarest = min(keys, key=lambda key: self[key].pixels)
        texts = []
        for key in keys:
            share, files = percent(self[key].pixels, self.total), self[key].files
            example = f": {cut(files[0], 24)}" if key == rarest else ""
            texts.append(f"{self.word(key)} ({share}, {counted(files, 'file')}{example})")
        return listed(texts, room)

    def line(self, key: int) -> str:
        return f"mask {'colour' if self.coloured else 'value'} {self.word(key)} in {counted(self[key].files, 'file')}"

    def share(self, keys: Iterable[int]) -> float:
        return sum(self[key].pixels for key in keys) / max(self.total, 1)
