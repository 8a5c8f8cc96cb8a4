"""A data set and a network small enough to train in a test, and a program that trains them.

python tests/tiny_run.py FOLDER --devices 2 --kill-at 5
"""

import argparse
import json
import os
import signal
import sys

import torch
from torch import Tensor, nn

from lookfar.data import Data, MemorySamples
from lookfar.tasks import find_task
from lookfar.training import Settings, is_main_process, train


def tiny_data(*, ignored: float = 0.2, train: int = 24, val: int = 10) -> Data:
    """Bright pixels are class 1, the darkest class 2 of 4; the share of ignored pixels differs between images."""
    generator = torch.Generator().manual_seed(3)

    def samples(count: int) -> MemorySamples:
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
        brightness = images.float().mean(1)
        masks = (brightness > 128).to(torch.uint8)
        masks[brightness < 70] = 2
        share = ignored * 2 * torch.arange(count) / count
        masks[torch.rand(masks.shape, generator=generator) < share[:, None, None]] = 255
        return MemorySamples(images, masks, [str(i) for i in range(count)])

    classes = ["dark", "bright", "darkest", "never"]
    return Data(
        name="tiny", train=samples(train), val=samples(val), classes=classes, in_chans=3, size=(8, 8),
        mean=(0.5,) * 3, std=(0.25,) * 3, question="Tell bright from dark.",
    )  # fmt: skip


class Scaled(nn.Module):
    """A residual block with a gamma that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.mix(x)


def tiny_network(*, batch_statistics: bool = True) -> nn.Sequential:
    """With dropout and batch norm, which draw on random state and buffers, or with neither."""
    torch.manual_seed(1)
    network = nn.Sequential()
    network.add_module("backbone", nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))
    network.add_module("block", Scaled(8))
    if batch_statistics:
        network.add_module("norm", nn.BatchNorm2d(8))
        network.add_module("drop", nn.Dropout2d(0.3))
    network.add_module("classifier", nn.Conv2d(8, 4, 1))
    return network


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--plain", action="store_true", help="no batch norm, no dropout")
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--task", default="segmentation")
    args = parser.parse_args()

    def progress(step: int, steps: int, values: dict) -> None:
        if step == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(**args.settings)
    network = tiny_network(batch_statistics=not args.plain)
    result = train(
        network, tiny_data(), find_task(args.task), settings, args.folder, seed=7, blocks=["block"], progress=progress
    )
    if is_main_process():
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
