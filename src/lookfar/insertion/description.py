"""What has been inserted into a network, as a table."""

import contextlib
from typing import Any

import torch
from torch import nn

from lookfar._notebooks import Shown, html_table
from lookfar._tables import table
from lookfar.blocks import block_info
from lookfar.insertion.dry_run import Seen, example_inputs, pretrained_cfg, untouched
from lookfar.insertion.gated import Gated, block_name
from lookfar.insertion.hanging import insertions
from lookfar.insertion.managing import count_calls, switched_off


def describe(network: nn.Module, *, example: Any = None) -> str:
    """A table of the inserted blocks: where, which, parameters, GFLOPs on one example, growth with resolution.

    Of a layer in the place of a convolution these are its own, not what it has more; the last line counts the
    convolution again.

    A notebook draws it as a table. A line below it names blocks that a forward pass does not call exactly once, as
    :func:`verify` does.

    Args:
        network: The network.
        example: As for :func:`insert`; where it is needed and missing, sizes and GFLOPs are left out.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> print(describe(net, example=x))
    after                     block     C×H×W   parameters  GFLOPs an image  growth
    1                         nonlocal  16×6×6         584        0.0000783  gaussians N M C, dot_product ...
    together                            –              584        0.0000783
    the network without them            –              448        0.0000311
    """
    from lookfar.cost import count_flops

    found = insertions(network)
    if not found:
        return Shown("no block has been inserted")
    seen: dict[str, Seen] = {}
    host_flops = None
    if example is not None or pretrained_cfg(network):
        inputs = example_inputs(network, example)
        seen = count_calls(network, inputs)
        images = next((one.sizes[0][0] for one in seen.values() if one.sizes), 1)
        with switched_off(network), untouched(network), torch.no_grad():
            network.eval()
            host_flops = count_flops(lambda: network(*inputs[0], **inputs[1])) / images / 1e9

    rows: list[tuple[str | int | float | None, ...]] = []
    for one in found:
        size, flops = None, None
        if one.name in seen and seen[one.name].sizes:
            size = "×".join(map(str, seen[one.name].sizes[0][1:]))
            flops = sum(_flops(one.module, shape[1:]) for shape in seen[one.name].sizes)
        name = block_name(one.module) + (f" ({layout})" if (layout := str(one.record.layout)) else "")
        name += f" for {one.record.was}" if one.record.replaced is not None else ""
        rows.append((one.place, name, size, _count(one.module), flops, _growth(one.module)))
    own = sum({p: p.numel() for one in found for p in one.module.parameters()}.values())  # one may stand in another
    added = sum(flops for *_, flops, _ in rows if isinstance(flops, float)) if host_flops is not None else None
    rows.append(("together", "", None, own, added, ""))
    before = sum(_count(one.record.replaced) for one in found if one.record.replaced is not None)
    rows.append(("the network without them", "", None, _count(network) - own + before, host_flops, ""))
    heads = ["after", "block", "C×H×W", "parameters", "GFLOPs an image", "growth"]
    shared = {one.name for one in found if one.record.shared}
    wrong = {n: one.calls for n, one in seen.items() if one.calls != 1 and not (n in shared and one.calls)}
    remarks = [f"{name} is called {_times(calls)} in a forward pass" for name, calls in wrong.items()]
    return Shown("\n".join([table(heads, rows), *remarks]), html_table(heads, rows, below=remarks))


def _times(calls: int) -> str:
    return f"{calls} times" if calls else "not once"


def _flops(block: nn.Module, size: tuple[int, ...]) -> float:
    from lookfar.cost import count_flops

    like = next(block.parameters(), torch.empty(0))
    with untouched(block), torch.no_grad():
        return count_flops(block.eval(), torch.randn(1, *size).to(like)) / 1e9


def _growth(module: nn.Module) -> str:
    module = module.block if isinstance(module, Gated) else module
    with contextlib.suppress(ValueError):
        return block_info(module).complexity
    return ""


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
