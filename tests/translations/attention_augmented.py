"""AACN: loops over the paper's equations."""

from lookfar import create_block
from translations import Built, Case, translates


@translates("AAC")
def layer(case: Case) -> Built:
    a = case.args
    block = create_block(
        "attention_augmented",
        a["c"],
        out_channels=a.get("co", a["c"]),
        kernel_size=a.get("k", 3),
        key_channels=a["dk"],
        value_channels=a["dv"],
        heads=a.get("heads", 8),
        relative=a.get("relative", True),
        size=a.get("size", case.numbered("x")[0].shape[2:]),
    )
    # without values, or without channels left for the convolution, the other part has no parameters here
    own = block.state_dict()
    return Built(block, block, state={key: value for key, value in case.state.items() if key in own})
