"""OCNet: openseg-group/OCNet.pytorch and openseg-group/openseg.pytorch, whose classes of equal name differ."""

from typing import Any

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("BaseOC_Module")
def base(case: Case) -> nn.Module:
    return _block(case, "base")


@translates("BaseOC_Context_Module")
def context(case: Case) -> nn.Module:
    return _block(case, "context")


@translates("Pyramid_OC_Module")
def pyramid(case: Case) -> nn.Module:
    return _block(case, "pyramid")


@translates("ASP_OC_Module")
def asp(case: Case) -> nn.Module:
    a = case.args
    return _create(
        case,
        a["features"],
        mode="asp",
        branch_channels=a.get("out_features", 256),
        dilations=a.get("dilations", (12, 24, 36)),
        dropout=a.get("dropout", 0.1),
    )


def _block(case: Case, mode: str) -> nn.Module:
    a = case.args
    return _create(
        case,
        a["in_channels"],
        mode=mode,
        out_channels=a["out_channels"],
        inner_channels=a.get("key_channels"),
        value_channels=a.get("value_channels"),
        sizes=a.get("sizes", (1,)),
        dropout=a.get("dropout", 0),
    )


def _create(case: Case, channels: int, **options: Any) -> nn.Module:
    variant = "openseg" if "openseg.pytorch" in case.source else "ocnet"
    return create_block("object_context", channels, variant=variant, form="published", **options)
