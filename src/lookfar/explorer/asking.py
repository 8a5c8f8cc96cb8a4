"""What the page asks: what networks say of an image, and where their blocks look from a point of it."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lookfar._tables import map_names
from lookfar.explorer.pictures import Picture
from lookfar.explorer.subjects import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.diagnostics import Seen

KEPT = 4  # images whose features are kept


class _Known(NamedTuple):
    seen: "list[Seen]"
    output: "Tensor"  # (K, h, w) or (K,)


class Answers:
    """Networks and the images they have been shown; features are computed once an image, a click costs one row.

    Args:
        subjects: The networks.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = tuple(subjects)
        self._known: OrderedDict[int, list[_Known]] = OrderedDict()
        self._pictures: OrderedDict[int, Picture] = OrderedDict()
        self._next = 0
        self._lock = threading.Lock()  # one network at a time, and one after the other
        self._averaging = threading.Lock()  # a mean map may take seconds, and clicks do not wait for it

    def start(self) -> dict[str, Any]:
        """What the page opens with: names of networks, of their blocks, and of the images that come with them."""
        networks = [{"name": s.name, "blocks": _blocks(s.network)} for s in self.subjects]
        return {"networks": networks, "samples": self.samples()}

    def samples(self) -> list[str]:
        """Names of the images of the first network that has some."""
        return next((names for s in self.subjects if (names := s.samples())), [])

    def sample(self, index: int) -> Picture:
        """One of them.

        Raises:
            ValueError: No such image.
        """
        names = self.samples()
        if not 0 <= index < len(names):
            raise ValueError(f"want an image from 0 to {len(names) - 1}, got {index}")
        return next(s for s in self.subjects if s.samples()).sample(index)

    def show(self, picture: Picture) -> dict[str, Any]:
        """Take in an image: what the page draws, and the number to ask for it by.

        Raises:
            ValueError: A network cannot take it.
        """
        with self._lock:
            known = [self._run(subject, picture) for subject in self.subjects]
            number, self._next = self._next, self._next + 1
            self._known[number] = known
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        says = [self._says(s, one.output, None) for s, one in zip(self.subjects, known)]
        return {**picture.to_json(), "image": number, "says": says}

    def look(self, number: int, x: float, y: float, *, mean: bool = False) -> list[dict[str, Any]]:
        """Where every block of every network looks from a point.

        Args:
            number: Of the image.
            x: From left to right, in [0, 1].
            y: From top to bottom, in [0, 1].
            mean: The mean map of all queries as well: it costs all rows, once an image.

        Raises:
            ValueError: A point outside, or an image that is not kept any more.
        """
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"want a point with x and y in [0, 1], got ({x:g}, {y:g})")
        with self._lock:
            if number not in self._known:
                raise ValueError("this image is not kept any more: choose it again")
            self._known.move_to_end(number)
            known = self._known[number]
            answer = [
                {
                    "says": self._says(subject, one.output, (y, x)),
                    "blocks": [_of_block(seen, (y, x)) for seen in one.seen],
                }
                for subject, one in zip(self.subjects, known)
            ]
        if mean:
            with self._averaging:
                for found, one in zip(answer, known):
                    for block, seen in zip(found["blocks"], one.seen):
                        block |= {} if seen.reason else {"mean": _numbers(seen.mean)}
        return answer

    @staticmethod
    def _run(subject: Subject, picture: Picture) -> _Known:
        from lookfar.diagnostics.seeing import see_with_output

        seen, output = see_with_output(subject.network, subject.prepare(picture))
        return _Known(seen, output[0])

    @staticmethod
    def _says(subject: Subject, output: "Tensor", at: tuple[float, float] | None) -> str:
        """The class at a point, or of the image; empty where the output is neither."""
        if output.dim() == 3 and at is not None:
            y, x = (min(int(place * n), n - 1) for place, n in zip(at, output.shape[1:]))
            output = output[:, y, x]
        if output.dim() != 1 or len(output) < 2:
            return ""
        label = int(output.argmax())
        return subject.classes[label] if label < len(subject.classes) else f"class {label}"


def _blocks(network: "nn.Module") -> list[dict[str, Any]]:
    """Name, and the reason why there are no maps, of each block."""
    from lookfar.diagnostics import blocks_of, why_no_maps
    from lookfar.diagnostics.maps import inner_block

    blocks = {name: inner_block(network.get_submodule(name)) for name in blocks_of(network)}
    return [{"name": name, "reason": why_no_maps(block)} for name, block in blocks.items()]


def _of_block(seen: "Seen", at: tuple[float, float]) -> dict[str, Any]:
    about = {"name": seen.label, "block": seen.block, "reason": seen.reason}
    if seen.reason:
        return about
    H, W = seen.image_size
    pixel = min(int(at[0] * H), H - 1), min(int(at[1] * W), W - 1)
    (y, x), (h, w) = seen.query(pixel), seen.size
    weights = seen.weights(pixel)
    names = map_names(seen.kinds, len(weights))
    where = {"size": list(seen.grid), "query": [(y + 0.5) / h, (x + 0.5) / w]}
    return about | where | {"names": names, "maps": _numbers(weights)}


def _numbers(maps: "Tensor") -> list[list[float]]:
    """One list of weights a map, to four digits."""
    return [[float(f"{value:.4g}") for value in one.flatten().tolist()] for one in maps]
