"""OCR: openseg-group/openseg.pytorch, mmsegmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import create_block
from lookfar.blocks._layers import max_pool
from translations import Built, Case, translates
from translations._mmcv import norm, rectified


@translates("SpatialGather_Module + SpatialOCR_Module")
def gather_and_distribute(case: Case) -> nn.Module | Built:
    block = _block(case)
    if case.args.get("use_gt") and len(case.numbered("x")) > 2:
        return Built(lambda x, logits, labels: block(x, logits, labels.long().reshape(-1, *x.shape[2:])), block)
    if not case.args.get("fetch_attention"):
        return block
    return Built(lambda x, logits: (block(x, logits), block.maps(x, logits)[:, 0]), block)


@translates("SpatialOCR_Module")
def distribute(case: Case) -> nn.Module | Built:
    x, regions = case.numbered("x")[:2]
    if x.shape[2:] == regions.shape[2:] and x.shape[1] != regions.shape[1]:
        return gather_and_distribute(case)
    block = _block(case)

    def module(x: Tensor, regions: Tensor, labels: Tensor | None = None) -> Any:
        regions = regions.flatten(2)
        if case.args.get("use_gt") and labels is not None:  # the last region is of what has no label
            classes = regions.shape[2]
            own = labels.long().reshape(len(x), -1)
            own = F.one_hot(torch.where(own < 0, classes - 1, own), classes)
            return block.distribute(x, x, regions, own[:, None].to(x))
        y = block.distribute(x, x, regions)
        seen = max_pool(x, case.args.get("scale", 1))
        return (y, block._attention(seen, regions)[:, 0]) if case.args.get("fetch_attention") else y

    return Built(module, block)


@translates("SpatialGather_Module")
@translates("SpatialGatherModule", "mmseg")
def gather(case: Case) -> Built:
    block = create_block("object_contextual", case.numbered("x")[0].shape[1], inverse_temperature=_scale(case))
    return Built(lambda x, logits: block.regions(x, logits)[..., None])


def _scale(case: Case) -> float:
    return case.args.get("scale", 1)


@translates("SpatialOCR_Context")
@translates("ObjectAttentionBlock2D")
def context(case: Case) -> Built:
    """Without the convolution that fuses the context with the features: ours keeps its own."""
    a = case.args
    block: Any = create_block(
        "object_contextual", a["in_channels"], inner_channels=a["key_channels"], subsample=_scale(case)
    )
    state = case.state | {key: value for key, value in block.state_dict().items() if key.startswith("fuse")}

    def module(x: Tensor, regions: Tensor) -> Any:
        regions = regions.flatten(2)
        y = block.context(x, regions)
        seen = max_pool(x, _scale(case))
        return (y, block._attention(seen, regions)[:, 0]) if a.get("fetch_attention") else y

    return Built(module, block, state=state)


@translates("ObjectAttentionBlock", "mmseg")
def mmseg_distribute(case: Case) -> Built:
    a = case.args
    if a["scale"] != 1:
        return Built(None, skip=f"the original fails with scale={a['scale']}")  # type: ignore[arg-type]
    if not rectified(a):
        return Built(None, skip=f"ReLU alone, got {a['act_cfg']}")  # type: ignore[arg-type]
    block: Any = create_block(
        "object_contextual", a["in_channels"], inner_channels=a["channels"], bias=False, norm_layer=norm(a["norm_cfg"])
    )
    return Built(lambda x, regions: block.distribute(x, x, regions.flatten(2)), block)


@translates("SpatialOCR_ASP_Module")
def asp(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "object_contextual",
        a["features"],
        branch_channels=a.get("hidden_features", 256),
        out_channels=a.get("out_features", 512),
        dilations=a.get("dilations", (12, 24, 36)),
        dropout=a.get("dropout", 0.1),
    )


def _block(case: Case) -> Any:
    a = case.args
    return create_block(
        "object_contextual",
        a["in_channels"],
        inner_channels=a["key_channels"],
        out_channels=a["out_channels"],
        subsample=a.get("scale", 1),
        inverse_temperature=a.get("gather_scale", 1),
        dropout=a.get("dropout", 0.1),
    )
