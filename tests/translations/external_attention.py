"""EANet: the segmentation unit. The authors fix 64 slots; further sizes are told by the memory itself."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("External_attention")
def unit(case: Case) -> nn.Module:
    return create_block("external_attention", case.args["c"], bases=case.state["linear_0.weight"].shape[0])
