"""What a block does in a network while it trains: recorded from outside, now and then."""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Probe:
    """Watches a block: how much it changes its input, the factor that scales it, its share of the gradient."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.replaces = getattr(getattr(module, "inserted", None), "replaced", None) is not None
        self.contribution: float | None = None
        named = dict(module.named_parameters())
        # made before a checkpoint is loaded: the factor that is zero now is the one that lets the block in
        gammas = [p for name, p in named.items() if name.split(".")[-1] == "gamma"]
        zeros = [p for name, p in named.items() if name.endswith("weight") and p.ndim == 1 and not p.any()]
        self.scales = gammas or zeros

    def _measure(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x, y = args[0].detach().float(), output.detach().float()
        if x.shape != y.shape or self.replaces:  # no residual to speak of
            return
        size = x.norm()
        self.contribution = float((y - x).norm() / size) if size else 0.0

    def watch(self) -> RemovableHandle:
        """Measure the contribution ||block(x) - x|| / ||x|| in every forward until the handle is removed."""
        return self.module.register_forward_hook(self._measure)

    def gamma(self) -> float | None:
        """The value of a single scalar; the mean size of several, whose mean would say nothing."""
        if not self.scales:
            return None
        values = torch.cat([p.detach().flatten() for p in self.scales])
        return float(values if values.numel() == 1 else values.abs().mean())


def gradient_square(module: nn.Module) -> float:
    """Squared Euclidean norm of all gradients of a module: those of parts sum up to the whole, as norms do not."""
    squares = [p.grad.detach().float().square().sum() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum()) if squares else 0.0
