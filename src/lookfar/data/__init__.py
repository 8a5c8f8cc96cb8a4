"""Data sets by one word: ``scenes:lookup``, ``camvid:PATH``, ``folder:PATH`` or just ``PATH``, ``voc:PATH``, ..."""

from lookfar.data._base import IGNORE, Augment, Data, MemorySamples, Sample, Samples
from lookfar.data.scenes import CLASSES, open_scenes

__all__ = ["IGNORE", "Augment", "Data", "MemorySamples", "Sample", "Samples", "open_data"]


def open_data(spec, *, size=None, val=None, in_chans=3, ignore=(), skip_bad=False, root=None) -> Data:
    kind, _, rest = spec.partition(":")
    if kind == "scenes" and rest in CLASSES:
        return open_scenes(rest, spec)
    raise ValueError(f"no data {spec!r}")
