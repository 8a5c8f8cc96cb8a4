"""Images of every kind from a file to labels, beside mmsegmentation's own ``inference_model``."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.mmsegmentation import build, import_mmseg, thin_config_of
from oracles.test_networks import read, saved
from PIL import Image
from torch import Tensor

from lookfar.networks import predict
from lookfar.use.reading import read_image

pytestmark = pytest.mark.oracle
TILES = {"mode": "slide", "crop_size": (40, 40), "stride": (27, 27)}


@pytest.fixture(autouse=True)
def _oracle() -> None:
    import_mmseg()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A photo that is stored lying, one with a palette, one of odd sides: smooth, so that no class is a pixel wide."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)

    def smooth(width: int, height: int) -> Image.Image:
        rough = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        return rough.resize((width, height), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[0x0112] = 6
    smooth(96, 64).save(folder / "lying.jpg", exif=turned, quality=95)
    smooth(88, 56).quantize(64).save(folder / "palette.png")
    smooth(83, 61).save(folder / "odd.png")
    return sorted(folder.iterdir())


def theirs_of(network: Any, config: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Labels (H, W) and logits (K, H, W) of the size of the file."""
    from mmseg.apis import inference_model

    network.cfg = config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes that do not align
        found = inference_model(network, str(path))
    return found.pred_sem_seg.data[0], found.seg_logits.data


@pytest.mark.parametrize("longer", [None, 128, 70], ids=["as it is", "larger", "smaller"])
@pytest.mark.parametrize("tiles", [None, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize(("name", "corners"), [("gcnet", False), ("ann", True), ("danet", False)])
def test_labels_are_those_of_mmsegmentation(
    name: str, corners: bool, tiles: dict[str, Any] | None, longer: int | None, images: list[Path], tmp_path: Path
) -> None:
    config = thin_config_of(name, align_corners=corners)
    resize = {"type": "Resize", "scale": (longer, longer), "keep_ratio": True}
    steps = [{"type": "LoadImageFromFile"}, *([resize] if longer else []), {"type": "PackSegInputs"}]
    config.test_pipeline = steps
    config.model.test_cfg = tiles or {"mode": "whole"}
    theirs = build(config)
    ours = read(saved(theirs, tmp_path / "iter_80000.pth", config))
    for path in images:
        want, logits = theirs_of(theirs, config, path)
        image = read_image(path, 3)
        got = predict(ours, image)
        assert got.shape == want.shape, path.name
        assert len(want.unique()) > 1
        best = logits.topk(2, 0).values
        doubtful = best[0] - best[1] < 1e-3 * logits.abs().max()  # where rounding in float32 may decide
        assert doubtful.float().mean() < 0.02
        assert torch.equal(got[~doubtful].long(), want[~doubtful].long()), path.name
