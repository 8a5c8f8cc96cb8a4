"""Whole networks and whole heads of mmsegmentation, through the reader of its configurations."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lookfar.networks import create_network
from lookfar.networks.heads import Head
from lookfar.networks.mmsegmentation import arguments_of, head_arguments_of
from lookfar.networks.plans import HEADS
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
    found = head_arguments_of(a)
    plan = HEADS[found.pop("name")]
    channels = a["in_channels"]
    named = {name: found.pop(name) for name in ("width", "inner_channels", "align_corners") if name in found}
    low, channels = channels if isinstance(channels, list) else (None, channels)
    concat, dropout, K = found.pop("concat", None), found.pop("dropout", 0.1), found.pop("num_classes")
    head = Head(plan, channels, K, low_channels=low, dropout=dropout, concat=concat, options=found, **named)

    def module(*x: Tensor) -> Any:
        if plan.merge is not None:
            return head(x[1], low=x[0])
        return head(x[0], guess=x[1] if plan.guess else None)

    return Built(module, head)


for cls in ("NLHead", "DNLHead", "GCHead", "CCHead", "PSAHead", "PSPHead", "APCHead", "ASPPHead", "ISAHead", "EMAHead"):
    translates(cls, "mmseg")(_head)
for cls in ("ANNHead", "OCRHead", "FCNHead"):
    translates(cls, "mmseg")(_head)


@translates("DANetHead", "junfu1115")
def danet(case: Case) -> Built:
    """The sum's logits, then the position branch's, then the channel branch's."""
    a = case.args
    head = Head(HEADS["danet"], a["in_channels"], a["out_channels"])
    return Built(lambda x: tuple(head.outputs(x)), head)


@translates("EMANet head: fc0, emau, fc1, fc2 in the order of EMANet.forward")
def emanet(case: Case) -> Head:
    a = case.args
    options = {"variant": "authors", "bases": a["k"]}
    widths = {"width": a["fc1"], "inner_channels": a["c"]}
    return Head(HEADS["emanet"], a["in_channels"], a["n_classes"], concat=False, options=options, **widths)


@translates("EANet (fc0, linu, fc1, fc2 only)")
def eanet(case: Case) -> Head:
    a = case.args
    widths = {"width": a["mid"], "inner_channels": a["channels"]}
    return Head(HEADS["eanet"], a["in_channels"], a["classes"], options={"bases": a["S"]}, **widths)
