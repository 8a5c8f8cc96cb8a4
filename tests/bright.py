"""Images that have one label each, and a data set of them small enough to train on in a test."""

from typing import Any

import torch

from lookfar.data import Data, MemorySamples


def bright_data(
    *,
    train: int = 16,
    val: int = 6,
    classes: int = 2,
    bands: int = 3,
    target: Any = "class",
    size: tuple[int, int] = (8, 8),
) -> Data:
    """Class k is k steps brighter than class 0."""
    generator = torch.Generator().manual_seed(1)

    def samples(count: int) -> MemorySamples:
        labels = torch.arange(count) % classes
        noise = torch.randint(0, 20, (count, bands, *size), generator=generator)
        images = (noise + 230 * labels[:, None, None, None] // max(classes - 1, 1)).to(torch.uint8)
        return MemorySamples(images, labels, [f"{i:03d}" for i in range(count)])

    return Data(
        "bright", samples(train), samples(val), [f"light {k}" for k in range(classes)], bands, size,
        (0.5,) * bands, (0.25,) * bands, "How bright?", target=target,
    )  # fmt: skip
