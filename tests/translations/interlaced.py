"""ISA: openseg-group/openseg.pytorch."""

from torch import nn

from lookfar import block_info, create_block, weights
from translations import Built, Case, translates


@translates("ISA_Module")
def module(case: Case) -> nn.Module:
    return _module(case, case.args.get("down_factors", [[8, 8]]))


@translates("ISA_Block")
def context(case: Case) -> Built:
    """One grid's two attentions, which the module holds as ``contexts.0``."""
    inside = _module(case, case.args.get("down_factor", [8, 8])).get_submodule("contexts.0")
    keys = block_info("interlaced").author_keys
    names = {}
    for key in case.state:
        (ours,) = weights.rename({f"stages.0.{key}": case.state[key]}, keys)
        names[key] = ours.removeprefix("contexts.0.")
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
