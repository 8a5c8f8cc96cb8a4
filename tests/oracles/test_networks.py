"""Every head of mmsegmentation beside mmsegmentation itself: thin and at full width, and the files that it writes."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.mmsegmentation import (
    NAMES,
    build,
    config_of,
    distance,
    gradients,
    import_mmseg,
    outputs,
    resized,
    thin_config_of,
)

from lookfar import create_network, from_checkpoint, weights
from lookfar.networks import SegmentationNetwork

pytestmark = pytest.mark.oracle
# of a training on two machines; what stands behind is what mmengine's logger leaves
LOGGED = {"lr": 0.01, "loss": 3.2}


@pytest.fixture(autouse=True)
def _oracle() -> None:
    import_mmseg()


def saved(network: Any, path: Path, config: Any, dataset_meta: Any = None, **further: Any) -> Path:
    """As a training of mmengine saves it."""
    from mmengine.runner.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu

    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    meta = {"epoch": 0, "iter": 80000, "seed": 3, "cfg": config.pretty_text, "mmengine_version": "0.10.7"}
    meta |= {} if dataset_meta is None else {"dataset_meta": dataset_meta}
    state = weights_to_cpu(get_state_dict(network))
    save_checkpoint({"meta": meta, "state_dict": state, "optimizer": optimizer.state_dict(), **further}, str(path))
    return path


def read(path: Path, **given: Any) -> SegmentationNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing had to be assumed
        network = from_checkpoint(path, **given)
    assert isinstance(network, SegmentationNetwork)
    return network


def furthest(ours: SegmentationNetwork, theirs: Any, *shape: int, dtype: torch.dtype = torch.float64) -> float:
    """The largest distance of all logits on images (B, 3, H, W)."""
    image = torch.randn(*shape, dtype=dtype)
    ours, theirs = copy.deepcopy(ours).to(dtype), copy.deepcopy(theirs).to(dtype)
    with torch.no_grad():
        first, others = ours.outputs(image)
        whole = ours(image)
    wanted = outputs(theirs, image)
    assert len(wanted) == 1 + len(others)
    return max(distance(y, want) for y, want in zip([first, *others, whole], [*wanted, resized(theirs, image)]))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_thin_networks_through_a_file(name: str, corners: bool, tmp_path: Path) -> None:
    config = thin_config_of(name, align_corners=corners)
    theirs = build(config)
    silent = [weight for weight, size in gradients(theirs, torch.randn(1, 3, 65, 49)).items() if size < 1e-6]
    assert not silent
    ours = read(saved(theirs, tmp_path / "iter_80000.pth", config))
    assert ours.align_corners == corners
    assert furthest(ours, theirs, 2, 3, 65, 49) < 1e-9
    assert furthest(ours, theirs, 1, 3, 64, 88) < 1e-9
    assert furthest(ours, theirs, 1, 3, 65, 49, dtype=torch.float32) < 1e-3


@pytest.mark.parametrize(("name", "depth"), [*((name, 50) for name in NAMES), ("dnl", 101), ("ocrnet", 101)])
def test_full_width_by_the_preset(name: str, depth: int) -> None:
    """The names of the presets are mmsegmentation's configurations, defaults and all."""
    config = config_of(name)
    config.model.backbone.depth = depth
    theirs = build(config)
    ours = create_network(f"{name}_resnet{depth}_d8", 19).eval()
    assert isinstance(ours, SegmentationNetwork)
    weights.load(ours, theirs.state_dict())
    assert furthest(ours, theirs, 1, 3, 65, 49) < 1e-9


def logged() -> dict[str, Any]:
    """What a training has logged, objects of mmengine's own class."""
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub.get_instance("oracle")
    for _ in range(3):
        hub.update_scalars(LOGGED)
    state = hub.state_dict()
    assert isinstance(state["log_scalars"]["loss"], HistoryBuffer)
    return state


@pytest.mark.parametrize("history", [False, True])
def test_files_of_a_training(history: bool, tmp_path: Path) -> None:
    """With all that a training keeps; ``HistoryBuffer`` is a class that is not there where the file is read."""
    config = thin_config_of("gcnet")
    theirs = build(config)
    meta = {"classes": tuple("abcde"), "palette": [[n, 0, 255 - n] for n in range(5)]}
    further = {"message_hub": logged()} if history else {}
    path = saved(theirs, tmp_path / "iter_80000.pth", config, dataset_meta=meta, **further)
    found = subprocess.run(
        [sys.executable, "-c", _READ, str(path), str(tmp_path / "y.pt")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["abcde", "(4,0,251)", "resnet50c"]
    x, y = torch.load(tmp_path / "y.pt")
    assert distance(y, outputs(theirs, x)[0]) < 1e-3


_READ = """
import sys, torch, lookfar
network = lookfar.from_checkpoint(sys.argv[1])
assert not {"mmengine", "mmcv", "mmseg"} & sys.modules.keys()
print("".join(network.class_names), str(network.palette[4]).replace(" ", ""), network.recognised.arguments["backbone"])
x = torch.randn(1, 3, 33, 40)
torch.save((x, network.logits(x).detach()), sys.argv[2])
"""
