"""How mmsegmentation calls the parts of a head."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Keys:
    """Its names before our places.

    Attributes:
        layers: Convolutions with norm, and classifiers: regular expression of a prefix -> our place.
        blocks: Prefix of a block's own names -> our place of the block; the empty prefix takes all that is left.
    """

    layers: Mapping[str, str]
    blocks: Mapping[str, str] = field(default_factory=dict)

    def with_block(self, theirs: str) -> "Keys":
        """The same layers with a block under ``theirs``."""
        return Keys(self.layers, {theirs: "paths.0.block"})

    def with_layers(self, **layers: str) -> "Keys":
        """The same blocks with these layers."""
        return Keys(layers, self.blocks)

    @property
    def patterns(self) -> dict[str, str]:
        """What :func:`lookfar.weights.rename` takes, down to convolution and norm of each layer."""
        parts = {rf"{theirs}\.{part}": f"{ours}.{own}" for theirs, ours in self.layers.items() for part, own in _PARTS}
        return {"conv_seg": "classifier", **self.layers, **parts}


_PARTS = (("conv", "conv"), ("bn", "norm"))
FCN = Keys({r"convs\.0": "paths.0.before", r"convs\.1": "paths.0.after", "conv_cat": "fuse"})
ROOT = Keys({}, {"": "paths.0.block"})
