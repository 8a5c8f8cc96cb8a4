"""GloRe: facebookresearch/GloRe."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


def _unit(case: Case, dims: int) -> nn.Module:
    a = case.args
    nodes = int(a["num_mid"])
    # the original's start value of `normalize` is False
    return create_block(
        "glore",
        a["num_in"],
        nodes=nodes,
        inner_channels=int(2 * a["num_mid"]),
        normalize=a.get("normalize", False),
        dims=dims,
    )


@translates("GloRe_Unit")
def any_dims(case: Case) -> nn.Module:
    return _unit(case, case.numbered("x")[0].dim() - 2)


for dims in (1, 2, 3):
    translates(f"GloRe_Unit_{dims}D")(lambda case, dims=dims: _unit(case, dims))
