"""From pairs of files to a data set: scan, choose a size, cache what was decoded."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lookfar.data._base import IGNORE, Data, Sample, Samples
from lookfar.data._reading import bands_fit, mask_words, read_mask, read_picture, to_bands
from lookfar.data.scan import Found, Pair, check_masks, grouped, labels_of, scan, shorten
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
        classes: Names, or None where nobody gave any.
        classes_from: Where the names come from.
        labels: Value in a mask -> label, where they differ; values without a label go to 255.
        task: What is to be learned; by default made from the classes.
        notes: What else the reader should know.
        unmatched: Files that have no partner.
    """

    root: Path
    train: list[Pair]
    val: list[Pair]
    classes: list[str] | None = None
    classes_from: str = ""
    labels: Mapping[int, int] = field(default_factory=dict)
    task: str = ""
    notes: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


class FileSamples:
    """Samples decoded when first asked for; they stay in memory while there is room."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: tuple[int, int],
        in_chans: int,
        labels: np.ndarray,
        peak: float,
        memory: int = MEMORY,
    ) -> None:
        self.pairs, self.names = list(pairs), [pair.name for pair in pairs]
        self.size, self.in_chans, self.labels, self.peak = size, in_chans, labels, peak
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

    def _read(self, pair: Pair) -> Sample:
        values, _ = read_mask(pair.mask)
        image = to_bands(read_picture(pair.image, values.shape), self.in_chans, self.peak)
        mask = torch.from_numpy(self.labels[values])
        return (image, mask) if mask.shape == self.size else resize(image, mask, self.size)


def open_files(
    source: Source, name: str, *, size: tuple[int, int] | None, in_chans: int, ignore: Sequence[int], skip_bad: bool
) -> Data:
    """Scan the files of a source and make a :class:`Data` of them; raises before the first step what would break it."""
    skipped = _unmatched(source.unmatched, skip_bad)
    found = scan([*source.train, *source.val], source.root)
    bad = {pair: result.error for pair, result in found.items() if result.error}
    if bad and not skip_bad:
        raise ValueError(
            f"{_files(len(bad))} cannot be used: {shorten(list(bad.values()))}. "
            "Repair or remove them, or give --skip-bad to go on without them."
        )
    if bad:
        skipped.append(f"skipped {_files(len(bad))} that cannot be used: {shorten(list(bad.values()))}.")
    good = {pair: result for pair, result in found.items() if not result.error}
    train, val = ([pair for pair in pairs if pair in good] for pairs in (source.train, source.val))
    if not train or not val:
        raise ValueError(f"{name}: {len(train)} images for training and {len(val)} for validation; want one of each")
    _check_bands(good, in_chans)
    count, mask_lines = check_masks(good, source.labels, ignore, len(source.classes) if source.classes else None)
    classes = source.classes or [f"class {i}" for i in range(count)]
    size, size_lines = _choose_size([result.size for result in good.values()], size)

    table = np.full(65536, IGNORE, dtype=np.uint8)
    values = sorted({value for result in good.values() for value in result.values})
    for value, label in labels_of(values, source.labels, ignore).items():
        table[value] = label
    peak = max(good[pair].peak for pair in train) or 1.0
    if peak != 255:
        size_lines.append(f"images are not 8-bit: 0 to {peak:g}, the largest value in train, becomes 0 to 255.")
    train_samples, val_samples = (
        FileSamples(pairs, size=size, in_chans=in_chans, labels=table, peak=peak) for pairs in (train, val)
    )
    mean, std = IMAGENET if in_chans == 3 else _statistics(train_samples)
    origin = f" (from {source.classes_from})" if source.classes_from else " (no classes.txt: counted in the masks)"
    return Data(
        name=name,
        train=train_samples,
        val=val_samples,
        classes=classes,
        in_chans=in_chans,
        size=size,
        mean=mean,
        std=std,
        task=source.task or f"Give every pixel one of {len(classes)} classes: {shorten(classes, 12)}.",
        facts=[
            f"{grouped(len(train))} train, {grouped(len(val))} val; {len(classes)} classes{origin}; "
            f"{_kinds(good.values())}.",
            *size_lines,
            *mask_lines,
            *_absent(good, train, val, source.labels, ignore, classes),
            *skipped,
            *source.notes,
        ],
        augment=RandomView(),
        threads=True,
    )


def _files(number: int) -> str:
    return f"{grouped(number)} file{'' if number == 1 else 's'}"


def _unmatched(names: list[str], skip_bad: bool) -> list[str]:
    if names and not skip_bad:
        raise ValueError(
            f"{_files(len(names))} without a partner: {shorten(names)}. An image and its mask have the same name up to "
            "the suffix; correct them, or give --skip-bad to go on without these."
        )
    return [f"skipped {_files(len(names))} without a partner: {shorten(names)}."] if names else []


def _check_bands(found: Mapping[Pair, Found], in_chans: int) -> None:
    wrong = [pair for pair, result in found.items() if not bands_fit(result.mode, result.bands, in_chans)]
    if wrong:
        bands = sorted({found[pair].bands for pair in wrong})
        cure = f"give --in-chans {bands[0]}" if len(bands) == 1 else "want one number of bands in all images"
        names = shorten([pair.image.name for pair in wrong])
        counts = " or ".join(map(str, bands))
        raise ValueError(f"{_files(len(wrong))} with {counts} bands, {in_chans} asked for ({names}): {cure}")


def _choose_size(sizes: Sequence[tuple[int, int]], size: tuple[int, int] | None) -> tuple[tuple[int, int], list[str]]:
    """The size asked for, else the one that all images have, else a typical one; and a line when images change."""
    distinct = set(sizes)
    if size is None and len(distinct) == 1:
        return sizes[0], []
    told = "" if size else " (the median; --size changes it)"
    height, width = size or (max(32, round(median(side) / 32) * 32) for side in zip(*sizes))
    if distinct == {(height, width)}:
        return (height, width), []
    before = f"images of {len(distinct)} sizes" if len(distinct) > 1 else f"images of {sizes[0][0]}×{sizes[0][1]}"
    line = f"{before} resized to {height}×{width}, height × width{told}."
    worst = max(max(r, 1 / r) for r in ((h / w) * (width / height) for h, w in distinct))
    if worst > 1.25:
        line += f" Sides change by up to {worst:.2g} against each other."
    return (height, width), [line]


def _statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band over up to 64 images, evenly spaced."""
    chosen = range(0, len(samples), -(-len(samples) // 64))
    pixels = torch.cat([samples[i][0].flatten(1) for i in chosen], 1).double() / 255
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).clamp_min(1e-3).tolist())


def _kinds(found: Collection[Found]) -> str:
    """``images 512×512 RGB, masks 8-bit indexed``."""
    sizes, modes = {f.size for f in found}, {f.mode for f in found}
    size = "{}×{}".format(*next(iter(sizes))) if len(sizes) == 1 else f"of {len(sizes)} sizes"
    bands = {"L": "grey", "bands": f"of {max(f.bands for f in found)} bands", "I;16": "16-bit grey"}
    words = sorted(bands.get(mode, mode) for mode in modes)
    return (
        f"images {size} {' and '.join(words)}, masks {' and '.join(sorted({mask_words(f.mask_mode) for f in found}))}"
    )


def _absent(
    found: Mapping[Pair, Found],
    train: Sequence[Pair],
    val: Sequence[Pair],
    labels: Mapping[int, int],
    ignore: Sequence[int],
    classes: Sequence[str],
) -> list[str]:
    """Classes that a split never shows: they cannot be learned, or are not judged."""
    lines = []
    for split, pairs in (("train", train), ("val", val)):
        values = {value for pair in pairs for value in found[pair].values}
        present = set(labels_of(values, labels, ignore).values())
        if absent := [name for label, name in enumerate(classes) if label not in present]:
            lines.append(f"never in {split}: {shorten(absent, 12)}.")
    return lines
