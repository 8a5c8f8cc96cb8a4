"""From pairs of files to a data set: scan, judge what was found, choose a size, cache what was decoded."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lookfar.data import _judging as judging
from lookfar.data._base import Data, Sample, Samples
from lookfar.data._matching import Find, Split
from lookfar.data._reading import read_mask, read_picture, to_bands
from lookfar.data._stored import check_size, turned
from lookfar.data._values import Value, Wanted
from lookfar.data._words import grouped, shorten, shown
from lookfar.data.labels import Labels, give_meaning
from lookfar.data.scan import Found, Pair, reason, scan
from lookfar.data.transforms import RandomView, resize

MEMORY = 2**30  # bytes of decoded samples that stay
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what pretrained backbones expect of RGB


@dataclass
class Source:
    """The files of a data set before any was opened.

    Attributes:
        root: Its folder.
        train: Images and masks for training.
        val: For validation.
        classes: Names, or None without any.
        classes_from: Where the names come from.
        table: Colour of each class, 0xRRGGBB, where the names come with colours.
        labels: Value in a mask -> label, where they differ; values without a label go to 255.
        question: What is to be learned; by default made from the classes.
        notes: What else the reader should know.
        unmatched: Files that have no partner.
        lone_masks: Which of them are masks.
        also: A second set to judge by, or None.
        find: A folder or split by what the user calls it.
    """

    root: Path
    train: list[Pair]
    val: list[Pair]
    classes: list[str] | None = None
    classes_from: str = ""
    table: list[int] | None = None
    labels: Mapping[int, int] = field(default_factory=dict)
    question: str = ""
    notes: list[str] = field(default_factory=list)
    unmatched: list[Path] = field(default_factory=list)
    lone_masks: list[Path] = field(default_factory=list)
    also: list[Pair] | None = None
    find: Find = lambda _: None

    def leave(self, split: Split) -> None:
        """Remember the files of a split that have no partner."""
        self.unmatched += split.alone
        self.lone_masks += split.masks


@dataclass(frozen=True)
class Options:
    """What the user says about the files; see :func:`lookfar.data.open_data`."""

    size: tuple[int, int] | None = None
    in_chans: int = 3
    ignore: tuple[Value, ...] = ()
    labels: tuple[Value, ...] = ()
    classes: int | None = None
    exif: str | None = None
    skip_bad: bool = False
    flip: bool = True
    white: float | None = None


class FileSamples:
    """Samples decoded when first asked for; they stay in memory while there is room."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: tuple[int, int],
        in_chans: int,
        labels: Labels,
        peak: float,
        upright: Collection[Pair] = (),
        digests: Sequence[tuple[str, str]] = (),
        memory: int = MEMORY,
    ) -> None:
        self.pairs, self.names = list(pairs), [pair.name for pair in pairs]
        self.size, self.in_chans, self.labels, self.peak = size, in_chans, labels, peak
        self.upright, self.digests = frozenset(upright), list(digests)
        sample_bytes = size[0] * size[1] * (in_chans + 1)
        self.kept: dict[int, Sample] = {}
        self.room = memory // sample_bytes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Sample:
        if index in self.kept:
            return self.kept[index]
        sample = self._read(self.pairs[index])
        if len(self.kept) < self.room:
            self.kept[index] = sample
        return sample

    def own_target(self, index: int) -> torch.Tensor:
        """Labels at the size that the file has, upright where the sample is."""
        pair = self.pairs[index]
        try:
            stored = read_mask(pair.mask)
            mask = self.labels(stored)
        except Exception as error:  # the file has changed since the scan
            raise ValueError(f"cannot read {shown(str(pair.mask))}: {reason(error)}") from error
        return torch.from_numpy(_upright(mask, stored.turn) if pair in self.upright else mask)

    def own_image(self, index: int) -> torch.Tensor:
        """The image at the size that its file has, upright where the sample is."""
        return self._decode(self.pairs[index])[0]

    def _read(self, pair: Pair) -> Sample:
        image, mask = self._decode(pair)
        return (image, mask) if mask.shape == self.size else resize(image, mask, self.size)

    def _decode(self, pair: Pair) -> Sample:
        path = pair.mask
        try:
            stored = read_mask(path)
            path = pair.image
            picture = read_picture(path, stored.values.shape)
            image, mask = to_bands(picture, self.in_chans, self.peak), self.labels(stored)
        except Exception as error:  # the file has changed since the scan
            raise ValueError(f"cannot read {shown(str(path))}: {reason(error)}") from error
        if pair in self.upright:
            image = torch.from_numpy(_upright(image.numpy().transpose(1, 2, 0), picture.turn).transpose(2, 0, 1).copy())
            mask = _upright(mask, stored.turn)
        return image, torch.from_numpy(mask)


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    return np.ascontiguousarray(turned(pixels, turn))


def open_files(source: Source, name: str, options: Options) -> Data:
    """Scan the files of a source and make a :class:`Data` of them; what would break training later raises here."""
    wanted = Wanted(
        source.classes,
        source.classes_from,
        source.table,
        source.labels,
        options.labels,
        options.classes,
        options.ignore,
    )
    alone = source.train is source.val  # one split, to judge by
    sets = {"train": source.train, "val": source.val} | ({} if source.also is None else {"also_val": source.also})
    judging.check_matched(source.unmatched, sets, options.skip_bad)
    judging.check_not_empty(sets, name)
    found = scan([pair for pairs in sets.values() for pair in pairs], source.root)
    upright = judging.choose_turns(found, options.exif)
    bad = {pair: result.error or judging.why_apart(pair, result, pair in upright) for pair, result in found.items()}
    bad = {pair: error for pair, error in bad.items() if error}
    skipped = judging.leave_out(source.unmatched, sets, bad, options.skip_bad)
    good = {pair: result for pair, result in found.items() if pair not in bad}
    sets = {split: [pair for pair in pairs if pair in good] for split, pairs in sets.items()}
    judging.check_not_empty(sets, name)

    judging.check_bands(good, options.in_chans)
    judging.check_not_void(sets, good, wanted)
    labels, count, mask_lines = give_meaning(good, wanted)
    classes = source.classes or [f"class {i}" for i in range(count)]
    present = {split: judging.count_labels(labels, [good[pair] for pair in pairs]) for split, pairs in sets.items()}
    judging.check_labelled(present, sets, good, classes)
    if skipped:
        lost = [found[pair] for pair in bad] + [judging.look_alone(path) for path in source.lone_masks]
        judging.check_lost(labels, lost, good.values(), present["train"], wanted)
    size, size_lines = judging.choose_size(
        [judging.upright_size(good[pair], pair in upright) for pair in good], options.size
    )
    try:
        check_size(*size, options.in_chans + 1)
    except ValueError:
        raise ValueError(f"--size {size[0]}x{size[1]} with {options.in_chans} bands is too large to train on") from None
    peak, peak_lines = judging.choose_peak(good, sets, options.white)

    samples = {
        split: FileSamples(
            pairs,
            size=size,
            in_chans=options.in_chans,
            labels=labels,
            peak=peak,
            upright=upright & set(pairs),
            digests=[_digests(good[pair], labels, peak, pair in upright) for pair in pairs],
        )
        for split, pairs in sets.items()
    }
    judging.check_resized(samples, size)
    mean, std = IMAGENET if options.in_chans == 3 else statistics(samples["train"])
    counts = ", ".join(f"{grouped(len(pairs))} {split.replace('_', ' ')}" for split, pairs in sets.items())
    data = Data(
        name=shown(name),
        train=samples["train"],
        val=samples["val"],
        classes=classes,
        in_chans=options.in_chans,
        size=size,
        mean=mean,
        std=std,
        question=source.question or f"Give every pixel one of {len(classes)} classes: {shorten(classes, 12)}.",
        facts=[
            f"{counts}; {len(classes)} classes{_origin(wanted)}; {judging.kinds(good.values())}.",
            *size_lines,
            *peak_lines,
            *judging.turn_lines(good, upright),
            *mask_lines,
            *judging.find_absent(present, classes),
            *([] if alone else judging.find_alike(sets, good)),
            *skipped,
            *source.notes,
        ],
        augment=RandomView(flip=0.5 if options.flip else 0.0),
        threads=True,
        also_val=samples.get("also_val"),
    )
    return data


def _digests(found: Found, labels: Labels, peak: float, upright: bool) -> tuple[str, str]:
    """Equal for images, and for masks, that enter training as the same numbers."""
    image = [found.digest, found.turn if upright else 1, 255.0 if found.depth == "8-bit" else peak]
    mask = [found.mask_digest, found.mask_turn if upright else 1, *zip(found.values, labels.of_values(found))]
    of_image, of_mask = (hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest() for parts in (image, mask))
    return of_image, of_mask


def _origin(wanted: Wanted) -> str:
    if wanted.names is not None:
        return f" (from {wanted.origin})"
    if wanted.labels:
        return " (from --labels)"
    return " (no classes.txt: counted in the masks)" if wanted.count is None else " (as --classes says)"


def statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band over up to 64 images, evenly spaced."""
    chosen = range(0, len(samples), -(-len(samples) // 64))
    sums, squares, count = 0.0, 0.0, 0
    for index in chosen:  # one at a time: all at once are gigabytes
        pixels = samples[index][0].flatten(1).double() / 255
        sums, squares, count = sums + pixels.sum(1), squares + pixels.square().sum(1), count + pixels.shape[1]
    mean = torch.as_tensor(sums) / count
    std = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())
