"""CBAM: Jongchan/attention-module."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("CBAM")
def cbam(case: Case) -> nn.Module:
    return create_block(
        "cbam",
        case.args["gate_channels"],
        reduction=case.args.get("reduction_ratio", 16),
        pooling=case.args.get("pool_types", ("avg", "max")),
        spatial_gate=not case.args.get("no_spatial", False),
    )
