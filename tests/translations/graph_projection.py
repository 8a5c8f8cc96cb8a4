"""Beyond Grids: the paper's equations as a float64 loop."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("GCU")
def unit(case: Case) -> nn.Module:
    a = case.args
    return create_block("graph_projection", a["c"], nodes=a["V"], inner_channels=a["co"], form="published")
