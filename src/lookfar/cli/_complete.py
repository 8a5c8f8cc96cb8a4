"""What a shell offers after a tab: names of blocks, kinds, families, data and places, without loading torch."""

from lookfar._overview import catalogue

# of the embedded scenes, of layouts with a word before their path, and of what timm's networks call their stages
DATA = (
    "scenes:lookup",
    "scenes:cue",
    "scenes:match",
    "scenes:red",
    "scenes:points",
    "classify:",
    "camvid:",
    "voc:",
    "cifar10:",
)
PLACES = ("layer1", "layer2", "layer3", "layer4", "stages.0", "stages.1", "stages.2", "stages.3")


def block_names(incomplete: str) -> list[str]:
    """Blocks; after a comma the next of a list, after an ``@`` the places.

    >>> block_names("criss"), block_names("nonlocal,criss"), block_names("nonlocal@layer4")
    (['criss_cross'], ['nonlocal,criss_cross'], ['nonlocal@layer4'])
    """
    before, comma, last = incomplete.rpartition(",")
    block, at, place = last.partition("@")
    if at:
        return [f"{before}{comma}{block}@{name}" for name in PLACES if name.startswith(place)]
    names = [block["name"] for block in catalogue()["blocks"]]
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def kinds(incomplete: str) -> list[str]:
    """Kinds of blocks."""
    return [name for name in catalogue()["kinds"] if name.startswith(incomplete)]


def families(incomplete: str) -> list[str]:
    """Families of blocks."""
    return [name for name in catalogue()["families"] if name.startswith(incomplete)]


def data_sets(incomplete: str) -> list[str]:
    """Data that come along, and the words that stand before a path."""
    return [name for name in DATA if name.startswith(incomplete)]


def places(incomplete: str) -> list[str]:
    """Stages of the networks of timm and torchvision."""
    return [name for name in PLACES if name.startswith(incomplete)]
