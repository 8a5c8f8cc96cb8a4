"""SGR: the paper's equations as a float64 loop."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("SGR")
def sgr(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "symbolic_graph_reasoning",
        a["dl"],
        inner_channels=a["dc"],
        embeddings=case.state["embeddings"],
        adjacency=case.state["adjacency"],
        mapping=a.get("norm", "pixels_then_row"),
    )
