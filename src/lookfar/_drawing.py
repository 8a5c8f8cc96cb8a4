"""Random numbers for networks that are tried out."""

import torch
from torch import nn


def randomise(module: nn.Module) -> nn.Module:
    """Draw every parameter, and the statistics of normalisations, in place; sizes stay near one through the layers."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=max(parameter[0].numel(), 1) ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5).mul_(torch.randn_like(parameter).sign())
                if name.endswith("bias"):
                    parameter.mul_(0.3)  # a large negative one before a ReLU would silence its channel
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module
