"""APCNet: Junjun2016/APCNet."""

from torch import nn

from lookfar import create_block
from translations import Case, translates
from translations._mmcv import act, norm


@translates("ACM")
def module(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "adaptive_context",
        a["in_channels"],
        bins=a["pool_scale"],
        inner_channels=a["channels"],
        fusion=a["fusion"],
        norm_layer=norm(a.get("norm_cfg")),
        act_layer=act(a.get("act_cfg", {"type": "ReLU"})),
        form="published",
    )
