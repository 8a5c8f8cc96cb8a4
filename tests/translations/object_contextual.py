"""OCR: openseg-group/openseg.pytorch."""

from typing import Any

from torch import Tensor, nn

from lookfar import create_block
from translations import Built, Case, translates


@translates("SpatialGather_Module + SpatialOCR_Module")
def gather_and_distribute(case: Case) -> nn.Module | Built:
    block = _block(case)
    if not case.args.get("fetch_attention"):
        return block
    return Built(lambda x, logits: (block(x, logits), block.maps(x, logits)[:, 0]), block)


@translates("SpatialOCR_Module")
def distribute(case: Case) -> nn.Module | Built:
    x, regions = case.numbered("x")[:2]
    if x.shape[2:] == regions.shape[2:] and x.shape[1] != regions.shape[1]:
        return gather_and_distribute(case)
    block = _block(case)

    def module(x: Tensor, regions: Tensor) -> Any:
        regions = regions.flatten(2)
        y = block.distribute(x, x, regions)
        return (y, block._attention(x, regions)[:, 0]) if case.args.get("fetch_attention") else y

    return Built(module, block)


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
