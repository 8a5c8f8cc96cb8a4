"""CCNet: the authors' module, mmcv's module of the same name."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("CrissCrossAttention")
def criss_cross(case: Case) -> nn.Module:
    settings = {**case.meta, **case.args}
    channels = settings.get("in_dim") or settings["in_channels"]  # the authors' word, mmcv's word
    return create_block("criss_cross", channels, recurrence=settings.get("recurrence", 1))
