"""ISA: openseg-group/openseg.pytorch, mmsegmentation."""

from dataclasses import replace

from torch import Tensor, nn

from lookfar import block_info, create_block, weights
from translations import Built, Case, translates
from translations._mmcv import norm, rectified


@translates("ISA_Module")
def module(case: Case) -> nn.Module:
    return _module(case, case.args.get("down_factors", [[8, 8]]))


@translates("ISA_Block")
def context(case: Case) -> Built:
    """One grid's two attentions, which the module holds as ``contexts.0``."""
    return _part(case, _module(case, case.args.get("down_factor", [8, 8])), "contexts.0.", "stages.0.")


@translates("SelfAttentionBlock", "isa_head")
def mmseg_attention(case: Case) -> Built:
    """One of the two attentions, over whatever map it is given."""
    a = case.args
    if not rectified(a):
        return Built(None, skip=f"ReLU alone, got {a['act_cfg']}")  # type: ignore[arg-type]
    block = create_block(
        "interlaced",
        a["in_channels"],
        inner_channels=a["channels"],
        value_bias=True,
        norm_layer=norm(a["norm_cfg"]),
        form="published",
    )
    built = _part(case, block, "contexts.0.near.", "local_relation.")

    def over_the_map(x: Tensor) -> Tensor:
        built.block.factor = (x.shape[2], x.shape[3])  # one block
        return built.block(x)

    return replace(built, module=over_the_map)


def _part(case: Case, block: nn.Module, place: str, theirs: str) -> Built:
    """A module that the block holds at ``place`` and the whole original at ``theirs``, with the case's weights."""
    inside = block.get_submodule(place.removesuffix("."))
    keys = block_info("interlaced").author_keys
    names = {}
    for key, value in case.state.items():
        (ours,) = weights.rename({theirs + key: value}, keys)
        names[key] = ours.removeprefix(place)
    inside.load_state_dict({names[key]: value for key, value in case.state.items()})
    return Built(inside, inside, loaded=True, names=names)


def _module(case: Case, down_factor: list) -> nn.Module:
    a = case.args
    return create_block(
        "interlaced",
        a["in_channels"],
        inner_channels=a["key_channels"],
        value_channels=a["value_channels"],
        out_channels=a["out_channels"],
        down_factor=down_factor,
        dropout=a.get("dropout", 0),
        form="published",
    )
