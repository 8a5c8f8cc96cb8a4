"""A sound block, and blocks with one classic fault each: what :mod:`test_check` asks about."""

import os
import sys

import torch
import torch.nn.functional as F
from torch import nn


class Sound(nn.Module):
    """Attention between all positions as one would write it, started as the identity."""

    softmax_over = -1

    def __init__(self, channels, heads=1):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        q, k, v = (layer(x).flatten(2).unflatten(1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        weights = (q.transpose(-2, -1) @ k * q.shape[2] ** -0.5).softmax(self.softmax_over)
        return x + self.gamma * (v @ weights.transpose(-2, -1)).flatten(1, 2).unflatten(2, x.shape[2:])


class SoftmaxOverBatch(Sound):
    softmax_over = 0


class Convolution(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


class PlainList(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = [nn.Conv2d(channels, channels, 1) for _ in range(2)]

    def forward(self, x):
        return x + self.layers[1](self.layers[0](x))


class MadeInForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x + nn.Conv2d(self.channels, self.channels, 1).to(x)(x)


class IgnoredChannels(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(64, 64, 1)

    def forward(self, x):
        return x + self.layer(x)


class IgnoredOption(Convolution):
    def __init__(self, channels, reduction=16):
        super().__init__(channels)


class FlooredOption(nn.Module):
    def __init__(self, channels, reduction=32):
        super().__init__()
        inner = max(8, channels // reduction)  # at 32 channels it takes 1, 2 or 3 to hear of the option
        self.layers = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1))

    def forward(self, x):
        return x + self.layers(x)


class SwitchedOption(Convolution):
    def __init__(self, channels, pad=1, padded=False):
        super().__init__(channels)
        self.pad = pad if padded else 0


class InPlace(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.layer(x.relu_())


class KeepsItsFirstSize(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer, self.ramp = nn.Conv2d(channels, channels, 1), None

    def forward(self, x):
        if self.ramp is None:
            self.ramp = torch.ones_like(x[:1, :1])
        return self.layer(x) + self.ramp


class KeepsItsNumberOfPositions(Convolution):
    ramp = torch.zeros(0)

    def forward(self, x):
        if self.ramp.numel() != x[0, 0].numel():
            self.ramp = torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None].expand(x.shape[2:])
        return super().forward(x) + self.ramp.reshape(x.shape[2:])


class ChangesDtype(Convolution):
    def forward(self, x):
        return super().forward(x).float()


class CrashesOnOne(Convolution):
    def forward(self, x):
        return super().forward(x) + F.interpolate(F.max_pool2d(x, 2), x.shape[2:])


class ConfusesPositions(Convolution):
    def forward(self, x):
        return x + super().forward(x).flatten(2).transpose(1, 2).reshape(x.shape)


class MixesAxes(Sound):
    """Its similarities are so large that on ordinary inputs every token attends to itself alone, and nothing shows."""

    def forward(self, x):
        tokens = self.query(x).reshape(x.shape[0], -1, x.shape[1])
        return x + ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).reshape(x.shape)


class ExchangesAxes(Convolution):
    def forward(self, x):
        return x + super().forward(x).flatten(2).unflatten(2, (x.shape[3], x.shape[2])).mean(3)[..., None]


class PositionTable(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.table = nn.Parameter(torch.randn(1, channels, 16, 16))

    def forward(self, x):
        return super().forward(x) + F.interpolate(self.table, x.shape[2:])


class Coordinates(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.place = nn.Conv2d(2, channels, 1)

    def forward(self, x):
        rows, columns = (torch.linspace(-1, 2, n).to(x) for n in x.shape[2:])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return super().forward(x) + self.place(grid[None])


class Unused(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.spare = nn.Linear(channels, channels)


class Frozen(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.bias.requires_grad_(False)


class RandomInEval(Convolution):
    def forward(self, x):
        return F.dropout(super().forward(x))


class Overflows(Convolution):
    def forward(self, x):
        weights = super().forward(x).exp()
        return x * weights / weights.sum((2, 3), keepdim=True)


class FailsUnderAutocast(Convolution):
    def forward(self, x):
        return x.index_add(1, torch.arange(x.shape[1]), super().forward(x))


class WantsContiguous(Convolution):
    def forward(self, x):
        return super().forward(x.view(len(x), -1).view(x.shape))


class Branches(Convolution):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Calls(Convolution):
    """Does something else first."""

    def forward(self, x):
        self.first()
        return x + super().forward(x)


class Exits(Calls):
    def first(self):
        sys.exit(0)


class ExitsInTraining(Calls):
    def first(self):
        if self.training:
            os._exit(0)


class Raises(Calls):
    def first(self):
        raise KeyboardInterrupt


class CallsItself(Calls):
    def first(self):
        self.first()


class Hangs(Calls):
    def first(self):
        while self.training:
            torch.zeros(1)


class Prints(Calls):
    def first(self):
        print("shape")


class WritesBelowPython(Calls):
    def first(self):
        os.write(1, b'{"holds": true}\n')


class GivesNan(Convolution):
    def forward(self, x):
        return super().forward(x) / 0 * 0


class KeepsARandomTensor(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.scale = torch.rand(channels, 1, 1)

    def forward(self, x):
        return x + super().forward(x) * self.scale.to(x)


class KeepsAFunction(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = lambda x: x.relu()

    def forward(self, x):
        return x + self.act(super().forward(x))


class KeepsAGraph(Convolution):
    def __init__(self, channels):
        super().__init__(channels)
        self.doubled = self.weight * 2
