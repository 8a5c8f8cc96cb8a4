"""A block and hosts as a user would write them, with a neighbour that they import."""

import torch
from own_helper import SCALE
from torch import nn


class MyBlock(nn.Module):
    """What `position` would mean to lookfar.insert is its own business here."""

    def __init__(self, channels, reduction=4, position="mean"):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1)
        )
        self.position = position

    def forward(self, x):
        return x + SCALE * self.layer(x.mean((2, 3), keepdim=True))


class Unused(MyBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.spare = nn.Linear(2, 2)


class Halves(nn.Module):
    """Keeps all promises but the shape."""

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels // 2, 1)

    def forward(self, x):
        return self.layer(x)


class NoModule:
    pass


def build(num_classes, in_chans=3, width=8):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_chans, width, 3, stride=4, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Conv2d(width, num_classes, 1),
    )


class Features(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.shallow = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.deep = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)

    def forward(self, x):
        shallow = self.shallow(x).relu()
        return {"shallow": shallow, "deep": self.deep(shallow).relu()}


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


class Forgets(nn.Module):
    """Computes with random numbers that no file keeps."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)
        self.mixture = torch.rand(3, 1, 1)

    def forward(self, x):
        return self.layer(x * self.mixture.to(x))


def needs_more(depth, classes):
    return None


def gives_none(classes):
    return None


class Table(nn.Module):
    """Made for one size."""

    def __init__(self, channels):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, channels, 12, 20))

    def forward(self, x):
        return x + self.table
