"""The backbone ``patch``: nothing in it looks further than its cell of 8x8 pixels, so whatever does is the block's."""

import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8  # pixels of a cell's side
WIDTH = 64  # channels of all layers, as of the other embedded backbone


class WholeCells(nn.Module):
    """Fills maps up with zeros, right and below, to whole cells.

    Shape: ``(B, C, H, W) -> (B, C, cell * ceil(H / cell), cell * ceil(W / cell))``
    """

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % self.cell, 0, -x.shape[-2] % self.cell))


class CellNormAct(nn.Sequential):
    """A convolution of one cell, batch norm, ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        cell: Side of a cell; 1 is a 1x1 convolution.

    Shape: ``(B, in_channels, H, W) -> (B, out_channels, ceil(H / cell), ceil(W / cell))``
    """

    def __init__(self, in_channels: int, out_channels: int, *, cell: int = 1) -> None:
        super().__init__()
        if cell > 1:
            self.whole = WholeCells(cell)
        self.conv = nn.Conv2d(in_channels, out_channels, cell, stride=cell, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)


class PatchBackbone(nn.Sequential):
    """Four layers, each of which sees one cell: 8x8 pixels become a position, then 1x1 convolutions, 64 channels.

    The cells are pooled behind it. Without a block in between (behind ``layer2``) what a network says is a sum of what
    single cells say, and no relation between cells can be learned.

    Args:
        in_chans: Bands of the images.

    Shape: ``(B, in_chans, H, W) -> (B, 64, ceil(H / 8), ceil(W / 8))``
    """

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.layer1 = CellNormAct(in_chans, WIDTH, cell=PATCH)
        self.layer2 = CellNormAct(WIDTH, WIDTH)
        self.layer3 = CellNormAct(WIDTH, WIDTH)
        self.layer4 = CellNormAct(WIDTH, WIDTH)
