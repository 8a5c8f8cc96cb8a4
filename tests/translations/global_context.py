"""GCNet's and mmcv's ContextBlock; the simplified non-local block of DNL's authors."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("ContextBlock")
def context_block(case: Case) -> nn.Module:
    args = case.args
    channels = args["inplanes"] if "inplanes" in args else args["in_channels"]
    fusions = {f.removeprefix("channel_") for f in args.get("fusion_types", ("channel_add",))}
    return create_block(
        "global_context",
        channels,
        inner_channels=int(channels * args["ratio"]),
        pooling=args.get("pooling_type", "att"),
        fusion="both" if len(fusions) == 2 else fusions.pop(),
    )


@translates("Unary2d")
def simplified(case: Case) -> nn.Module:
    args = case.args
    # use_gn is taken and not used, lr_mult concerns the optimiser
    return create_block(
        "simplified_nonlocal",
        args["inplanes"],
        inner_channels=args["planes"] if args.get("use_out", False) else None,
        subsample=2 if args.get("downsample", True) else 1,
        norm_layer=nn.BatchNorm2d if args.get("out_bn", False) else None,
    )
