"""Put a block into an existing network: output unchanged, checkpoints of the host still load, and it can be undone."""

from typing import TYPE_CHECKING, Any

from lookfar.insertion.description import describe
from lookfar.insertion.files import load, recipe, replay, save
from lookfar.insertion.gated import Gated, block_name
from lookfar.insertion.hanging import Insertion, insertions
from lookfar.insertion.inflating import inflate
from lookfar.insertion.inserting import insert
from lookfar.insertion.managing import remove, switched_off, verify
from lookfar.insertion.replacing import replace

if TYPE_CHECKING:
    from torch import nn

    LEAVES: list[type[nn.Module]]  # every block's class, for tracers of torch.fx that ask which modules are leaves

__all__ = [
    "LEAVES",
    "Gated",
    "Insertion",
    "block_name",
    "describe",
    "inflate",
    "insert",
    "insertions",
    "load",
    "recipe",
    "remove",
    "replace",
    "replay",
    "save",
    "switched_off",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "LEAVES":  # made when asked for: it imports every block
        from lookfar.blocks import block_info, list_blocks

        return [Gated, *(block_info(block).cls for block in list_blocks())]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
