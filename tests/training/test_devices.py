"""Two processes compute what one does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import randomise
from tiny_run import tiny_data, tiny_network
from torch import nn

import lookfar
from lookfar.networks import build_network
from lookfar.tasks import Segmentation
from lookfar.training import Settings, train
from lookfar.training.checkpoints import load_tensors
from lookfar.training.modules import synchronised

PROGRAM = str(Path(__file__).parents[1] / "tiny_run.py")
SETTINGS = {
    "steps": 7, "batch_size": 6, "lr": 0.1, "log_every": 3, "eval_every": 4, "optimizer": "sgd", "accelerator": "cpu",
    "precision": "64-true", "clip": 1.0, "checkpoint_every": 100,
}  # fmt: skip


def start(command: list[str], folder: Path, *, plain: bool, **changes) -> dict:
    options = [str(folder), "--settings", json.dumps({**SETTINGS, **changes}), *(["--plain"] if plain else [])]
    done = subprocess.run([*command, PROGRAM, *options], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # Fabric talks to its own users, not to ours
    (line,) = done.stdout.splitlines()  # one process reports
    return json.loads(line)


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    network = tiny_network(batch_statistics=False)
    want = train(network, tiny_data(), Segmentation(), Settings(**SETTINGS), one, seed=7, blocks=["block"])
    got = start([sys.executable], two, plain=True, devices=2)
    assert got["miou"] == pytest.approx(want["miou"], abs=1e-12)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)  # Fabric hands losses on in float32
    weights, others = load_tensors(one / "final.safetensors"), load_tensors(two / "final.safetensors")
    for name, value in weights.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(
        np.load(two / "confusion.npz")["confusion"], np.load(one / "confusion.npz")["confusion"]
    )


@pytest.mark.slow
def test_torchrun_and_batch_norm_on_cpu_processes(tmp_path):
    """torchrun's number of processes counts, and the run says whose batch statistics it uses."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = start(torchrun, tmp_path, plain=False, steps=3)
    assert "batch statistics are those of each process" in result["notes"][0]
    again = train(tiny_network(), tiny_data(), Segmentation(), Settings(**SETTINGS), tmp_path, seed=7)
    assert again == result


def test_a_batch_is_split_evenly(tmp_path, monkeypatch):
    import lookfar.training.loop as loop

    class Three:
        world_size = 3

    monkeypatch.setattr(loop, "launch", lambda settings: Three())
    with pytest.raises(ValueError, match="batch_size 32 cannot be split over 3 devices"):
        train(tiny_network(), tiny_data(), Segmentation(), Settings(accelerator="cpu"), tmp_path, seed=0)


def test_synchronised_norms_keep_the_block_behind_them():
    network = build_network("resnet18", 3, output_stride=16).eval()
    names = lookfar.insert(network, "nonlocal", at="layer3", position="branch", example=torch.randn(1, 3, 32, 32))
    randomise(network)
    x = torch.randn(1, 3, 32, 32)
    want, keys = network(x), set(network.state_dict())
    network = synchronised(network)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert set(network.state_dict()) == keys
    assert all(name in dict(network.named_modules()) for name in names)
    torch.testing.assert_close(network(x), want)
