"""Norms of tokens (B, N, C): a batch norm over them, and the refusal of norms that would take N for the channels."""

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._layers import Norm, Placement

_OTHER_AXIS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


class TokenBatchNorm(nn.Module):
    """Batch normalisation of tokens: each of the C channels over all images and tokens together.

    ``nn.BatchNorm1d`` takes (B, N, C) for N channels, and does not complain where N = C.

    Args:
        channels: Channels C.
        eps: Added to the variance.
        momentum: Of the running mean and variance.

    Shape: ``(B, ..., C) -> (B, ..., C)``

    >>> import torch
    >>> TokenBatchNorm(16)(torch.randn(2, 30, 16)).shape
    torch.Size([2, 30, 16])
    """

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float | None = 0.1, **dd: Unpack[Placement]
    ) -> None:
        super().__init__()
        # a layer inside, not a subclass: conversion to SyncBatchNorm exchanges it and keeps the axes
        self.norm = nn.BatchNorm1d(channels, eps=eps, momentum=momentum, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view(x.shape)


def token_norm(norm_layer: Norm, channels: int, **dd: Any) -> nn.Module:
    """A norm of tokens (B, N, C).

    Raises:
        ValueError: The norm takes channels on the second axis, so would norm over the wrong one.
    """
    norm = norm_layer(channels, **dd)
    if takes_channels_first(norm):
        raise ValueError(
            f"norm_layer={type(norm).__name__} takes the tokens of (B, N, C) for channels: want one built for tokens, "
            "such as nn.LayerNorm or lookfar.blocks.TokenBatchNorm"
        )
    return norm


def takes_channels_first(norm: nn.Module) -> bool:
    """Whether a norm takes its second axis for the channels: torch's batch, instance and group norms do."""
    return isinstance(norm, _OTHER_AXIS) or type(norm).__name__.endswith("2d")
