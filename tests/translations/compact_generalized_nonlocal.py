"""CGNL: KaiyuYue/cgnl-network.pytorch."""

import torch
from torch import nn

from lookfar import create_block
from translations import Built, Case, translates


def _cgnl(case: Case, **options) -> nn.Module:
    a = case.args
    return create_block(
        "compact_generalized_nonlocal",
        a["inplanes"],
        inner_channels=a["planes"],
        groups=a.get("groups") or 1,
        scale=a.get("use_scale", False),
        **options,
    )


@translates("SpatialCGNL")
def dot_product(case: Case) -> nn.Module:
    return _cgnl(case, mode="dot_product")


@translates("SpatialCGNLx")
def gaussian(case: Case) -> nn.Module:
    return _cgnl(case, mode="gaussian", order=case.args.get("order", 2))


@translates("SpatialNL")
def baseline(case: Case) -> Built:
    """The baseline of the same file is a non-local block without biases."""
    a = case.args
    block = create_block(
        "nonlocal",
        a["inplanes"],
        inner_channels=a["planes"],
        mode="embedded_gaussian",
        scale=a.get("use_scale", False),
        norm_layer=nn.BatchNorm2d,
    )
    names = {"t": "query", "p": "key", "g": "value", "z": "project", "bn": "norm"}
    named = {key: f"{names[key.split('.')[0]]}.{key.split('.', 1)[1]}" for key in case.state}
    own = block.state_dict()
    absent = {key: torch.zeros_like(value) for key, value in own.items() if key not in named.values() and "bias" in key}
    block.load_state_dict({**{named[k]: v for k, v in case.state.items()}, **absent})
    return Built(block, block, loaded=True, names=named)
