"""Files of weights as users have them: what stands around the weights, what else a file holds, what is no weights."""

import argparse
import datetime
import os
import pathlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lookfar import create_block, weights

OWN = {"query.weight": torch.arange(6.0).view(2, 3), "query.bias": torch.ones(2), "count": torch.tensor(3)}


def before(*starts: str) -> dict[str, torch.Tensor]:
    return {"".join(starts) + key: value for key, value in OWN.items()}


WRAPPED = {
    "plain": OWN,
    "DataParallel": before("module."),
    "compiled": before("_orig_mod."),
    "compiled, then parallel": before("module.", "_orig_mod."),
    "parallel, then compiled": before("_orig_mod.", "module."),
    "compiled inside": {key.replace("query.", "query._orig_mod."): value for key, value in OWN.items()},
    "Lightning": {"epoch": 3, "state_dict": before("model.")},
    "Lightning, parallel, compiled": {"state_dict": before("model.", "module.", "_orig_mod.")},
    "model": {"model": OWN, "epoch": 1},
    "model_state": {"model_state": OWN, "optim_state": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "model_state_dict": {"epoch": torch.tensor(1.0), "model_state_dict": before("module.")},
    "net": {"net": OWN, "acc": 0.5},
    "ema": {"ema": {"module": OWN}, "decay": 0.9},
    "params": {"params": OWN},
    "params_ema before params": {"params": {key: value * 0 for key, value in OWN.items()}, "params_ema": OWN},
    "wrappers in wrappers": {"model": {"state_dict": {"net": before("module.")}}},
    "averaged": {"n_averaged": torch.tensor(4), **before("module.")},
    "beside an optimiser": {"weights_of_it": OWN, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "numpy": {"state_dict": {key: value.numpy() for key, value in OWN.items()}},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("name", WRAPPED)
def test_what_stands_around_the_weights_is_taken_off(tmp_path: Path, name: str, old: bool) -> None:
    torch.save(WRAPPED[name], tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    found = weights.read(tmp_path / "w.pth")
    assert found.keys() == OWN.keys()
    assert all(torch.equal(found[key], value) for key, value in OWN.items())


def test_a_state_dict_for_each_part(tmp_path: Path) -> None:
    parts = {"encoder": {"weight": torch.ones(2)}, "decoder": {"weight": torch.ones(3)}, "epoch": 3}
    torch.save(parts, tmp_path / "w.pth")
    assert weights.read(tmp_path / "w.pth").keys() == {"encoder.weight", "decoder.weight"}
    assert weights.read(tmp_path / "w.pth", prefix="decoder")["weight"].shape == (3,)


@pytest.mark.parametrize("prefix", ["decode_head.nl_block.", "decode_head.nl_block", "module.decode_head.nl_block."])
def test_a_prefix_takes_a_part_of_a_network(tmp_path: Path, prefix: str) -> None:
    head = before("module.decode_head.nl_block.")
    save_file({"module.backbone.weight": torch.ones(2), **head}, tmp_path / "w.safetensors")
    assert weights.read(tmp_path / "w.safetensors", prefix=prefix).keys() == OWN.keys()


def test_a_prefix_that_is_not_there_is_told(tmp_path: Path) -> None:
    save_file({"backbone.weight": torch.ones(2), **before("decode_head.nl_block.")}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"'decode_head.gc_block.'. There are decode_head \(3\), backbone \(1\)"):
        weights.read(tmp_path / "w.safetensors", prefix="decode_head.gc_block.")


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    save_file(OWN, tmp_path / "pytorch_model.bin")
    assert weights.read(tmp_path / "pytorch_model.bin").keys() == OWN.keys()


@pytest.fixture
def history_buffer() -> Any:
    """mmengine's class as far as pickle sees it, in modules that are gone when the file is read."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self._count_history = np.arange(3.0), np.arange(3)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> float:
            return 0.0

    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    HistoryBuffer.__module__ = HistoryBuffer.min.__module__ = "mmengine.logging.history_buffer"
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    assert not sys.modules.keys() & set(names)
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    yield HistoryBuffer
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_training_files_of_mmengine(tmp_path: Path, history_buffer: Callable[[], Any], old: bool) -> None:
    scalars = OrderedDict(loss=history_buffer())
    file = {
        "meta": {"epoch": 1, "seed": np.int64(3), "time": datetime.datetime(2024, 1, 1), "path": pathlib.PurePath("a")},
        "state_dict": OrderedDict(before("decode_head.")),
        "message_hub": {"log_scalars": scalars, "runtime_info": OrderedDict(lr=np.float64(0.1))},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(file, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    assert weights.read(tmp_path / "w.pth", prefix="decode_head").keys() == OWN.keys()
    assert not [name for name in sys.modules if name.startswith("mmengine")]


class Runs:
    """Pickled, it is a call."""

    def __init__(self, path: Path, call: Callable[..., Any] = os.system) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> Any:
        return (self.call, (f"touch {self.path}",) if self.call is os.system else (str(self.path),))


@pytest.mark.parametrize("call", [os.system, os.mkdir, Path.touch, eval])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_nothing_in_a_file_is_run(tmp_path: Path, old: bool, call: Callable[..., Any]) -> None:
    trace = tmp_path / "trace"
    file = {"state_dict": OWN, "more": Runs(trace, call)}
    torch.save(file, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    try:
        found = weights.read(tmp_path / "w.pth")
    except ValueError:
        found = OWN
    assert found.keys() == OWN.keys()
    assert not trace.exists()


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def cut(old: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=not old)
        path.write_bytes(path.read_bytes()[:-500])

    return write


def whole(old: bool, key: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        module = nn.Sequential(nn.Linear(2, 2))
        torch.save(module if key is None else {key: module}, path, _use_new_zipfile_serialization=not old)

    return write


def plain_pickle(path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones((2, 3), "f4")}}, protocol))


NO_WEIGHTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "LFS pointer": ("w.pth", lfs, "git LFS pointer.*git lfs pull"),
    "LFS pointer of safetensors": ("w.safetensors", lfs, "git LFS pointer"),
    "empty": ("w.pth", lambda p: p.write_bytes(b""), "is empty"),
    "page": ("w.pth", lambda p: p.write_text("\n<!DOCTYPE html>\n<html>"), "is a web page"),
    "text": ("w.pth", lambda p: p.write_text("not found"), "not a torch or safetensors file"),
    "cut off": ("w.pth", cut(False), "cut off"),
    "cut off, old": ("w.pth", cut(True), "cut off"),
    "header of safetensors": ("w.safetensors", lambda p: p.write_bytes(b"\xff" * 64), "not a safetensors file"),
    "cut safetensors": ("w.safetensors", lambda p: p.write_bytes((99).to_bytes(8, "little") + b'{"a":'), "is cut off"),
    "whole module": ("w.pth", whole(False), r"whole pickled object \(torch.nn.modules.container.Sequential\)"),
    "whole module, old": ("w.pth", whole(True), "whole pickled module"),
    "whole module in a file": ("w.pt", whole(False, "model"), "'model' is a whole pickled object"),
    "Caffe2": ("w.pkl", plain_pickle, "plain pickle"),
    "Caffe2, old": ("w.pkl", lambda p: plain_pickle(p, 0), "plain pickle"),
    "Caffe2, new": ("w.pkl", lambda p: plain_pickle(p, 5), "plain pickle"),
    "numpy archive": ("w.npz", lambda p: np.savez(p, x=np.ones(2)), "zip archive without weights"),
    "TorchScript": (
        "w.pt",
        lambda p: torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(2)), p),
        "TorchScript",
    ),
    "HDF5": ("w.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5"),
    "gzip": ("w.pth.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(64)), "unpack it"),
    "a folder": ("folder", lambda p: (p.mkdir(), (p / "model.safetensors").touch()), "give one of model.safetensors"),
    "one tensor": ("w.pth", lambda p: torch.save(torch.ones(2), p), r"holds one tensor \(2,\)"),
    "no tensors": ("w.pth", lambda p: torch.save({"epoch": 1}, p), "holds no tensors, but epoch"),
    "a list": ("w.pth", lambda p: torch.save([1, 2], p), "but a list"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_not_weights_is_reported_in_a_line(tmp_path: Path, case: str) -> None:
    name, write, words = NO_WEIGHTS[case]
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=words) as caught:
        weights.load(create_block("nonlocal", 16), path)
    message = str(caught.value).replace(str(path), "PATH")
    assert "PATH" in message
    assert "\n" not in message
    assert len(message) < 160
    assert "weights_only" not in message
    assert "trust" not in message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at absent\.pth"):
        weights.read("absent.pth")
