"""Feature denoising: the authors' TensorFlow functions, and loops of the paper's local filters."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("denoising")
def module(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "feature_denoising",
        a["channels"],
        filter=a.get("filter") or ("gaussian" if a.get("softmax", True) else "dot"),
        embed=a.get("embed", True),
        kernel_size=a.get("kernel_size", 3),
    )
