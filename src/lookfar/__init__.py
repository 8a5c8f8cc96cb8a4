"""Visual attention that looks far: blocks, insertion, cost, study.

Public names are resolved when first used, so that ``import lookfar`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "create_block": "lookfar.blocks",
    "list_blocks": "lookfar.blocks",
    "block_info": "lookfar.blocks",
    "create_network": "lookfar.networks",
    "from_checkpoint": "lookfar.networks",
    "list_networks": "lookfar.networks",
    "optimize": "lookfar.networks",
    "insert": "lookfar.insertion",
    "inflate": "lookfar.insertion",
    "remove": "lookfar.insertion",
    "replace": "lookfar.insertion",
    "describe": "lookfar.insertion",
    "save": "lookfar.insertion",
    "load": "lookfar.insertion",
    "look": "lookfar.diagnostics",
    "measure_cost": "lookfar.cost",
}
_MODULES = {
    "blocks",
    "check",
    "cost",
    "data",
    "diagnostics",
    "insertion",
    "networks",
    "ops",
    "study",
    "tasks",
    "training",
    "use",
    "weights",
}

__all__ = [*sorted(_HOME), "__version__"]

if TYPE_CHECKING:
    from lookfar.blocks import block_info, create_block, list_blocks
    from lookfar.cost import measure_cost
    from lookfar.diagnostics import look
    from lookfar.insertion import describe, inflate, insert, load, remove, replace, save
    from lookfar.networks import create_network, from_checkpoint, list_networks, optimize


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"lookfar.{name}")
    raise AttributeError(f"module 'lookfar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
