"""Files that authors published, through public functions alone: their maps, their accuracy, their features."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookfar import create_block, weights

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("LOOKFAR_SHARED", ROOT.parent / "shared")) / "published"
needs_files = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published files are not here: no {PUBLISHED}")


def classifier() -> nn.ModuleDict:
    """The digits' classifier of AlexHex7/Non-local_pytorch, with our blocks."""

    def layer(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))

    def block(channels: int) -> nn.Module:
        return create_block("nonlocal", channels, subsample=2, scale=False)

    network = nn.ModuleDict(
        {
            "conv_1": layer(1, 32),
            "nl_1": block(32),
            "conv_2": layer(32, 64),
            "nl_2": block(64),
            "conv_3": layer(64, 128),
            "fc": nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10)),
        }
    )
    for name, part in network.items():
        weights.load(part, PUBLISHED / "nonlocal_mnist/net.pth", prefix=f"{name}.")
    return network.eval()


def run(network: nn.ModuleDict, x: Tensor, *, blocks: bool = True) -> Tensor:
    for name, part in network.items():
        if name == "fc":
            x = x.flatten(1)
        if blocks or not name.startswith("nl"):
            x = part(x)
    return x


@needs_files
@torch.no_grad()
def test_nonlocal_gives_the_published_maps() -> None:
    from PIL import Image

    network = classifier()
    image = torch.from_numpy(np.array(Image.open(PUBLISHED / "nonlocal_mnist/sample.png").convert("L")))
    x = network["conv_1"](image[None, None] / 255)
    first = network["nl_1"].attention(x)
    second = network["nl_2"].attention(network["conv_2"](network["nl_1"](x)))
    for number, found in enumerate((first, second), 1):
        want = np.load(PUBLISHED / f"nonlocal_mnist/nl_map_{number}.npy")
        assert np.abs(found.squeeze().numpy() - want.squeeze()).max() < 3e-6


@needs_files
@torch.no_grad()
def test_nonlocal_reads_the_digits_as_published() -> None:
    digits = np.load(PUBLISHED / "mnist_test_2000.npz")
    x, truth = torch.from_numpy(digits["images"])[:, None] / 255, torch.from_numpy(digits["labels"].astype(np.int64))
    network = classifier()
    right = {
        blocks: sum(int((run(network, some, blocks=blocks).argmax(1) == of).sum()) for some, of in batches)
        for blocks in (True, False)
        for batches in [list(zip(x.split(250), truth.split(250)))]
    }
    assert right[True] / len(x) == pytest.approx(0.9895, abs=1e-4)
    assert right[False] / len(x) == pytest.approx(0.8765, abs=1e-4)  # both blocks replaced by the identity


@needs_files
@torch.no_grad()
def test_glimpse_sees_what_the_published_sensor_sees() -> None:
    path = PUBLISHED / "glimpse_ram/ram_6_8x8_2_model_best.pth.tar"
    block = create_block("glimpse", 1, kernel_size=8, scales=1, scale_factor=2, out_channels=256, inner_channels=128)
    weights.load(block, path, prefix="sensor.")
    layers = {}
    for name, (before, after) in {"rnn.i2h": (256, 256), "rnn.h2h": (256, 256), "locator.fc": (256, 2)}.items():
        layers[name] = weights.load(nn.Linear(before, after), path, prefix=name)
    classify = weights.load(nn.Linear(256, 10), path, prefix="classifier.fc")
    want = {key: torch.from_numpy(value) for key, value in np.load(PUBLISHED / "glimpse_ram/expected.npz").items()}
    images = torch.from_numpy(np.load(PUBLISHED / "mnist_test_2000.npz")["images"][:16])[:, None]
    x = (images / 255 - 0.1307) / 0.3081
    place, hidden = want["start"], torch.zeros(16, 256)
    for step in range(6):
        # Each step looks where the published one looked: of places that follow from one another, errors add up, and
        # the published float32 features are themselves 3e-6 from the same steps in float64.
        seen = block(x, place)
        torch.testing.assert_close(seen, want["features"][step], rtol=0, atol=1e-5)
        hidden = (layers["rnn.i2h"](seen) + layers["rnn.h2h"](hidden)).relu()
        torch.testing.assert_close(layers["locator.fc"](hidden).tanh(), want["locations"][step], rtol=0, atol=1e-5)
        place = want["locations"][step]
    torch.testing.assert_close(classify(hidden), want["logits"], rtol=0, atol=1e-4)
