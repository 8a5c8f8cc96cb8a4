"""LR-Net: the authors' op, and a layer of the paper's equations around it."""

import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import create_block
from lookfar.ops import neighborhood
from translations import Built, Case, translates

SIMILARITIES = ("product", "key", "absolute", "absolute_ratio", "squared_ratio", "squared")


@translates("local_relation")
def op(case: Case) -> Built:
    a = case.args

    def relate(query: Tensor, key: Tensor, value: Tensor, pos_weight: Tensor) -> Tensor:
        groups = a.get("groups", pos_weight.shape[0])
        window = {
            "kernel_size": a.get("kernel_size", pos_weight.shape[-1]),
            "stride": a.get("stride", 1),
            "dilation": a.get("dilation", 1),
        }
        key, salience = key.tensor_split([query.shape[1]], 1)
        q, k, v = (t.unflatten(1, (groups, -1)) for t in (query, key, value))
        bias = pos_weight.flatten(1)[:, :, None, None]
        if salience.shape[1]:  # keys' further channels, shared out to the groups, once for every channel of a group
            shares = salience[:, [g * salience.shape[1] // groups for g in range(groups)]]
            padding = window["dilation"] * (window["kernel_size"] // 2)
            cells = F.unfold(shares, padding=padding, **window).view(len(q), groups, -1, *q.shape[3:])
            bias = bias + q.shape[2] * cells
        y = neighborhood(
            q,
            k,
            v,
            **window,
            border="zeros",
            outside=a.get("no_define_value", -100.0),
            scale=a.get("scale", 1.0),
            bias=bias,
            similarity=SIMILARITIES[a.get("sim_method", 0)],  # type: ignore[arg-type]
        )
        return y.flatten(1, 2)

    return Built(relate)


@translates("local relation layer")
def layer(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "local_relation",
        a["c"],
        out_channels=a.get("co", a["c"]),
        kernel_size=a.get("k", 7),
        stride=a.get("stride", 1),
        dilation=a.get("dilation", 1),
        groups=len(case.state["query.weight"]),
        hidden_channels=len(case.state["geometry.0.weight"]),
        similarity=SIMILARITIES[a.get("sim", 5)],
        scale=a.get("scale", 1.0),
    )
