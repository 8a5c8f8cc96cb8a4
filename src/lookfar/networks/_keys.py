"""How others call the parts of a head."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MMSEG = (("conv", "conv"), ("bn", "norm"))
SEQUENTIAL = (("0", "conv"), ("1", "norm"))


@dataclass(frozen=True)
class Keys:
    """Names before our places.

    Attributes:
        layers: Convolutions with norm: regular expression of a prefix -> our place.
        blocks: Prefix of a block's own names -> our place of the block; the empty prefix takes all that is left.
        plain: Layers without a norm, such as classifiers.
        parts: Names of convolution and norm within a layer -> ours.
        mark: The beginning of a key that shows whose names these are.
    """

    layers: Mapping[str, str]
    blocks: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, str] = field(default_factory=lambda: {"conv_seg": "classifier"})
    parts: tuple[tuple[str, str], ...] = MMSEG
    mark: str = "conv_seg."

    def with_block(self, theirs: str) -> "Keys":
        """The same layers with a block under ``theirs``."""
        return replace(self, blocks={theirs: "paths.0.block"})

    def with_layers(self, **layers: str) -> "Keys":
        """The same blocks with these layers."""
        return replace(self, layers=layers)

    @property
    def patterns(self) -> dict[str, str]:
        """What :func:`lookfar.weights.rename` takes, down to convolution and norm of each layer."""
        of = [(theirs, ours, part, own) for theirs, ours in self.layers.items() for part, own in self.parts]
        return {**self.plain, **{rf"{theirs}\.{part}": f"{ours}.{own}" for theirs, ours, part, own in of}}


FCN = Keys({r"convs\.0": "paths.0.before", r"convs\.1": "paths.0.after", "conv_cat": "fuse"})
ROOT = Keys({}, {"": "paths.0.block"})
# XiaLiPKU/EMANet, MenghaoGuo/EANet, Gsunshine/Enjoy-Hamburger
FC = Keys({"fc0": "paths.0.before", r"fc1\.0": "paths.0.after"}, plain={"fc2": "classifier"}, mark="fc0.")
MMSEG_DANET = Keys(
    {
        "pam_in_conv": "paths.0.before",
        "pam_out_conv": "paths.0.after",
        "cam_in_conv": "paths.1.before",
        "cam_out_conv": "paths.1.after",
    },
    {"pam": "paths.0.block", "cam": "paths.1.block"},
    {"conv_seg": "classifier", "pam_conv_seg": "classifiers.0", "cam_conv_seg": "classifiers.1"},
)
# junfu1115/DANet
DANET = Keys(
    {"conv5a": "paths.0.before", "conv51": "paths.0.after", "conv5c": "paths.1.before", "conv52": "paths.1.after"},
    {"sa": "paths.0.block", "sc": "paths.1.block"},
    {r"conv8\.1": "classifier", r"conv6\.1": "classifiers.0", r"conv7\.1": "classifiers.1"},
    SEQUENTIAL,
    mark="conv5a.",
)
# speedinghzl/CCNet, by the names of two of its versions
CCNET = Keys(
    {"conv1a": "paths.0.before", "conv1b": "paths.0.after", "bottleneck": "fuse"},
    {"cca": "paths.0.block", "pc": "paths.0.block"},
    {r"bottleneck\.3": "classifier"},
    SEQUENTIAL,
    mark="conv1a.",
)
# hszhao/semseg
SEMSEG = Keys({"cls": "paths.0.after"}, plain={r"cls\.4": "classifier"}, parts=SEQUENTIAL, mark="cls.")
# openseg-group/openseg.pytorch
OPENSEG_OCR = Keys(
    {},
    {"spatial_ocr_head": "paths.0.block"},
    {r"conv_3x3\.0": "paths.0.before.conv", r"conv_3x3\.1\.0": "paths.0.before.norm", "head": "classifier"},
    mark="conv_3x3.",
)
OPENSEG_ISA = Keys(
    {},
    {"isa_head.2": "paths.0.block"},
    {r"isa_head\.0": "paths.0.before.conv", r"isa_head\.1\.0": "paths.0.before.norm", "cls_head": "classifier"},
    mark="isa_head.",
)
OPENSEG_AUXILIARY = Keys(
    {}, plain={"0": "paths.0.before.conv", r"1\.0": "paths.0.before.norm", "3": "classifier"}, mark="1.0."
)
