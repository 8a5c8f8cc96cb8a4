"""PCT: a layer of offset attention, and the last stage, without positions (model.py) and with them (model_new.py)."""

from torch import Tensor, nn

from lookfar import create_block
from translations import Built, Case, translates


class WithPositions(nn.Module):
    """The layer of model_new.py: features and embedded positions are added before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, xyz: Tensor) -> Tensor:
        return self.layer(x + xyz)


@translates("SA_Layer")
def layer(case: Case) -> Built:
    block = create_block("offset_attention", case.args["channels"])
    return Built(WithPositions(block) if len(case.numbered("x")) > 1 else block, block)


@translates("Point_Transformer_Last")
def stage(case: Case) -> nn.Module:
    positions = "pos_xyz.weight" in case.state
    channels = case.args.get("channels", case.state["conv1.weight"].shape[0])
    return create_block("point_stage", channels, positions=positions)
