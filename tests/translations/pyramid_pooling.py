"""PSPNet: hszhao/semseg; its pyramid and DeepLabV3's branches in mmsegmentation."""

from typing import Any

from torch import nn

from lookfar import create_block, weights
from translations import Built, Case, translates
from translations._mmcv import norm, rectified


@translates("PPM")
def pyramid(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "pyramid_pooling", a["in_dim"], inner_channels=a["reduction_dim"], bins=a["bins"], form="published"
    )


@translates("PPM", "mmseg")
def mmseg_pyramid(case: Case) -> Built:
    a = case.args
    if not rectified(a):
        return Built(None, skip=f"ReLU alone, got {a['act_cfg']}")  # type: ignore[arg-type]
    block = create_block(
        "pyramid_pooling",
        a["in_channels"],
        inner_channels=a["channels"],
        bins=a["pool_scales"],
        align_corners=a["align_corners"],
        norm_layer=norm(a["norm_cfg"]),
        form="published",
    )
    return Built(lambda x: block(x)[:, a["in_channels"] :].split(a["channels"], 1), block)


@translates("ASPPModule", "mmseg")
def mmseg_branches(case: Case) -> Built:
    """The branches alone: the map's mean and the fusion stay as they are drawn."""
    a = case.args
    first, *others = a["dilations"]
    if first != 1 or 1 in others:
        return Built(None, skip=f"one 1x1 convolution first, got dilations={a['dilations']}")  # type: ignore[arg-type]
    if not rectified(a):
        return Built(None, skip=f"ReLU alone, got {a['act_cfg']}")  # type: ignore[arg-type]
    block: Any = create_block(
        "atrous_pyramid",
        a["in_channels"],
        inner_channels=a["channels"],
        dilations=others,
        norm_layer=norm(a["norm_cfg"]),
        form="published",
    )
    names = {key: ours for key in case.state for ours in weights.convert(block, {key: case.state[key]})}
    block.load_state_dict({names[key]: value for key, value in case.state.items()}, strict=False)
    return Built(lambda x: [branch(x).relu() for branch in block.branches], block, loaded=True, names=names)
