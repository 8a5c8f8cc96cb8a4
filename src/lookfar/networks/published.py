"""Whole networks for semantic segmentation as they are published: a backbone, a head, and the way back to the image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lookfar.networks.authors import release_of
from lookfar.networks.backbones import from_mmseg
from lookfar.networks.heads import Head
from lookfar.networks.preprocessing import Inference, Preprocessing
from lookfar.networks.saving import Saved
from lookfar.networks.segmentation import timm_stages
from lookfar.weights import State


class Outputs(NamedTuple):
    """What a network gives in training.

    Attributes:
        logits: What it predicts by.
        auxiliary: Further logits for further losses; :attr:`SegmentationNetwork.auxiliary_weights` holds their weights.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


class SegmentationNetwork(Saved, nn.Module):
    """A backbone with a published head, and an auxiliary head on the stage before, for training.

    ``network(images)`` gives logits of the images' size; in training, where there are auxiliary outputs,
    :class:`Outputs` of that size. ``network.logits(images)`` gives the map as the head leaves it.

    Args:
        backbone: Gives a list of maps, the last one last.
        head: On its last map (ANN: on the last two).
        auxiliary: On the map before; None for none. In eval it is run for OCRNet alone, which starts from its guess.
        align_corners: Of the last resizing.
        preprocessing: What images go through before.
        inference: How images of any size are predicted.
        class_names: Names, index = label.
        palette: Colours of the classes, RGB.

    Attributes:
        place: Name of the module after which a block goes by default.

    Shape: ``(B, in_chans, H, W) -> (B, classes, H, W)``
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        auxiliary: Head | None,
        *,
        align_corners: bool = False,
        preprocessing: Preprocessing | None = None,
        inference: Inference | None = None,
        class_names: Sequence[str] = (),
        palette: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary
        self.align_corners = align_corners
        self.preprocessing, self.inference = preprocessing or Preprocessing(), inference or Inference()
        self.class_names, self.palette = tuple(class_names), tuple(tuple(colour) for colour in palette)
        before = head.paths[0].before is not None
        self.place = "head.paths.0.before" if before else list(self.places().values())[-2]

    def places(self) -> dict[str, str]:
        """Names that a user can give for the stages -> names of the modules."""
        return {**timm_stages(self.backbone), "head": "head"}

    @property
    def auxiliary_weights(self) -> tuple[float, ...]:
        """Weights of the losses of :attr:`Outputs.auxiliary`, as published; the main loss has 1."""
        return (1.0,) * len(self.head.classifiers) + ((0.4,) if self.auxiliary is not None else ())

    def forward(self, images: Tensor) -> Tensor | Outputs:
        if not (self.training and self.auxiliary_weights):
            return self._resized(self.logits(images), images)
        logits, auxiliary = self.outputs(images)
        return Outputs(self._resized(logits, images), tuple(self._resized(y, images) for y in auxiliary))

    def logits(self, images: Tensor) -> Tensor:
        """The logits at the stride of the head's map, ``(B, K, h, w)``."""
        *low, x = self.backbone(images)
        guess = self.auxiliary(low[-1]) if self.auxiliary is not None and self.head.plan.guess else None
        if self.head.merge is None:
            low.clear()  # a large map that nobody reads any more
        return self.head(x, low=low[-1] if low else None, guess=guess)

    def outputs(self, images: Tensor) -> Outputs:
        """All logits at their own strides: the main ones, each path's where there are several, the auxiliary head's."""
        *low, x = self.backbone(images)
        auxiliary = () if self.auxiliary is None else (self.auxiliary(low[-1]),)
        guess = auxiliary[0] if auxiliary else None
        first, *others = self.head.outputs(x, low=low[-1] if low else None, guess=guess)
        return Outputs(first, (*others, *auxiliary))

    def _resized(self, y: Tensor, images: Tensor) -> Tensor:
        return F.interpolate(y, images.shape[2:], mode="bilinear", align_corners=self.align_corners)

    def from_authors(self, state: State) -> State:
        """Others' names of a whole network into ours: mmsegmentation's, or those of the head's authors."""
        release = release_of(state)
        if release is not None:
            backbone, head, aside = release.split(state)
            found = {f"backbone.{key}": value for key, value in backbone.items()}
            if self.auxiliary is not None:
                found |= {f"auxiliary.{key}": value for key, value in self.auxiliary.from_authors(aside).items()}
            return found | {f"head.{key}": value for key, value in self.head.from_authors(head).items()}
        if not any(key.startswith("decode_head.") for key in state):
            return state
        head, auxiliary = ("decode_head.1.", "decode_head.0.") if self.head.plan.guess else _MMSEG
        parts = {"backbone.": dict[str, Tensor](), head: {}, auxiliary: {}, "": {}}
        for key, value in state.items():
            start = next(start for start in parts if key.startswith(start))
            parts[start][key.removeprefix(start)] = value
        found = {f"backbone.{key}": value for key, value in from_mmseg(parts["backbone."]).items()}
        found |= {f"head.{key}": value for key, value in self.head.from_authors(parts[head]).items()}
        if self.auxiliary is not None:
            found |= {f"auxiliary.{key}": value for key, value in self.auxiliary.from_authors(parts[auxiliary]).items()}
        return found | parts[""]


_MMSEG = ("decode_head.", "auxiliary_head.")
