"""Networks are looked at in a mode of our choice and given back in their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def modes_restored(network: "nn.Module") -> Iterator[None]:
    """Afterwards every module is in training or evaluation as it was: some may be frozen in a network that trains."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
