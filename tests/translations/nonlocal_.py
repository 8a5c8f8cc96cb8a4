"""Non-local blocks: mmcv, AlexHex7/Non-local_pytorch, the authors' Caffe2 graph function."""

import functools
import re
from typing import Any

import torch
from torch import Tensor, nn

from lookfar import create_block
from translations import Built, Case, translates
from translations._mmcv import norm


def mmcv_options(args: dict[str, Any], dims: int = 2) -> dict[str, Any]:
    """mmcv's ``_NonLocalNd`` arguments as options of ``nonlocal``; ``std`` and ``zeros_init`` set the start alone."""
    return {
        "mode": args.get("mode", "embedded_gaussian"),
        "inner_channels": max(args["in_channels"] // args.get("reduction", 2), 1),
        "scale": args.get("use_scale", True),
        "subsample": 2 if args.get("sub_sample", False) else 1,
        "norm_layer": norm(args.get("norm_cfg"), dims),
        "project_bias": args.get("norm_cfg") is None,
    }


@translates("NonLocal1d")
@translates("NonLocal2d")
@translates("NonLocal3d")
def mmcv(case: Case) -> nn.Module:
    dims = int(case.cls[-2])
    return create_block("nonlocal", case.args["in_channels"], dims=dims, **mmcv_options(case.args, dims))


@translates("NONLocalBlock1D", "Non-local_pytorch")
@translates("NONLocalBlock2D", "Non-local_pytorch")
@translates("NONLocalBlock3D", "Non-local_pytorch")
def alexhex(case: Case) -> nn.Module:
    found = re.search(r"non_local_(concatenation|dot_product|embedded_gaussian|gaussian)", case.source)
    assert found, f"no mode in the name of {case.source}"
    args = case.args
    return create_block(
        "nonlocal",
        args["in_channels"],
        mode=found[1],
        dims=int(case.cls[-2]),
        inner_channels=args.get("inter_channels"),
        scale=False,
        subsample=2 if args.get("sub_sample", True) else 1,
        norm_layer=bool(args.get("bn_layer", True)),
    )


class Affine(nn.Module):
    """The authors' AffineNd: a factor and an offset a channel."""

    def __init__(self, channels: int, device=None, dtype=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


@translates("add_nonlocal")
def caffe2(case: Case) -> nn.Module | Built:
    args, config = case.args, case.args.get("NONLOCAL", {})
    softmax = config.get("USE_SOFTMAX", True)
    norm_layer = None
    if config.get("USE_BN", True):
        momentum = 1 - config.get("BN_MOMENTUM", 0.9)  # Caffe2 keeps this share, torch takes it
        eps = config.get("BN_EPSILON", 1.0000001e-5)
        norm_layer = functools.partial(nn.BatchNorm3d, eps=eps, momentum=momentum)
    elif config.get("USE_AFFINE", False):
        norm_layer = Affine
    return create_block(
        "nonlocal",
        args["dim_in"],
        mode="embedded_gaussian" if softmax else "dot_product",
        dims=3,
        inner_channels=args.get("dim_inner") or case_width(case),
        scale=config.get("USE_SCALE", True) if softmax else False,
        subsample=args.get("max_pool_stride", 2) if config.get("USE_MAXPOOL", True) else 1,
        subsample_order="before",
        bias=not config.get("NO_BIAS", 0),
        norm_layer=norm_layer,
    )


def case_width(case: Case) -> int:
    return next(len(value) for key, value in case.state.items() if key.endswith("_theta_w"))
