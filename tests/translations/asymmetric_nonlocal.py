"""ANN: MendelXu/ANN, mmsegmentation."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lookfar import create_block, weights
from translations import Built, Case, translates
from translations._mmcv import norm, rectified


class Swapped(nn.Module):
    """The original takes the lower level first."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.block(high, low)


def _module(case: Case, **options) -> Built:
    a = case.args
    mmseg = "query_scales" in a
    sizes = a.get("query_scales" if mmseg else "sizes", [1])
    if set(sizes) != {1} and (mmseg or options["mode"] == "pyramid"):
        return Built(None, skip=f"the original fails with {sizes=}")  # type: ignore[arg-type]
    if mmseg and not rectified(a):
        return Built(None, skip=f"ReLU alone, got {a['act_cfg']}")  # type: ignore[arg-type]
    if len(sizes) > 1 and mmseg and (a["norm_cfg"] or {}).get("type") == "GN":
        return Built(None, skip="several stages are heads of one here, whose groups of channels are others")  # type: ignore[arg-type]
    settings = {
        "out_channels": a["out_channels"],
        "bins": a.get("key_pool_scales") or a.get("psp_size", (1, 3, 6, 8)),
        "bias": not mmseg,
        "norm_layer": norm(a["norm_cfg"]) if mmseg else nn.BatchNorm2d,
        "dropout": 0.0 if mmseg else a.get("dropout", 0.05),
        "form": "published",
        **options,
    }
    inner = a["channels" if mmseg else "key_channels"]
    n, values = len(sizes), a.get("value_channels", inner)
    block = create_block(
        "asymmetric_nonlocal", inner_channels=n * inner, value_channels=n * values, heads=n, **settings
    )
    if n == 1:
        return Built(block, block)
    # several stages, whose contexts are added, are heads of one: only their joint effect has a name of its own here
    one = create_block("asymmetric_nonlocal", inner_channels=inner, value_channels=values, **settings)
    stages = [weights.convert(one, _stage(case, i)) for i in range(n)]
    state = {}
    for key, value in stages[0].items():
        alike = [stage[key] for stage in stages]
        if key == "mix.bias":
            state[key] = torch.stack(alike).sum(0)
        elif key.startswith("fuse.") or not value.dim():
            state[key] = value
        else:
            state[key] = torch.cat(alike, 1 if key == "mix.weight" else 0)
    block.load_state_dict(state)
    return Built(block)


def _stage(case: Case, i: int) -> dict[str, Tensor]:
    own, others = f"stages.{i}.", "stages."
    return {
        key.replace(own, "stages.0."): value
        for key, value in case.state.items()
        if key.startswith(own) or not key.startswith(others)
    }


@translates("APNB")
def pyramid(case: Case) -> Built:
    return _module(case, channels=case.args["in_channels"], mode="pyramid")


@translates("AFNB")
def fusion(case: Case) -> Built:
    a = case.args
    built = _module(case, channels=a["high_in_channels"], low_channels=a["low_in_channels"], mode="fusion")
    return replace(built, module=Swapped(built.module)) if isinstance(built.module, nn.Module) else built
