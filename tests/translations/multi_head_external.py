"""EAMLP: attention of tokens to shared memories, its transformer block and its narrowing stage."""

from torch import Tensor, nn

from lookfar import create_block
from lookfar.blocks.multi_head_external import MultiHeadExternal
from translations import Built, Case, translates

EAMLP = "EAMLP/models"


def _layers(case: Case) -> dict[str, type[nn.Module]]:
    return {"act_layer": case.layer("act_layer", nn.GELU), "norm_layer": case.layer("norm_layer", nn.LayerNorm)}


class WithSkip(nn.Module):
    """The attention of the narrowing stage adds the embedded tokens itself."""

    def __init__(self, block: MultiHeadExternal) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        u = self.block.embed(x)
        return u + self.block.mix(u)


@translates("Attention", EAMLP)
def attention(case: Case) -> nn.Module | Built:
    dim, heads = case.args["dim"], case.args.get("num_heads", 8)
    if "q_linear.weight" in case.state:
        slots, width = case.state["linear_1.weight"].shape
        narrow = MultiHeadExternal(dim, heads=1, expansion=1, bases=slots, out_channels=width, key_bias=False)
        return Built(WithSkip(narrow), narrow)
    slots = case.state["linear_0.weight"].shape[0]
    expansion = case.state["trans_dims.weight"].shape[0] // dim
    return create_block("multi_head_external", dim, heads=heads, bases=slots, expansion=expansion)


@translates("Block", EAMLP)
def block(case: Case) -> nn.Module:
    dim = case.args["dim"]
    return create_block(
        "token_stage",
        dim,
        mixer="external",
        heads=case.args["num_heads"],
        mlp_ratio=case.args.get("mlp_ratio", 4.0),
        bases=case.state["attn.linear_0.weight"].shape[0],
        expansion=case.state["attn.trans_dims.weight"].shape[0] // dim,
        **_layers(case),
    )


@translates("Token_transformer", EAMLP)
def stage(case: Case) -> nn.Module:
    return create_block(
        "token_stage",
        case.args["dim"],
        mixer="external",
        out_channels=case.args["in_dim"],
        mlp_ratio=case.args.get("mlp_ratio", 1.0),
        bases=case.state["attn.linear_1.weight"].shape[0],
        **_layers(case),
    )
