"""SASA: loops over the paper's equations."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("SASA layer")
def layer(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "stand_alone",
        a["c"],
        out_channels=a.get("co", a["c"]),
        kernel_size=a.get("k", 7),
        heads=a.get("heads", 8),
        relative=a.get("relative", True),
        shared=a.get("shared", False),
        border=a.get("border", "mask"),
    )


@translates("SASA stem")
def stem(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "stand_alone_stem",
        a["c"],
        out_channels=a.get("co", a["c"]),
        kernel_size=a.get("k", 4),
        heads=a.get("heads", 8),
        mixtures=len(case.state["nu"]),
        embed_channels=case.state["nu"].shape[1],
    )
