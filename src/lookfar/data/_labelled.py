"""From files with one label each to a data set: heads read, what was found judged, a size chosen, views made."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from lookfar.data import _judging as judging
from lookfar.data import _label_doubts as doubts
from lookfar.data._base import Data, Sample, Samples
from lookfar.data._files import IMAGENET, MEMORY, statistics
from lookfar.data._heads import ImageHead, Labelled, scan_heads
from lookfar.data._reading import Picture, read_picture, to_bands
from lookfar.data._stored import check_size, turned, turned_size
from lookfar.data._words import grouped, shorten, shown
from lookfar.data.scan import File, digest_of, reason
from lookfar.data.views import Views, choose_views

_BY_HEADS = "many files: read by their beginnings; --skip-bad decodes all of them before the first step."


Find = Callable[[str], list[Labelled] | None]  # a set by what the user calls it


@dataclass
class ClassSource:
    """The files of a data set before any was opened.

    Attributes:
        root: Its folder.
        train: For training.
        val: For validation.
        classes: Names; the index is the label.
        classes_from: Where the names come from.
        also: A second set to judge by, or None.
        notes: What else the reader should know.
        published: A public set is what it is: what others would have to correct is reported.
        arrays: Images ``(S, H, W)`` or ``(S, H, W, 3)``, uint8, of sets that lie in memory.
        find: A set by what the user calls it; None where there is none.
    """

    root: Path
    train: list[Labelled]
    val: list[Labelled]
    classes: list[str]
    classes_from: str
    also: list[Labelled] | None = None
    notes: list[str] = field(default_factory=list)
    published: bool = False
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    find: Find = lambda _: None

    def look(self, files: Sequence[Labelled], whole: bool | None) -> dict[Labelled, ImageHead]:
        """What all of them hold."""
        return {file: self._look(file) for file in files} if self.arrays else scan_heads(files, self.root, whole=whole)

    def _look(self, file: Labelled) -> ImageHead:
        pixels = self.pixels(file)
        bands = pixels.shape[-1]
        mode = "L" if bands == 1 else "RGB"
        return ImageHead(pixels.shape[:2], 1, bands, mode, digest=digest_of(pixels), length=pixels.nbytes, whole=True)

    def read(self, file: Labelled) -> Picture:
        """An image."""
        if not self.arrays:
            return read_picture(file.image)
        pixels = self.pixels(file)
        return Picture(pixels, "L" if pixels.shape[-1] == 1 else "RGB")

    def pixels(self, file: Labelled) -> NDArray:
        """``(H, W, bands)``, of an image in an array."""
        pixels = self.arrays[file.image.parts[0]][int(file.image.parts[1])]
        return pixels[..., None] if pixels.ndim == 2 else pixels


@dataclass(frozen=True)
class ClassOptions:
    """What the user says; see :func:`lookfar.data.open_data`."""

    size: tuple[int, int] | None = None
    in_chans: int = 3
    exif: str | None = None
    skip_bad: bool = False
    crop_pct: float | None = None
    flip: bool = True


class LabelledSamples:
    """Images decoded when first asked for; they stay in memory while there is room. Those to train on keep their shape.

    Attributes:
        files: Of the samples.
        digests: Of image and label of each.
    """

    def __init__(
        self,
        files: Sequence[Labelled],
        *,
        read: Callable[[Labelled], Picture],
        view: Callable[[Tensor], Tensor],
        in_chans: int,
        peak: float,
        upright: Collection[File],
        digests: Sequence[tuple[str, str]] = (),
        memory: int = MEMORY,
    ) -> None:
        self.files, self.names = list(files), [file.name for file in files]
        self.read, self.view, self.in_chans, self.peak = read, view, in_chans, peak
        self.upright, self.digests = frozenset(upright), list(digests)
        self.kept: dict[int, Tensor] = {}
        self.room = memory

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        image = self.kept.get(index)
        if image is None:
            image = self._read(self.files[index])
            if image.numel() <= self.room:
                self.room -= image.numel()
                self.kept[index] = image
        return image, torch.tensor(self.files[index].label)

    def _read(self, file: Labelled) -> Tensor:
        try:
            picture = self.read(file)
            image = to_bands(picture, self.in_chans, self.peak)
        except Exception as error:  # damaged in its middle, or changed since the scan
            raise ValueError(
                f"cannot read {shown(str(file.image))}: {reason(error)}. --skip-bad leaves it out"
            ) from error
        if file in self.upright:
            pixels = turned(image.numpy().transpose(1, 2, 0), picture.turn)
            image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return self.view(image)


def open_labelled(source: ClassSource, name: str, options: ClassOptions) -> Data:
    """Look at the files of a source and make a :class:`Data` of them.

    Raises:
        ValueError: Files are damaged or contradict each other, or a class has none.
    """
    sets = {"train": source.train, "val": source.val} | ({} if source.also is None else {"also_val": source.also})
    judging.check_not_empty(sets, name, "images")
    doubts.check_learned(source.train, source.classes, source.published)
    files = [file for some in sets.values() for file in some]
    heads = source.look(files, True if options.skip_bad else None)
    bad = {file: head.error for file, head in heads.items() if head.error}
    lines = judging.leave_out([], sets, bad, options.skip_bad)
    good = {file: head for file, head in heads.items() if file not in bad}
    doubles, double_lines = doubts.find_doubles(sets, good, options.skip_bad, source.published)
    sets = {split: [f for f in some if f in good and f not in doubles[split]] for split, some in sets.items()}
    judging.check_not_empty(sets, name, "images")
    doubts.check_left(source.train, sets["train"], source.classes)
    judging.check_bands(good, options.in_chans)
    upright = set() if options.exif == "ignore" else {file for file, head in good.items() if head.turn != 1}
    sizes = [turned_size(head.size, head.turn) if file in upright else head.size for file, head in good.items()]
    views = choose_views(sizes, options.size, options.crop_pct, options.flip)
    peak, peak_lines = judging.choose_peak(good, sets)
    samples = {
        split: LabelledSamples(
            some,
            read=source.read,
            view=views.kept if split == "train" else views.val,
            in_chans=options.in_chans,
            peak=peak,
            upright=upright & set(some),
            digests=[(good[file].digest, str(file.label)) for file in some],
            memory=0 if source.arrays else MEMORY,
        )
        for split, some in sets.items()
    }
    return assemble(
        name,
        samples,
        source.classes,
        options,
        views,
        [
            f"{counted_sets(samples)}; {len(source.classes)} classes ({source.classes_from}); "
            f"{judging.image_kinds(good.values())}.",
            *doubts.count_lines(sets, source.classes),
            *views.lines,
            *peak_lines,
            *doubts.turn_lines(good, upright),
            *double_lines,
            *lines,
            *([] if all(head.whole for head in good.values()) else [_BY_HEADS]),
            *source.notes,
        ],
    )


def counted_sets(sets: Mapping[str, Samples]) -> str:
    """``1 204 train, 301 val``."""
    return ", ".join(f"{grouped(len(some))} {split.replace('_', ' ')}" for split, some in sets.items())


def assemble(
    name: str, samples: Mapping[str, Samples], classes: list[str], options: ClassOptions, views: Views, facts: list[str]
) -> Data:
    """A :class:`Data` of samples with one label each."""
    try:
        check_size(*views.size, options.in_chans)
    except ValueError:
        size = f"{views.size[0]}x{views.size[1]}"
        raise ValueError(f"--size {size} with {options.in_chans} bands is too large to train on") from None
    mean, std = IMAGENET if options.in_chans == 3 else statistics(samples["train"])
    return Data(
        name=shown(name),
        train=samples["train"],
        val=samples["val"],
        classes=classes,
        in_chans=options.in_chans,
        size=views.size,
        mean=mean,
        std=std,
        question=f"Name what an image shows, one of {len(classes)} classes: {shorten(classes, 12)}.",
        facts=facts,
        augment=views.train,
        threads=True,
        also_val=samples.get("also_val"),
        target="class",
    )
