"""Networks to look into: a trial of a study, or whatever else :func:`lookfar.use.open_network` opens."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookfar.explorer.pictures import Picture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data

LONGEST = 1024  # pixels of the longer side of an image for a network that takes any size


@dataclass(frozen=True)
class Subject:
    """A network and how images enter it.

    Attributes:
        name: As the page calls it.
        network: In evaluation.
        prepare: A picture into what the network takes, ``(C, H, W)``.
        classes: Names, index = label; empty where nobody knows them.
        data: Whose validation images the page offers; None without.
    """

    name: str
    network: "nn.Module"
    prepare: "Callable[[Picture], Tensor]"
    classes: tuple[str, ...] = ()
    data: "Data | None" = None

    def samples(self) -> list[str]:
        """Names of the images that come with it."""
        return [] if self.data is None else list(self.data.val.names)

    def sample(self, index: int) -> Picture:
        """One of them."""
        from PIL import Image

        assert self.data is not None
        image = self.data.val[index][0].numpy()
        bands = image[:3] if len(image) >= 3 else image[:1].repeat(3, 0)
        shown = Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0)))
        return Picture(str(self.data.val.names[index]), shown, image)


def open_subjects(texts: Sequence[str]) -> list[Subject]:
    """Networks as :func:`open_subject` takes them, each by another name: trials of two studies by their paths.

    Raises:
        FileNotFoundError, ValueError: As there.
    """
    found = [open_subject(text) for text in texts]
    if len({one.name for one in found}) == len(found) or len(set(texts)) < len(texts):
        return found
    whole = [Path(text).absolute() for text in texts]
    shared = os.path.commonpath(whole)
    return [replace(one, name=path.relative_to(shared).as_posix()) for one, path in zip(found, whole)]


def open_subject(text: str) -> Subject:
    """A network by the folder of its trial, or as :func:`lookfar.use.open_network` takes it.

    Raises:
        FileNotFoundError, ValueError: No trial and no network there, or one that has no block to look from.
    """
    from lookfar.diagnostics import blocks_of
    from lookfar.study.trained import trial_in

    trial = trial_in(text)
    subject = _of_file(text) if trial is None else _of_trial(trial)
    if not blocks_of(subject.network):
        raise ValueError(f"{text}: the network has no block to look from; the baseline of a study has none")
    return subject


def _of_trial(folder: Path) -> Subject:
    from lookfar.study import load_trial

    network, data, _ = load_trial(folder, images=False)

    def prepare(picture: Picture) -> "Tensor":
        import torch

        if picture.bands is not None and picture.bands.shape == (data.in_chans, *data.size):
            return data.normalise(torch.from_numpy(picture.bands)[None])[0]
        if data.in_chans not in (1, 3) or len(data.size) != 2:
            raise ValueError(f"the network takes {data.in_chans} bands: only the images that come with it can be shown")
        H, W = data.size
        image = picture.image.convert("L" if data.in_chans == 1 else "RGB").resize((W, H))
        bands = torch.from_numpy(np.array(image).reshape(H, W, data.in_chans).transpose(2, 0, 1).copy())
        return data.normalise(bands[None])[0]

    return Subject("/".join(folder.resolve().parts[-2:]), network, prepare, tuple(data.classes), data)


def _of_file(text: str) -> Subject:
    from lookfar.use import open_network

    opened = open_network(text)
    network: Any = opened.network

    def prepare(picture: Picture) -> "Tensor":
        import torch

        image = picture.image.copy()
        image.thumbnail((LONGEST, LONGEST))
        return network.preprocessing(torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()))

    return Subject(Path(text).stem, network, prepare, opened.classes)
