"""CARAFE: myownskyW7/CARAFE, its op and its module; mmcv's are the same."""

from torch import Tensor, nn

from lookfar import create_block
from lookfar.ops import carafe
from translations import Built, Case, translates


@translates("carafe op")
def op(case: Case) -> Built:
    a = case.args

    def reassemble(features: Tensor, masks: Tensor) -> Tensor:
        k, groups, scale = (a[n] for n in ("kernel_size", "group_size", "scale_factor"))
        return carafe(features, masks, kernel_size=k, groups=groups, scale_factor=scale)

    return Built(reassemble)


@translates("CARAFEPack")
def pack(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "carafe",
        a["channels"],
        scale_factor=a["scale_factor"],
        kernel_size=a.get("up_kernel", 5),
        groups=a.get("up_group", 1),
        encoder_kernel=a.get("encoder_kernel", 3),
        encoder_dilation=a.get("encoder_dilation", 1),
        compressed_channels=a.get("compressed_channels", 64),
    )
