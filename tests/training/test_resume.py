"""Killed at any step and started again, a run reaches the identical weights."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_data, tiny_network

from lookfar.insertion import insert
from lookfar.networks import build_network
from lookfar.training import Settings, train
from lookfar.training.checkpoints import load_tensors

SETTINGS = {
    "steps": 11, "batch_size": 4, "log_every": 1, "eval_every": 5, "checkpoint_every": 3, "ema": 0.8,
    "accelerator": "cpu",
}  # fmt: skip


class Killed(Exception):
    pass


def run(folder: Path, *, kill_at: int = -1, **changes):
    calls = 0

    def progress(step: int, steps: int, values: dict) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed

    settings = Settings(**{**SETTINGS, **changes})
    return train(tiny_network(), tiny_data(), settings, folder, seed=7, blocks=["block"], progress=progress)


def timeless(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def assert_same_run(got: Path, want: Path) -> None:
    a, b = load_tensors(got / "final.safetensors"), load_tensors(want / "final.safetensors")
    assert [key for key in b if not a[key].equal(b[key])] == []
    assert (got / "confusion.npz").read_bytes() == (want / "confusion.npz").read_bytes()
    assert timeless(got) == timeless(want)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder)
    return folder


def test_killed_again_and_again(uninterrupted, tmp_path):
    """14 calls of progress: 11 steps and validations at 5, 10 and 11; each start dies after a few of them."""
    generator, starts = random.Random(0), 0
    while not (tmp_path / "final.safetensors").exists():
        starts += 1
        assert starts < 40
        try:
            run(tmp_path, kill_at=generator.randint(1, 6))
        except Killed:
            assert len(list(tmp_path.glob("step-*"))) <= 2
    assert starts > 3
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("kill_at", range(1, 15))
def test_killed_once(kill_at, uninterrupted, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_killed_by_the_system(uninterrupted, tmp_path):
    program = [sys.executable, str(Path(__file__).parents[1] / "tiny_run.py"), str(tmp_path)]
    killed = subprocess.run([*program, "--settings", json.dumps(SETTINGS), "--kill-at", "8"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "step-3", "step-6"]
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_killed_while_writing(uninterrupted, tmp_path):
    """Half a checkpoint, half a line, weights without the confusion matrix: none of it is believed."""
    with pytest.raises(Killed):
        run(tmp_path, kill_at=9)
    half = tmp_path / ".step-9.123"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    copied = tmp_path / "step-9"  # by hand, and not to the end
    copied.mkdir()
    (copied / "weights.safetensors").write_bytes(b"half")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    (tmp_path / "final.safetensors").write_bytes((uninterrupted / "final.safetensors").read_bytes())
    run(tmp_path)
    assert not half.exists()
    assert_same_run(tmp_path, uninterrupted)


def test_killed_before_the_last_files(uninterrupted, tmp_path):
    run(tmp_path)
    (tmp_path / "confusion.npz").unlink()
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal_costs_no_step(number, uninterrupted, tmp_path):
    def progress(step: int, steps: int, values: dict) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 11"):
        train(
            tiny_network(), tiny_data(), Settings(**SETTINGS), tmp_path, seed=7, blocks=["block"], progress=progress
        )  # fmt: skip
    assert (tmp_path / "step-4").exists()
    assert signal.getsignal(number) is before
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_losses_between_records_survive(tmp_path):
    """A record is the mean over its steps, also over those before the checkpoint."""
    run(tmp_path / "whole", log_every=5)
    with pytest.raises(Killed):
        run(tmp_path / "killed", log_every=5, kill_at=1)  # at step 5, after the checkpoint of step 3
    run(tmp_path / "killed", log_every=5)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_host_with_a_block_goes_on_exactly(tmp_path):
    """Batch statistics, channels_last weights, a block's zero start and AdamW's moments, all through the files."""

    def go(folder: Path, kill_at: int = -1) -> None:
        def progress(step: int, steps: int, values: dict) -> None:
            if step == kill_at:
                raise Killed

        torch.manual_seed(0)
        network = build_network("small", 4)
        blocks = insert(network, "nonlocal", at=network.place, example=torch.randn(2, 3, 8, 8))
        settings = Settings(steps=6, batch_size=8, log_every=1, checkpoint_every=2, clip=1.0, accelerator="cpu")
        train(network, tiny_data(), settings, folder, seed=0, blocks=blocks, progress=progress)

    go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "killed", kill_at=5)
    go(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_other_settings_do_not_go_on(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=5)
    with pytest.raises(ValueError, match=r"lr: 0.003 then, 0.1 now"):
        run(tmp_path, lr=0.1)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").touch, ()

    with pytest.raises(Killed):
        run(tmp_path, kill_at=5)
    torch.save({"optimizer": Harm(), "precision": {}}, tmp_path / "step-3" / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError):
        run(tmp_path)
    assert not (tmp_path / "harm").exists()
