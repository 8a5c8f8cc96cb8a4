"""What a data set is made of, so that two looks at it can be compared: names, images, labels, classes, size.

What counts is what training sees: neither paths, nor times of files, nor how pixels are stored.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lookfar.data._base import Data, MemorySamples, Samples
from lookfar.data._words import counted, cut, listed, shown
from lookfar.data.scan import digest_of

PARTS = ("classes", "size", "in_chans", "sets")  # of a fingerprint, beside what the data set is called
ROOM = 60  # characters of a list of names


def fingerprint(data: Data) -> dict[str, Any]:
    """Names of classes, size, bands, and for each set ``[name, image, mask]`` of every sample, as JSON holds them."""
    sets = {"train": data.train, "val": data.val} | ({} if data.also_val is None else {"also_val": data.also_val})
    return {
        "name": data.name,
        "target": data.target,
        "classes": [str(name) for name in data.classes],
        "size": list(data.size),
        "in_chans": data.in_chans,
        "sets": {split: _entries(samples) for split, samples in sets.items()},
    }


def _entries(samples: Samples) -> list[list[str]]:
    if isinstance(samples, MemorySamples):  # drawn, not collected: thousands of names would say nothing
        return [[f"{len(samples)} samples", digest_of(samples.inputs.numpy()), digest_of(samples.targets.numpy())]]
    digests: Sequence[tuple[str, str]] = getattr(samples, "digests", ())
    if not digests:
        pairs = (samples[index] for index in range(len(samples)))
        digests = [(digest_of(np.asarray(image)), digest_of(np.asarray(mask))) for image, mask in pairs]
    return [[shown(str(name)), image, mask] for name, (image, mask) in zip(samples.names, digests)]


def digest(found: Mapping[str, Any]) -> str:
    """Equal for equal fingerprints; what the data set is called does not count."""
    content = {key: value for key, value in found.items() if key in PARTS}
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two fingerprints differ, a few words each: ``masks of val changed: a, b``; empty where in nothing."""
    if digest(there) == digest(now):
        return []
    named = [f"data: {cut(there['name'])} there, {cut(now['name'])} now"] if there["name"] != now["name"] else []
    found = _of_classes(there["classes"], now["classes"])
    for key, word in (("size", "size"), ("in_chans", "in_chans")):
        if there[key] != now[key]:
            found.append(f"{word}: {_numbers(there[key])} there, {_numbers(now[key])} now")
    targets = "labels" if now.get("target") == "class" else "masks"
    for split in dict.fromkeys([*there["sets"], *now["sets"]]):
        before, after = (which["sets"].get(split, []) for which in (there, now))
        found += _of_set(split.replace("_", "-"), before, after, targets)
    return [*named, *found]


def _of_classes(there: Sequence[str], now: Sequence[str]) -> list[str]:
    if len(there) != len(now):
        return [f"classes: {len(there)} there, {len(now)} now"]
    other = [i for i, (a, b) in enumerate(zip(there, now)) if a != b]
    if not other:
        return []
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    return [f"class {other[0]}: {cut(there[other[0]], 24)} there, {cut(now[other[0]], 24)} now{more}"]


def _of_set(split: str, there: Sequence[Sequence[str]], now: Sequence[Sequence[str]], targets: str) -> list[str]:
    before = {name: (image, mask) for name, image, mask in there}
    after = {name: (image, mask) for name, image, mask in now}
    gone, new = [n for n in before if n not in after], [n for n in after if n not in before]
    both = [name for name in before if name in after]
    if gone and sorted(before[n] for n in gone) == sorted(after[n] for n in new):
        found = [f"{split}: {counted(gone, 'name')} changed ({cut(gone[0], 24)} there, {cut(new[0], 24)} now)"]
    else:
        moves = ((gone, "missing"), (new, "new"))
        found = [f"{split}: {len(names)} {word} ({listed(names, ROOM)})" for names, word in moves if names]
    for at, what in enumerate(("images", targets)):
        if changed := [name for name in both if before[name][at] != after[name][at]]:
            found.append(f"{what} of {split} changed: {listed(changed, ROOM)}")
    if not found and [name for name, *_ in there] != [name for name, *_ in now]:
        found.append(f"{split}: another order")
    return found


def _numbers(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
