"""What surrounds a network is read from configurations and names, and is kept with it."""

from pathlib import Path
from typing import Any

import pytest

from lookfar import create_network
from lookfar.networks import Inference, Preprocessing, from_pretrained
from lookfar.networks.authors import RELEASES
from lookfar.networks.surroundings import said_by_config, said_by_name, surround
from lookfar.networks.zoo import said_by, table

LOAD = {"type": "LoadImageFromFile"}
ZERO = {"type": "LoadAnnotations", "reduce_zero_label": True}


def test_every_file_of_the_table() -> None:
    """As mmsegmentation's 320 configurations of these heads have it: 24 in tiles of 480, 68 of 769, the rest whole."""
    counts: dict[Any, int] = {}
    for name, entry in table().items():
        found = said_by_name(name)
        tile = found["tiles"] and found["tiles"][0]
        counts[tile] = counts.get(tile, 0) + 1
        assert (tile == (769, 769)) == (entry.crop == (769, 769)) == said_by(name)["align_corners"]
        assert (tile == (480, 480)) == entry.dataset.startswith("Pascal-Context")
        zero = {"ADE20K", "COCO-Stuff-10k", "Pascal-Context-59", "LoveDA", "Potsdam", "Vaihingen"}
        assert found["reduce_zero_label"] == (entry.dataset in zero)
        within = {"Cityscapes": (2048, 1024), "LoveDA": (1024, 1024), "iSAID": (896, 896)}.get(entry.dataset)
        if within is None:
            pascal, isprs = entry.dataset.startswith("Pascal"), entry.dataset in ("Potsdam", "Vaihingen")
            within = (520, 520) if pascal else (512, 512) if isprs else (2048, 512)
        assert found["within"] == ((2049, 1025) if tile == (769, 769) else within)
    assert counts == {None: 220, (769, 769): 68, (480, 480): 12}
    assert said_by_name("danet.pth") == said_by_name("city.pth") == {}


OLD = {  # mmsegmentation 0.x
    "img_norm_cfg": {"mean": [1, 2, 3], "std": [4, 5, 6], "to_rgb": True},
    "test_pipeline": [
        LOAD,
        {
            "type": "MultiScaleFlipAug",
            "img_scale": (2048, 512),
            "flip": False,
            "transforms": [{"type": "Resize", "keep_ratio": True}, {"type": "RandomFlip"}],
        },
    ],
    "train_pipeline": [LOAD, ZERO],
}
NEW = {
    "data_preprocessor": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": True},
    "test_pipeline": [LOAD, {"type": "Resize", "scale": (2048, 512), "keep_ratio": True}, ZERO],
}


@pytest.mark.parametrize("config", [OLD, NEW, {**NEW, "test_pipeline": NEW["test_pipeline"][:2], **{
    "test_dataloader": {"dataset": {"type": "ADE20KDataset"}}}}])  # fmt: skip
@pytest.mark.parametrize("in_model", [True, False])
def test_a_configuration(config: dict[str, Any], in_model: bool) -> None:
    cfg = {"test_cfg": {"mode": "slide", "crop_size": [769, 700], "stride": [513, 500]}}
    found = said_by_config(config if in_model else {**config, **cfg}, cfg if in_model else {})
    made = surround(found)
    assert made["preprocessing"] == Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), within=(2048, 512))
    assert made["inference"] == Inference((769, 700), (513, 500), reduce_zero_label=True)


def test_what_a_configuration_does_not_say() -> None:
    assert said_by_config({}, {}) == {}
    assert said_by_config({}, {"test_cfg": {"mode": "whole"}}) == {"tiles": None}
    blue_first = {"img_norm_cfg": {"mean": [1], "std": [2], "to_rgb": False}}
    assert said_by_config(blue_first, {}) == {"mean": (1.0,), "std": (2.0,), "bgr": True}
    with pytest.raises(ValueError, match=r"all brought to \(9, 9\), whatever their ratio"):
        said_by_config({"test_pipeline": [{"type": "Resize", "scale": (9, 9), "keep_ratio": False}]}, {})
    with pytest.raises(ValueError, match="tiles of None with a stride of 3 are not read"):
        said_by_config({}, {"test_cfg": {"mode": "slide", "stride": 3}})


def test_authors_who_read_blue_first() -> None:
    found = {release.code: release.arguments.get("preprocessing", Preprocessing()).bgr for release in RELEASES}
    assert {code for code, bgr in found.items() if bgr} == {"speedinghzl/CCNet", "openseg-group/openseg.pytorch"}


def test_it_travels_along(tmp_path: Path) -> None:
    around = Preprocessing((1.0, 2.0, 3.0), bgr=True, peak=1.0, within=(64, 32))
    use = Inference((9, 7), (5, 4), reduce_zero_label=True)
    thin = {"channels": (4, 8, 16, 32), "stem_width": 4}
    create_network("fcn", 3, backbone_options=thin, preprocessing=around, inference=use).save_pretrained(tmp_path)
    found = from_pretrained(tmp_path)
    assert (found.preprocessing, found.inference) == (around, use)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile": (9, 9)}, "a tile and its stride come together"),
        ({"tile": (9, 9), "stride": (9, 10)}, "leaves gaps between tiles"),
        ({"tile": (0, 9), "stride": (1, 1)}, "must be positive"),
    ],
)
def test_tiles_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**given)


@pytest.mark.parametrize(("said", "bgr"), [({}, False), ({"to_rgb": False}, True), ({"to_rgb": True}, False)])
def test_the_normalize_of_mmcv_turns_channels_unless_it_says_no(said: dict[str, Any], bgr: bool) -> None:
    norm = {"mean": [1, 2, 3], "std": [1, 1, 1], **said}
    assert said_by_config({"img_norm_cfg": norm}, {})["bgr"] is bgr
    assert said_by_config({"data_preprocessor": {**norm, **{"bgr_to_rgb": not bgr}}}, {})["bgr"] is bgr
