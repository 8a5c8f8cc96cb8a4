"""Whole networks and whole heads of mmsegmentation, through the reader of its configurations."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lookfar.networks import create_network
from lookfar.networks.heads import HEADS, Head
from lookfar.networks.mmsegmentation import arguments_of, head_arguments_of
from translations import Built, Case, translates


@translates("EncoderDecoder", "mmseg")
@translates("CascadeEncoderDecoder", "mmseg")
def network(case: Case) -> Built:
    """Logits of the head, those resized to the image, those of the auxiliary head, then of each path by itself."""
    try:
        built: Any = create_network(**arguments_of(case.args))
    except ValueError as error:
        return Built(None, skip=str(error))  # type: ignore[arg-type]

    def module(x: Tensor) -> tuple[Tensor, ...]:
        logits, (*paths, auxiliary) = built.outputs(x)
        resized = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=built.align_corners)
        return logits, resized, auxiliary, *paths

    return Built(module, built)


def _head(case: Case) -> Built:
    a = {"type": case.cls, **case.args}
    if isinstance(a.get("norm_cfg"), str):
        a["norm_cfg"] = {"type": a["norm_cfg"]}
    concat = a.pop("concat_input", True)
    found = head_arguments_of(a)
    plan = HEADS[found.pop("name")]
    plan = plan if concat else replace(plan, concat=False)
    channels = a["in_channels"]
    named = {name: found.pop(name) for name in ("width", "inner_channels", "align_corners") if name in found}
    low, channels = channels if isinstance(channels, list) else (None, channels)
    dropout, K = found.pop("dropout", 0.1), found.pop("num_classes")
    head = Head(plan, channels, K, low_channels=low, dropout=dropout, options=found, **named)

    def module(*x: Tensor) -> Any:
        if plan.merge is not None:
            return head(x[1], low=x[0])
        return head(x[0], guess=x[1] if plan.guess else None)

    return Built(module, head)


for cls in ("NLHead", "DNLHead", "GCHead", "CCHead", "PSAHead", "PSPHead", "APCHead", "ASPPHead", "ISAHead", "EMAHead"):
    translates(cls, "mmseg")(_head)
for cls in ("ANNHead", "OCRHead", "FCNHead"):
    translates(cls, "mmseg")(_head)
