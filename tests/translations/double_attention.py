"""A2-Nets: the paper's equations as a float64 loop."""

from torch import nn

from lookfar import create_block
from translations import Case, translates

DIMS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}


@translates("A2")
def double_attention(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "double_attention",
        a["c"],
        inner_channels=a["dm"],
        nodes=a["dn"],
        dims=DIMS[str(a.get("conv", "Conv2d")).rsplit(".", 1)[-1]],
        residual=a.get("residual", True),
    )
