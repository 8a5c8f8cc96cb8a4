"""What has been inserted into a network, as a table."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import table
from lookfar.blocks import block_info
from lookfar.insertion.dry_run import example_inputs, pretrained_cfg, recorded, run, untouched
from lookfar.insertion.hanging import Gated, block_name, insertions, switched_off


def describe(network: nn.Module, *, example: Any = None) -> str:
    """A table of the inserted blocks: where, which, parameters, GFLOPs added on one example, growth with resolution.

    Args:
        network: The network.
        example: As for :func:`insert`; where it is needed and missing, sizes and GFLOPs are left out.
    """
    from lookfar.cost import count_flops

    found = insertions(network)
    if not found:
        return "no block has been inserted"
    seen: dict[str, list[Tensor]] = {}
    host_flops = None
    if example is not None or pretrained_cfg(network):
        inputs = example_inputs(network, example)
        with recorded(network, [f.name for f in found], inputs=True) as seen:
            run(network, inputs, train=False)
        with switched_off(network), untouched(network), torch.no_grad():
            network.eval()
            images = seen[found[0].name][0].shape[0]
            host_flops = count_flops(lambda: network(*inputs[0], **inputs[1])) / images / 1e9

    rows: list[tuple[str | int | float | None, ...]] = []
    for one in found:
        size, flops = None, None
        if seen.get(one.name):
            x = seen[one.name][0]
            size = "×".join(map(str, x.shape[1:]))
            with untouched(one.module), torch.no_grad():
                flops = count_flops(one.module.eval(), x[:1]) / 1e9
        rows.append((one.place, block_name(one.module), size, _count(one.module), flops, _growth(one.module)))
    own = sum(_count(one.module) for one in found)
    added = sum(flops for *_, flops, _ in rows if isinstance(flops, float)) if host_flops is not None else None
    rows.append(("together", "", None, own, added, ""))
    rows.append(("the network without them", "", None, _count(network) - own, host_flops, ""))
    return table(["after", "block", "C×H×W", "parameters", "GFLOPs an image", "growth"], rows)


def _growth(module: nn.Module) -> str:
    module = module.block if isinstance(module, Gated) else module
    with contextlib.suppress(ValueError):
        return block_info(module).complexity
    return ""


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
