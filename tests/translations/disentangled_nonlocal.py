"""DNL: the authors' two classes, mmsegmentation's, and the multiplicative combination of the paper's equations."""

from typing import Any

from torch import Tensor, nn

from lookfar import create_block
from translations import Built, Case, translates
from translations.nonlocal_ import mmcv_options


def _shared(args: dict[str, Any]) -> dict[str, Any]:
    """What both of the authors' classes take; ``use_gn``, ``lr_mult`` and ``weight_init_scale`` change no value."""
    return {
        "inner_channels": args["planes"],
        "value_channels": args["planes"] if args.get("use_out", False) else None,
        "subsample": 2 if args.get("downsample", True) else 1,
        "norm_layer": nn.BatchNorm2d if args.get("out_bn", False) else None,
    }


@translates("NonLocal2d_nowd")
def nowd(case: Case) -> nn.Module:
    args = case.args
    pairwise, unary = args.get("with_nl", True), args.get("with_gc", False)
    wanted = args.get("whiten_type", ["in_nostd"])
    # the original tries the names in this order with `in`: membership of a list, a part of a string
    names = {"in_nostd": "channel", "in": "channel_std", "ln_nostd": "layer", "ln": "layer_std",
             "fln_nostd": "batch", "fln": "batch_std"}  # fmt: skip
    return create_block(
        "disentangled_nonlocal",
        args["inplanes"],
        terms="both" if pairwise and unary else "pairwise" if pairwise else "unary",
        whiten=next((ours for name, ours in names.items() if name in wanted), None),
        eps=args.get("eps", 1e-5),
        scale="nl" not in args.get("nowd", ["nl"]),
        **_shared(args),
    )


@translates("NonLocal2d_bn")
def ablations(case: Case) -> nn.Module:
    args = case.args
    wanted = args.get("whiten_type", ["channel"])
    names = {"channel": "channel", "spatial": "position", "bn_affine": "norm_affine", "bn": "norm", "ln_nostd": "layer"}
    mask, key = args.get("with_gc", False), args.get("with_unary", False)
    return create_block(
        "disentangled_nonlocal",
        args["inplanes"],
        terms="both" if mask or key else "pairwise",
        unary="both" if mask and key else "key" if key else "mask",
        whiten=tuple(ours for name, ours in names.items() if name in wanted),
        scale=True,
        temperature=args.get("temperature", 1.0),
        **_shared(args),
    )


class Centring(nn.Module):
    """mmsegmentation's gaussian mode takes the mean off in place, of the input: its residual is centred too."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) - x.mean((2, 3), keepdim=True)


@translates("DisentangledNonLocal2d")
def mmseg(case: Case) -> nn.Module | Built:
    args = case.args
    mode = args.get("mode", "embedded_gaussian")
    if args.get("sub_sample", False):
        return Built(nn.Identity(), skip="the original cannot sub-sample: its mask has N positions, its values M")
    options = mmcv_options(args)
    for absent in ("project_bias", "subsample"):
        options.pop(absent)
    if mode == "embedded_gaussian":
        options["temperature"] = args["temperature"]
    else:  # the other modes take neither
        options |= {"scale": False, "temperature": 1.0}
    block = create_block("disentangled_nonlocal", args["in_channels"], variant="mmseg", **options)
    return Built(Centring(block), block) if mode == "gaussian" else block


@translates("multiplicative combination")
def multiplied(case: Case) -> Built:
    args = case.args
    shared = args["shared_key"]
    block = create_block(
        "disentangled_nonlocal",
        args["C"],
        inner_channels=args["D"],
        combine="multiply",
        unary="key" if shared else "mask",
    )
    # beside a shared key a mask does nothing
    state = {k: v for k, v in case.state.items() if not (shared and k.startswith("conv_mask"))}
    return Built(block, block, state=state)
