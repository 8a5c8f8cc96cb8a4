"""PSANet: hszhao/semseg."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("PSA")
def module(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "pointwise_spatial_attention",
        a.get("in_channels", 2048),
        inner_channels=a.get("mid_channels", 512),
        mode=("collect", "distribute", "both")[a.get("psa_type", 2)],
        compact=a.get("compact", False),
        shrink_factor=a.get("shrink_factor", 2),
        mask_size=(a.get("mask_h", 59), a.get("mask_w", 59)),
        normalization_factor=a.get("normalization_factor", 1.0),
        normalization="softmax" if a.get("psa_softmax", True) else "none",
        form="published",
    )
