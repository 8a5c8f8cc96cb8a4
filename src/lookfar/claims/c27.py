"""EMAU and GloRe: a convolution that never learns, and a graph step without which a block is another."""

from typing import Any

import torch
from torch import nn

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="EMAU's first convolution learns; GloRe is more than a non-local block.",
    source="Expectation-Maximization Attention (1907.13426), as released; Graph-Based Global Reasoning (1811.12814)",
    refuted_by="no gradient in the convolution; GloRe without its graph step equal to a dot-product non-local block "
    "whose queries and keys share one projection",
)


def run() -> Outcome:
    """The gradient of EMAU's first convolution; GloRe without its step against the tied dot product, in float64."""
    gradient, difference = _gradient(), _difference()
    refuted = gradient == 0 and difference < 1e-10
    return Outcome(
        "refuted" if refuted else "confirmed",
        f"the gradient of EMAU's first convolution is {gradient:.0g} (no gradient passes EM as released); GloRe "
        f"without its graph step is the tied dot-product non-local block to {difference:.0e}: the step is "
        "all that is new.",
    )


def _gradient() -> float:
    from lookfar.blocks import create_block

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block: Any = create_block("expectation_maximization", 16, bases=4, zero_init=False)
        block(torch.randn(2, 16, 6, 6)).square().sum().backward()
        found = block.embed.weight.grad
        return 0.0 if found is None else float(found.norm())


def _difference() -> float:
    from lookfar.blocks import create_block

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        block: Any = create_block("glore", 16, nodes=6, reasoning=False, zero_init=False).double().eval()
        for parameter in block.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(2, 16, 5, 7).double()
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        keys, values = (_linear(layer, tokens) for layer in (block.assign, block.value))
        mixed = (keys @ keys.transpose(1, 2)) @ values
        y = _linear(block.project, mixed).transpose(1, 2).unflatten(2, (5, 7))
        return float((x + block.norm(y) - block(x)).abs().max() / block(x).abs().max())


def _linear(layer: nn.Conv2d, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(tokens, layer.weight.flatten(1), layer.bias)
