"""Which modules of a network are our blocks, and which of them is meant."""

from torch import nn

from lookfar.blocks import block_info
from lookfar.diagnostics.adapters import Adapted
from lookfar.diagnostics.maps import inner_block
from lookfar.insertion import insertions


def blocks_of(network: nn.Module) -> list[str]:
    """Names of the blocks in a network, inserted or part of it, gates included and parts of blocks left out.

    >>> from lookfar import create_block
    >>> blocks_of(nn.Sequential(nn.Conv2d(3, 16, 1), create_block("dual_attention", 16)))
    ['1']
    """
    inserted = {one.name for one in insertions(network)}
    found: list[str] = []
    for name, module in network.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and (name in inserted or isinstance(module, Adapted) or _registered(module)):
            found.append(name)
    return found


def find_block(network: nn.Module, name: str | None) -> str:
    """The name of the block that is meant: empty where the network itself is a block.

    Raises:
        ValueError: There is none, or several and no name.

    >>> from lookfar import create_block
    >>> find_block(create_block("nonlocal", 16), None)
    ''
    """
    names = blocks_of(network)
    have = f"the network's blocks are {', '.join(names)}" if names else "the network has no block of the registry"
    if name is None:
        if len(names) != 1:
            raise ValueError(f"want the name of a block: {have}" if names else have)
        return names[0]
    try:
        inner_block(network.get_submodule(name))
    except (AttributeError, ValueError):
        raise ValueError(f"no block is called {name!r}; {have}") from None
    return name


def _registered(module: nn.Module) -> bool:
    try:
        block_info(module)
    except ValueError:
        return False
    return True
