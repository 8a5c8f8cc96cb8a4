"""The backbone ``patch``: nothing in it looks further than its cell of 8x8 pixels, so whatever does is the block's."""

import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8  # pixels of a cell's side


class CellNormAct(nn.Sequential):
    """A convolution of one cell, batch norm, ReLU; maps are filled up with zeros to whole cells.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        cell: Side of a cell; 1 is a 1x1 convolution.

    Shape: ``(B, in_channels, H, W) -> (B, out_channels, ceil(H / cell), ceil(W / cell))``
    """

    def __init__(self, in_channels: int, out_channels: int, *, cell: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, cell, stride=cell, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        right, below = -x.shape[-1] % self.cell, -x.shape[-2] % self.cell
        return super().forward(F.pad(x, (0, right, 0, below)) if right or below else x)


class PatchBackbone(nn.Sequential):
    """Four layers, each of which sees one cell: 8x8 pixels become a position, then 1x1 convolutions, 64 channels.

    The cells are pooled behind it. Without a block in between (behind ``layer2``) what a network says is a sum of what
    single cells say, and no relation between cells can be learned.

    Args:
        in_chans: Bands of the images.
        width: Channels of all layers.

    Shape: ``(B, in_chans, H, W) -> (B, width, ceil(H / 8), ceil(W / 8))``
    """

    def __init__(self, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        self.layer1 = CellNormAct(in_chans, width, cell=PATCH)
        self.layer2 = CellNormAct(width, width)
        self.layer3 = CellNormAct(width, width)
        self.layer4 = CellNormAct(width, width)
