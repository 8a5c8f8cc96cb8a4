"""The backbone ``points``: layers that see one point at a time, then the maximum over all points of a cloud."""

from torch import nn

WIDTH = 64  # channels of all layers, as of the other embedded backbones


class PointNormAct(nn.Sequential):
    """A layer for every point by itself, batch norm, ReLU.

    Shape: ``(B, in_channels, N) -> (B, out_channels, N)``
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.act = nn.ReLU(inplace=True)


class PointBackbone(nn.Sequential):
    """Three layers of 64 channels, each of which sees one point, and the largest value of every channel.

    So it is PointNet (Qi et al. 2017, arXiv:1612.00593), small and without its transforms: the order of the points
    makes no difference, and no relation between two points is seen but by a block between the layers.

    Args:
        in_chans: Coordinates of a point.

    Shape: ``(B, in_chans, N) -> (B, 64)``
    """

    def __init__(self, in_chans: int = 2) -> None:
        super().__init__()
        self.layer1 = PointNormAct(in_chans, WIDTH)
        self.layer2 = PointNormAct(WIDTH, WIDTH)
        self.layer3 = PointNormAct(WIDTH, WIDTH)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.flat = nn.Flatten()
