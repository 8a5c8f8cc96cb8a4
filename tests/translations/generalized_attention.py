"""Generalized attention: open-mmlab/mmcv."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("GeneralizedAttention")
def module(case: Case) -> nn.Module:
    a = case.args
    near = a.get("spatial_range", -1)
    width = a.get("position_embedding_dim", -1)
    return create_block(
        "generalized_attention",
        a["in_channels"],
        terms=a.get("attention_type", "1111"),
        heads=a.get("num_heads", 9),
        q_stride=a.get("q_stride", 1),
        kv_stride=a.get("kv_stride", 2),
        position_channels=width if width > 0 else None,
        position_magnitude=a.get("position_magnitude", 1),
        spatial_range=near if near >= 0 else None,
    )
