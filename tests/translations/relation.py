"""Relation networks: msracver/Relation-Networks-for-Object-Detection."""

from lookfar import create_block
from translations import Built, Case, translates


@translates("attention_module_multi_head")
def module(case: Case) -> Built:
    a = case.args
    block = create_block(
        "relation",
        a["feat_dim"],
        heads=a["group"],
        inner_channels=a["dim"][0],
        position_channels=a["emb_dim"],
    )
    return Built(lambda x, boxes: block(x, boxes, a["nongt_dim"]), block)
