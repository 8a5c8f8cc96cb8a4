"""SENet: a gate for every channel, computed from the averages of all channels.

Traps: the authors' layers have biases, the PyTorch port that their page lists has none (``bias``); there is no residual
inside; a width of C // r = 0 would leave a constant gate, so it is at least 1.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import Dims, Placement
from lookfar.ops._precision import averaged


@block(
    "squeeze_excitation",
    title="Squeeze-and-excitation (SENet)",
    paper="Squeeze-and-Excitation Networks (CVPR 2018)",
    arxiv="1709.01507",
    formula=(r"y = \sigma(W_2\,\text{ReLU}(W_1\,\text{mean}(x) + b_1) + b_2) \odot x",),
    family="channel",
    complexity="N C + C^2 / r",
    memory="N C",
    verified=(
        "hujie-frank/SENet@0262d43d:models/SE-ResNet-50.prototxt, its layers as a float64 loop",
        "moskomule/senet.pytorch@8cb2669f:senet/se_module.py",
    ),
    attends="none",
    residual=False,
    aliases=("se", "senet"),
    differences=(
        "Both layers have biases in the authors' networks and none in the PyTorch port listed by them: `bias`, True "
        "by default.",
    ),
    author_keys={
        r"(.*_)?1x1_down": "reduce",
        r"(.*_)?1x1_up": "expand",
        r"fc\.0|fc1|conv_reduce": "reduce",
        r"fc\.2|fc2|conv_expand": "expand",
    },
)
class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in (0, 1) that depends on the averages of all channels.

    y = sigmoid(W_2 relu(W_1 mean(x) + b_1) + b_2) x

    Args:
        reduction: The hidden layer has ``channels // reduction`` units, at least one.
        bias: Both layers have a bias.
        pooling: Squeeze every channel to its ``avg`` or, the paper's comparison, its ``max``.
        gate: ``sigmoid``, or the paper's comparisons ``tanh`` and ``relu``.
        dims: Spatial axes of the map: 1, 2 or 3; None takes any.

    Shape: ``(B, C, *S) -> (B, C, *S)``

    Raises:
        ValueError: An unknown ``pooling`` or ``gate``.

    Example:
        >>> block = SqueezeExcitation(16)
        >>> block(torch.randn(2, 16, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool = True,
        pooling: Literal["avg", "max"] = "avg",
        gate: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
        dims: Dims | None = None,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.pooling, self.gate = pooling, gate
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Linear(channels, hidden, bias=bias, **dd)
        self.expand = nn.Linear(hidden, channels, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        # a sum of N halves may overflow
        squeezed = averaged(flat, -1).to(x.dtype) if self.pooling == "avg" else flat.max(-1).values
        gate = getattr(torch, self.gate)(self.expand(self.reduce(squeezed).relu())).to(x.dtype)
        return x * gate.unflatten(1, (-1, *[1] * (x.dim() - 2)))
