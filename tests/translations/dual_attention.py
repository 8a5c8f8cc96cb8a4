"""DANet: junfu1115/DANet, mmsegmentation."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("PAM_Module")
def position(case: Case) -> nn.Module:
    return create_block("position_attention", case.args["in_dim"])


@translates("CAM_Module")
def channel(case: Case) -> nn.Module:
    return create_block("channel_attention", case.args["in_dim"])


@translates("PAM", "mmseg")
def mmseg_position(case: Case) -> nn.Module:
    return create_block("position_attention", case.args["in_channels"], inner_channels=case.args["channels"])


@translates("CAM", "mmseg")
def mmseg_channel(case: Case) -> nn.Module:
    return create_block("channel_attention", case.numbered("x")[0].shape[1])
