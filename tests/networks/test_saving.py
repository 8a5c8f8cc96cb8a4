"""Networks in a folder and on the hub: what is written is found again."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

from lookfar import create_network
from lookfar.networks import CGNet, Preprocessing, SegmentationNetwork, from_pretrained

THIN = {"channels": (4, 8, 16, 32), "stem_width": 4}


def made() -> Any:
    network = create_network(
        "danet", 2, backbone_options=THIN, align_corners=True, reduction=4, class_names=("sky", "sea"),
        palette=((0, 0, 9), (9, 9, 9)), preprocessing=Preprocessing((1.0, 2.0, 3.0), bgr=True),
        last_dilations=(4, 8, 16),
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def assert_same(found: Any, network: Any) -> None:
    x = torch.randn(1, 3, 33, 40)
    assert not found.training
    assert str(found) == str(network)
    assert (found.class_names, found.palette, found.preprocessing, found.align_corners) == (
        network.class_names, network.palette, network.preprocessing, network.align_corners,
    )  # fmt: skip
    assert torch.equal(found(x), network(x))


def test_a_folder(tmp_path: Path) -> None:
    network = made()
    network.save_pretrained(tmp_path / "a/b")
    found = from_pretrained(tmp_path / "a/b")
    assert isinstance(found, SegmentationNetwork)
    assert_same(found, network)
    assert "pretrained" not in json.loads((tmp_path / "a/b/config.json").read_text())
    found.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "a/b/config.json").read_text()


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Api:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, name: str, **options: Any) -> None:
            asked.append((name, options))

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            Path(folder_path).rename(tmp_path / "hub")
            Path(folder_path).mkdir()
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "hub"))
    network = made()
    assert network.push_to_hub("me/danet", private=True) == "https://hub/me/danet"
    assert asked == [("me/danet", {"private": True, "exist_ok": True})]
    assert_same(from_pretrained("me/danet"), network)


def test_what_cannot_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="this CGNet was not made by create_network"):
        CGNet(3, depths=(2, 2)).save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    odd = create_network("nonlocal", 2, backbone_options=THIN, norm_layer=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"norm_layer=<class .*> cannot be written as text"):
        odd.save_pretrained(tmp_path / "none")
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder nowhere, and a repository of the hub is owner/name"
    ):
        from_pretrained("nowhere")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no way there\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"there is no folder me/danet, and the hub gives none: no way there$"):
        from_pretrained("me/danet")
    with pytest.raises(ValueError, match=r"holds no config\.json with model\.safetensors"):
        from_pretrained(tmp_path)
    network = create_network("cgnet", 3, depths=(2, 2))
    network.save_pretrained(tmp_path / "cgnet")
    for text, message in (("[1]", "is not a configuration of one"), ("{", "is not a configuration of one"),
                          ('{"name": "cgnet", "num_classes": 3, "deep": 4}', "deep")):  # fmt: skip
        (tmp_path / "cgnet/config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "cgnet")
    with pytest.raises(ValueError, match="width must be a positive integer or None, got 0"):
        create_network("fcn", 3, width=0)
