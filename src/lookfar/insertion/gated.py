"""The gate around blocks that are not residual by nature, and what an inserted block is called."""

import keyword
import re

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info


class Gated(nn.Module):
    """x + gamma (block(x) - x) with a learnable gamma that starts at zero: any block enters as the identity.

    Args:
        block: A module that keeps the shape of its input.

    Shape: that of ``block``
    """

    def __init__(self, block: nn.Module, *, device=None, dtype=None) -> None:
        super().__init__()
        self.block = block
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma.to(x.dtype) * (self.block(x).to(x.dtype) - x)


def block_name(module: nn.Module) -> str:
    """The registered name of an inserted module's block, or its class's.

    >>> from lookfar import create_block
    >>> block_name(Gated(create_block("squeeze_excitation", 32))), block_name(nn.ReLU())
    ('squeeze_excitation', 'ReLU')
    """
    module = module.block if isinstance(module, Gated) else module
    try:
        return block_info(module).name
    except ValueError:
        return type(module).__name__


def snake(module: nn.Module) -> str:
    return re.sub(r"\W", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", block_name(module)).lower())


def child_name(module: nn.Module) -> str:
    """An identifier: compilers write ``layer.name`` into code, where a keyword cannot stand."""
    name = snake(module)
    if not keyword.iskeyword(name):
        return name
    return "non_local" if name == "nonlocal" else f"{name}_block"
