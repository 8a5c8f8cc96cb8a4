"""A small network of three classes, opened once."""

import pytest
import torch

from lookfar.networks import Inference, Preprocessing, create_network
from lookfar.use import open_network


@pytest.fixture(scope="session")
def roads(tmp_path_factory):
    """The folder of a network whose labels differ within an image."""
    folder = tmp_path_factory.mktemp("network") / "roads"
    torch.manual_seed(3)
    network = create_network(
        "cgnet", depths=(2, 2), class_names=("sky", "road", "car"), preprocessing=Preprocessing(peak=1.0),
        palette=((1, 2, 3), (100, 0, 0), (0, 200, 0)), inference=Inference((32, 32), (21, 21)),
    )  # fmt: skip
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opened(roads):
    return open_network(roads)
