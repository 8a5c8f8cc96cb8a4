"""PSPNet: hszhao/semseg."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("PPM")
def pyramid(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "pyramid_pooling", a["in_dim"], inner_channels=a["reduction_dim"], bins=a["bins"], form="published"
    )
