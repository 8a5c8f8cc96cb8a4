"""T2T-ViT: attention of tokens (softmax, or double as in EANet's ablation), block and narrowing stage."""

from typing import Any

from torch import Tensor, nn

from lookfar import create_block
from lookfar.blocks.self_attention import SelfAttention
from lookfar.networks.tokens_to_token import TokensToToken
from lookfar.ops._layout import merge_heads
from translations import Built, Case, translates

T2T = "T2T-ViT"


def _options(case: Case) -> dict[str, Any]:
    a = case.args
    # the authors of double normalisation published no code for it: a case is told by the equations as its source
    return {
        "bias": a.get("qkv_bias", False),
        "scale": a.get("qk_scale") or None,
        "normalization": "double" if "double norm" in case.source else "softmax",
    }


class WithSkip(nn.Module):
    """The attention of the narrowing stage adds the values itself."""

    def __init__(self, block: SelfAttention) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return merge_heads(self.block.values(x)) + self.block(x)


@translates("Attention", T2T)
def attention(case: Case) -> nn.Module | Built:
    if case.args.get("in_dim"):
        narrow = SelfAttention(case.args["dim"], heads=1, out_channels=case.args["in_dim"], **_options(case))
        return Built(WithSkip(narrow), narrow)
    return create_block("self_attention", case.args["dim"], heads=case.args.get("num_heads", 8), **_options(case))


def _stage(case: Case, **options: Any) -> nn.Module:
    layers = {"act_layer": case.layer("act_layer", nn.GELU), "norm_layer": case.layer("norm_layer", nn.LayerNorm)}
    return create_block("token_stage", case.args["dim"], **_options(case), **layers, **options)


@translates("Block", T2T)
def block(case: Case) -> nn.Module:
    return _stage(case, heads=case.args["num_heads"], mlp_ratio=case.args.get("mlp_ratio", 4.0))


@translates("Token_transformer", T2T)
def stage(case: Case) -> nn.Module:
    a = case.args
    return _stage(case, heads=a["num_heads"], out_channels=a["in_dim"], mlp_ratio=a.get("mlp_ratio", 1.0))


@translates("Token_performer", T2T)
def performer(case: Case) -> nn.Module:
    a = case.args
    return create_block("token_stage", a["dim"], mixer="performer", out_channels=a["in_dim"], mlp_ratio=1.0)


@translates("T2T_ViT", T2T)
def network(case: Case) -> nn.Module:
    a = case.args
    return TokensToToken(
        a["embed_dim"],
        a["depth"],
        a["num_heads"],
        a["mlp_ratio"],
        stage="performer" if a["tokens_type"] == "performer" else "self",
        inner_channels=a["token_dim"],
        num_classes=a["num_classes"],
        size=(a["img_size"], a["img_size"]),
    )
