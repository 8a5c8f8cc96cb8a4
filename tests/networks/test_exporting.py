"""Networks leave Python: checked at other sizes before they are called done, or refused; ``--every`` asks all."""

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from lookfar import create_block, create_network, list_blocks, list_networks
from lookfar.cli import app
from lookfar.networks import Preprocessing, export, exporting
from lookfar.networks.exporting import _difference
from lookfar.networks.plans import HEADS

NAMES = sorted({*HEADS, *list_blocks(), "cgnet", "cgnet_camvid"} & {*list_networks()})
FORMATS = ("torch-export", "onnx")
SLOW = "half a minute each: pytest --every"


class Tiny(nn.Module):
    """Stride 8, one block, back to the size of the image."""

    def __init__(self, block: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(3, 8, 3, stride=8, padding=1), block
        self.classifier = nn.Conv2d(channels, 3, 1)
        self.preprocessing, self.class_names = Preprocessing(), ("a", "b", "c")

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.classifier(self.block(self.conv(x))), x.shape[2:], mode="bilinear")


def psa() -> Tiny:
    options: dict[str, Any] = {"variant": "mmseg", "mask_size": (7, 7), "form": "published", "inner_channels": 4}
    block = create_block("pointwise_spatial_attention", 8, shrink_factor=2, **options)
    return Tiny(block, 16).eval()


def run(format: str, path: Path, x: Tensor) -> Tensor:
    if format == "torch-export":
        return torch.export.load(path).module()(x)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((64, 72), "height by 2, its width not by 2"),
        ((769, 769), "not by 2, its width not by 2"),
        ((58, 128), "by 2, its"),
    ],
)
def test_sizes_that_psanet_answers_alike(size: tuple[int, int], said: str) -> None:
    """All sizes of the check have a map whose sides are divided as the example's."""
    step, limits = exporting._alike(psa(), size)
    assert said in limits
    for _, *other in exporting._others(size, step):
        assert [-(-side // 8) % 2 for side in other] == [-(-side // 8) % 2 for side in size]
    assert exporting._alike(Tiny(nn.Identity()), size) == (8, "")


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_what_is_said_of_psanet_is_so(format: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Sizes that answer alike are equal; the others are refused by the one form, and wrong in the other, as it says."""
    if not request.config.getoption("--every"):
        pytest.skip(SLOW)
    network, path = psa(), tmp_path / "psa"
    done = export(network, path, format=format, size=(64, 72))  # a map of 8 x 9
    assert "its height by 2, its width not by 2" in done.limits
    assert done.difference < 1e-5
    assert str(done).startswith(f"{path}: equal to")
    for size in ((58, 65), (112, 120), (125, 39)):
        x = torch.randn(2, 3, *size)
        assert (run(format, path, x) - network(x)).abs().max() < 1e-4
    other = torch.randn(1, 3, 72, 72)
    if format == "torch-export":
        with pytest.raises(AssertionError, match="Guard failed"):
            run(format, path, other)
    else:
        assert (run(format, path, other) - network(other)).abs().max() > 1e-3


def test_the_file_appears_when_the_check_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Tiny(nn.Identity()).train()
    path, random = tmp_path / "a.pt2", torch.get_rng_state()
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_read_program", lambda _: lambda x: network(x) + 1)
        with pytest.raises(
            ValueError, match=r"its torch-export program differs by .* of the largest logit: nothing is"
        ):
            export(network, path, format="torch-export", size=(32, 32))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    done = export(network, path, format="torch-export", size=(32, 32))
    if importlib.util.find_spec("onnxruntime"):
        assert export(network, tmp_path / "a.onnx", size=(32, 32)).difference < 1e-5
        (tmp_path / "a.onnx").unlink()
    assert done.limits == ""
    assert network.training
    assert network.block.training
    assert torch.equal(torch.get_rng_state(), random)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt2"]
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read(next(name for name in file.namelist() if name.endswith("lookfar.json"))))
    assert about["class_names"] == ["a", "b", "c"]
    assert about["preprocessing"]["mean"] == [123.675, 116.28, 103.53]


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class OfOneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (Asks(), {}, "it cannot be exported for images of every size: "),
        (OfOneSize(), {}, "the network fails on 1 images of 29x39: RuntimeError: The size of tensor a"),
        (nn.Identity(), {"format": "onxx"}, "format must be onnx or torch-export, got 'onxx'"),
        (nn.Identity(), {"size": (8, 64)}, "size must be 16x16 or larger, got 8x64"),
    ],
)
def test_what_cannot_be_is_refused(block: nn.Module, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        export(Tiny(block), tmp_path / "a", **{"format": "torch-export", "size": (32, 32), **options})
    assert len(str(raised.value)) < 240
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    create_network("cgnet", 3, depths=(2, 2)).save_pretrained(tmp_path / "roads")
    out = tmp_path / "made" / "roads.pt2"
    given = ["export", str(tmp_path / "roads"), "--out", str(out), "--format", "torch-export", "--size", "32x40"]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    assert "equal to" in found.output
    assert out.is_file()


def test_norms_are_parts_of_convolutions(tmp_path: Path) -> None:
    """In the program; the network keeps them."""
    network = Tiny(create_block("nonlocal", 8))
    export(network, tmp_path / "a.pt2", format="torch-export", size=(32, 32))
    program = str(torch.export.load(tmp_path / "a.pt2").graph)
    assert "conv2d" in program
    assert "batch_norm" not in program
    assert isinstance(network.block.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_network(name: str, format: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every"):
        pytest.skip(SLOW)
    options: dict[str, Any] = {"depths": (2, 2)}
    if not name.startswith("cgnet"):
        thin = {"channels": (4, 4, 8, 16), "stem_width": 4}
        options = {"backbone": "resnet18c", "auxiliary": name == "ocrnet", "backbone_options": thin}
    network = create_network(name, None if name == "cgnet_camvid" else 5, **options)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    size = (64, 80)
    if name in ("interlaced", "isanet"):  # whole blocks of 8x8, one row of them: torch.export fixes that they are
        with pytest.raises(ValueError, match="bound to what the example's size makes of its maps; give another size"):
            export(network, tmp_path / "network", format="torch-export", size=size)
        size = (136, 144)
    done = export(network, tmp_path / "network", format=format, size=size)
    assert bool(done.limits) == (name == "psanet")


def test_nan_is_no_agreement() -> None:
    assert _difference(nn.Identity(), lambda images: images * torch.nan, 3, ((1, 4, 4), (2, 5, 3))) == torch.inf
