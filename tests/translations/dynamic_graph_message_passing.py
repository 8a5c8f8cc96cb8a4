"""DGMN: lzrobots/dgmn."""

import re
from functools import partial

from torch import nn

from lookfar import create_block
from translations import Built, Case, translates

GROUPS = 32  # the authors' configuration; cases say where theirs differs


def norm(case: Case) -> partial:
    """GroupNorm, whose groups stand in no argument."""
    found = re.search(r"group_norm has (\d+) groups", case.meta.get("notes", ""))
    return partial(nn.GroupNorm, int(found[1]) if found else GROUPS)


@translates("DynamicWeights")
def dynamic_weights(case: Case) -> nn.Module:
    return create_block(
        "dynamic_message_passing", case.args["channels"], groups=1, dilation=1, walks=False, affinity="none"
    )


def module(case: Case) -> Built:
    a = case.args
    deform = a.get("deform") or "none"
    built = create_block(
        "dynamic_message_passing",
        a["channels"],
        groups=a.get("group", 1),
        dilation=tuple(a.get("dilation", (1, 4, 8, 12))),
        walks=deform != "none",
        affinity="published" if deform == "deformatt" else "none",
        variant="rigorous" if case.cls.startswith("Re") else "fast",
        reduction=4 if case.cls.endswith("11") else 1,
        norm_layer=norm(case),
        zero_init=False,
    )
    skip = ""
    if a.get("shuffle") and case.meta.get("mode", "eval").startswith("train"):
        skip = "shuffle exchanges groups at random in training, which the block leaves out"
    return Built(built, built, skip=skip)


for cls in ("DynamicWeightsCat11", "DynamicWeightsCat33", "ReDynamicWeightsCat11", "ReDynamicWeightsCat33"):
    translates(cls)(module)
