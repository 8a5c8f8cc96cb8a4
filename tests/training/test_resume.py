"""Killed at any step and started again, a run reaches the identical weights."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import tiny_data, tiny_network

from lookfar.insertion import insert
from lookfar.networks import build_network
from lookfar.tasks import Segmentation
from lookfar.training import Settings, TrainingError, train
from lookfar.training.checkpoints import load_tensors, save_arrays, save_tensors

TASK = Segmentation()

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
    return train(tiny_network(), tiny_data(), TASK, settings, folder, seed=7, blocks=["block"], progress=progress)


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
    assert run(tmp_path)["notes"] == []
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
            tiny_network(), tiny_data(), TASK, Settings(**SETTINGS), tmp_path,
            seed=7, blocks=["block"], progress=progress
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
        train(network, tiny_data(), TASK, settings, folder, seed=0, blocks=blocks, progress=progress)

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
    notes = run(tmp_path)["notes"]
    assert notes == ["the checkpoint of step 3 is damaged (UnpicklingError), an earlier one takes its place"]
    assert not (tmp_path / "harm").exists()


def spoil_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nan(path: Path) -> None:
    state = load_tensors(path)
    state[next(key for key, t in state.items() if t.is_floating_point())].fill_(float("nan"))
    save_tensors(state, path)


def of_another_network(path: Path) -> None:
    save_tensors(dict(list(load_tensors(path).items())[1:]), path)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *[(name, halve) for name in ("weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json")],
        *[("weights.safetensors", spoil) for spoil in (empty, make_folder, nan, of_another_network)],
        ("optimizer.pt", spoil_bytes),
        ("state.json", lambda path: path.write_text("[]")),
        ("state.json", lambda path: path.write_text('{"step": 3}')),
        ("ema.safetensors", Path.unlink),
    ],
)
def test_an_earlier_checkpoint_takes_the_place_of_a_damaged_one(name, spoil, uninterrupted, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=11)  # after step 9 and a validation: checkpoints of 6 and 9
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-6", "step-9"]
    spoil(tmp_path / "step-9" / name)
    result = run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    assert any("checkpoint of step 9 is damaged" in note for note in result["notes"])


def test_without_a_whole_checkpoint_it_begins_anew(uninterrupted, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=11)
    for step in (6, 9):
        halve(tmp_path / f"step-{step}" / "weights.safetensors")
    assert len(run(tmp_path)["notes"]) == 2
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *[("confusion.npz", spoil) for spoil in (halve, empty, spoil_bytes)],
        *[("final.safetensors", spoil) for spoil in (halve, nan, of_another_network)],
        ("confusion.npz", lambda path: save_arrays(path, confusion=np.zeros((10, 4, 4), np.int64))),
        ("confusion.npz", lambda path: save_arrays(path, confusion=np.ones((9, 4, 4), np.int64))),
        ("confusion.npz", lambda path: np.savez(path, confusion=np.full((10, 4, 4), np.nan))),
    ],
)
@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_damaged_end_is_made_again(name, spoil, checkpoints, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / name)
    if not checkpoints:
        for path in tmp_path.glob("step-*"):
            shutil.rmtree(path)
        if name != "confusion.npz":
            return  # trained again from the first step: the tests above
    calls = []
    settings = Settings(**SETTINGS)
    train(
        tiny_network(),
        tiny_data(),
        TASK,
        settings,
        tmp_path,
        seed=7,
        blocks=["block"],
        progress=lambda *_: calls.append(1),
    )
    assert calls == []  # no step again
    assert_same_run(tmp_path, uninterrupted)


def test_weights_and_logits_that_are_not_finite_fail(tmp_path, monkeypatch):
    network, data = tiny_network(), tiny_data()
    network.register_buffer("mask", torch.tensor([1.0, float("inf")]))  # which is what it should be
    network.register_parameter("spare", torch.nn.Parameter(torch.tensor([1.0, float("inf")])))
    settings = Settings(**{**SETTINGS, "steps": 1, "ema": 0.0})
    with pytest.raises(TrainingError, match="after the last step spare is not finite: try a lower lr"):
        train(network, data, TASK, settings, tmp_path / "weights", seed=0)
    network = tiny_network()
    network.register_forward_hook(lambda module, _, y: y if module.training else y * float("nan"))
    with pytest.raises(TrainingError, match=f"outputs of {len(data.val)} of {len(data.val)} validation samples"):
        train(network, data, TASK, settings, tmp_path / "logits", seed=0)
    for folder in ("weights", "logits"):
        assert not (tmp_path / folder / "final.safetensors").exists()
