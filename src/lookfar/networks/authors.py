"""How authors call the parts of their own networks, and what their code does that no parameter shows.

Traps: they align corners everywhere; semseg and CCNet dilate the first blocks of a stage too; CCNet and openseg round
sizes up in the first pool; CCNet's norms are InPlaceABN, whose weights count by their size, and its head is rectified
leakily; openseg's convolutions have biases before a norm, which are taken into the norm's mean;
CCNet and openseg were trained on blue, green, red, minus a mean and not scaled (their ``evaluate.py`` and ``configs``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookfar.networks.preprocessing import Preprocessing
from lookfar.weights import State, rename


@dataclass(frozen=True)
class Release:
    """A published network of its authors.

    Attributes:
        code: Their repository.
        name: Our head.
        mark: A key that shows that a state dict is of it.
        starts: Beginnings of their names of the ResNet.
        stages: Those names, as regular expressions of prefixes -> timm's.
        head: What stands before the names of the head.
        left: Beginnings of keys that are left out: auxiliary heads, classifiers of ImageNet.
        auxiliary: What stands before the names of the auxiliary head where it is wanted; empty where it is left out.
        arguments: What no shape tells.
        inplace_abn: Its norms are InPlaceABN.
    """

    code: str
    name: str
    mark: str
    starts: tuple[str, ...]
    stages: Mapping[str, str]
    head: str
    left: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inplace_abn: bool = False
    auxiliary: str = ""

    def split(self, state: State) -> tuple[State, State, State]:
        """The backbone's weights under timm's names, the head's and the auxiliary head's under the authors'."""
        kept = {key: value for key, value in state.items() if not key.startswith(self.left)}
        backbone = {key: value for key, value in kept.items() if key.startswith(self.starts)}
        rest = {key: value for key, value in kept.items() if key not in backbone}
        aside = {key for key in rest if self.auxiliary and key.startswith(self.auxiliary)}
        head = {key.removeprefix(self.head): value for key, value in rest.items() if key not in aside}
        return rename(backbone, self.stages), head, {key.removeprefix(self.auxiliary): rest[key] for key in aside}


def _bgr(*mean: float) -> dict[str, Any]:
    """Images as OpenCV reads them, minus a mean, not scaled; other releases take ImageNet's mean and deviation."""
    return {"preprocessing": Preprocessing(mean, (1.0, 1.0, 1.0), bgr=True)}


_ALL = {"align_corners": True, "output_stride": 8}
_SEMSEG: dict[str, Any] = {
    "starts": ("layer",),
    "stages": {r"layer0\.7": "bn1", "layer0": "conv1"},
    "head": "",
    "left": ("aux.",),
}
_FIRST_TOO = {**_ALL, "contract_dilation": False}
_OPENSEG: dict[str, Any] = {
    "starts": ("backbone.",),
    "stages": {
        r"backbone\.resinit\.conv1": "conv1.0",
        r"backbone\.resinit\.bn1": "conv1.1",
        r"backbone\.resinit\.conv2": "conv1.3",
        r"backbone\.resinit\.bn2": "conv1.4",
        r"backbone\.resinit\.conv3": "conv1.6",
        r"backbone\.resinit\.bn3": "bn1",
        "backbone": "",
    },
    "head": "",
}
_OPENSEG_MEAN = _bgr(102.9801, 115.9465, 122.7717)

RELEASES = (
    Release("hszhao/semseg", "pspnet", "ppm.features.0.1.weight", **_SEMSEG, arguments=_FIRST_TOO),
    Release(
        "hszhao/semseg",
        "psanet",
        "psa.reduce.0.weight",
        **_SEMSEG,
        arguments={**_FIRST_TOO, "variant": "authors", "shrink_factor": 2, "normalization_factor": 1.0},
    ),
    Release(
        "XiaLiPKU/EMANet",
        "emanet",
        "emau.mu",
        ("extractor.",),
        {r"extractor\.0": "conv1", r"extractor\.1": "bn1"} | {rf"extractor\.{n + 3}": f"layer{n}" for n in range(1, 5)},
        head="",
        left=(),
        arguments={**_ALL, "last_dilations": (2, 8, 16), "variant": "authors", "concat": False, "iterations": 3},
    ),
    Release(
        "junfu1115/DANet",
        "danet",
        "head.conv5a.0.weight",
        ("pretrained.",),
        {"pretrained": ""},
        head="head.",
        left=("auxlayer.", "pretrained.fc."),
        arguments={**_ALL, "last_dilations": (4, 8, 16)},
    ),
    Release(
        "speedinghzl/CCNet",
        "ccnet",
        "head.conv1a.0.weight",
        ("conv", "bn", "layer"),
        {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"},
        head="head.",
        left=("dsn.",),
        arguments={
            **_FIRST_TOO,
            **_bgr(104.00698793, 116.66876762, 122.67891434),
            "ceil_mode": True,
            "recurrence": 2,
            "negative_slope": 0.01,
        },
        inplace_abn=True,
    ),
    Release(
        "openseg-group/openseg.pytorch",
        "ocrnet",
        "spatial_ocr_head.conv_bn_dropout.0.weight",
        **_OPENSEG,
        left=(),
        auxiliary="dsn_head.",
        arguments={**_ALL, **_OPENSEG_MEAN, "ceil_mode": True, "bias": True},
    ),
    Release(
        "openseg-group/openseg.pytorch",
        "isanet",
        "isa_head.0.weight",
        **_OPENSEG,
        left=("dsn_head.",),
        arguments={**_ALL, **_OPENSEG_MEAN, "ceil_mode": True, "value_bias": False},
    ),
)  # fmt: skip


def release_of(state: State) -> Release | None:
    """The release that a state dict is of, None if of none that is known here.

    >>> import torch
    >>> release_of({"emau.mu": torch.zeros(1, 512, 64)}).code
    'XiaLiPKU/EMANet'
    """
    return next((release for release in RELEASES if release.mark in state), None)
