"""CamVid and the sets of torchvision, on tiny trees of the right layout."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookfar.data import open_data

SHARED = Path(os.environ.get("LOOKFAR_SHARED", Path(__file__).parents[3] / "shared"))
CAMVID = SHARED / "data" / "camvid"


def save(path, values, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    if palette:
        image.putpalette([9, 8, 7] * 256)
    image.save(path)


def save_image(path):
    save(
        path, np.random.RandomState(sum(map(ord, f"{path.parent.parent.name} {path.stem}"))).randint(0, 256, (8, 12, 3))
    )


def stripes(*values):
    return np.tile(np.array(values).repeat(12 // len(values)), (8, 1))


def seen(mask):
    return mask[0].unique_consecutive().tolist()


TRAIN = ["0001TP_000030", "0001TP_000060", "0006R0_000030", "0016E5_000090"]
VAL = ["0016E5_000120"]


def make_camvid(root, *, lists):
    for split, names in (("train", TRAIN), ("val", VAL), ("test", ["Seq05VD_f00000"])):
        for name in names:
            save_image(root / split / f"{name}.png")
            save(root / f"{split}annot" / f"{name}.png", stripes(0, 10, 11))
        if lists:
            lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names]
            (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("lists", [False, True])
def test_camvid(tmp_path, lists):
    root = make_camvid(tmp_path, lists=lists)
    data = open_data(f"camvid:{root}")
    assert (list(data.train.names), list(data.val.names)) == (TRAIN, VAL)
    assert (len(data.classes), data.classes[10]) == (11, "bicyclist")
    assert seen(data.train[0][1]) == [0, 10, 255]
    assert "mask value 11 in 5 files → ignored." in data.facts


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("sequence", ["0001TP", "0006R0", "0016E5"])
def test_camvid_holds_out_a_sequence(tmp_path, sequence, lists):
    data = open_data(f"camvid:{make_camvid(tmp_path, lists=lists)}", val=sequence)
    assert list(data.val.names) == [name for name in TRAIN if name.startswith(sequence)]
    assert list(data.train.names) == [name for name in TRAIN if not name.startswith(sequence)]
    assert any(f"the sequence {sequence}" in fact for fact in data.facts)


def test_camvid_validates_on_its_test_folder(tmp_path):
    data = open_data(f"camvid:{make_camvid(tmp_path, lists=False)}", val="test")
    assert (len(data.train), list(data.val.names)) == (4, ["Seq05VD_f00000"])


def test_camvid_with_a_list_of_missing_files(tmp_path):
    root = make_camvid(tmp_path, lists=True)
    (root / "train" / f"{TRAIN[1]}.png").unlink()
    with pytest.raises(ValueError, match=f"1 file without a partner: train/{TRAIN[1]}"):
        open_data(f"camvid:{root}")
    assert len(open_data(f"camvid:{root}", skip_bad=True).train) == 3
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_data(f"camvid:{root / 'nowhere'}")


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no CamVid in {CAMVID}")
def test_camvid_itself(tmp_path):
    for split, count in (("train", 12), ("val", 3)):  # all 468 take ten seconds
        for kind in (split, f"{split}annot"):
            (tmp_path / kind).mkdir()
            for path in sorted((CAMVID / kind).iterdir())[:: 367 // count if split == "train" else 40]:
                (tmp_path / kind / path.name).symlink_to(path)
    (tmp_path / "classes.txt").write_text((CAMVID / "classes.txt").read_text())
    data = open_data(f"camvid:{tmp_path}", size=(90, 120), val="0006R0")
    assert {name.split("_")[0] for name in data.val.names} == {"0006R0"}
    assert {name.split("_")[0] for name in data.train.names} == {"0001TP", "0016E5"}
    images, masks = data.batch(0, 0, 4)
    assert images.shape == (4, 3, 90, 120)
    assert masks.max() == 255
    assert set(masks.unique().tolist()) <= {*range(11), 255}


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, names in (("train", ["2007_1", "2007_2"]), ("val", ["2007_3"])):
        for name in names:
            save_image(root / "JPEGImages" / f"{name}.jpg")
            save(root / "SegmentationClass" / f"{name}.png", stripes(0, 255, 20), palette=True)
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    data = open_data(f"voc:{tmp_path}")
    assert (list(data.train.names), list(data.val.names)) == (["2007_1", "2007_2"], ["2007_3"])
    assert (len(data.classes), data.classes[20]) == (21, "tvmonitor")
    assert seen(data.val[0][1]) == [0, 255, 20]
    (root / "SegmentationClass" / "2007_2.png").unlink()
    with pytest.raises(ValueError, match=r"1 file cannot be used: 2007_2.png \(No such file"):
        open_data(f"voc:{tmp_path}")


def test_cityscapes(tmp_path):
    for split in ("train", "val"):
        for i in range(2):
            name = f"bonn_00000{i}_000019"
            save_image(tmp_path / "leftImg8bit" / split / "bonn" / f"{name}_leftImg8bit.png")
            save(tmp_path / "gtFine" / split / "bonn" / f"{name}_gtFine_labelIds.png", stripes(7, 26, 33, 3))
    data = open_data(f"cityscapes:{tmp_path}")
    assert (len(data.train), len(data.val), len(data.classes)) == (2, 2, 19)
    assert [data.classes[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert seen(data.train[0][1]) == [0, 13, 18, 255]  # the ids 7, 26, 33, and 3, which the benchmark leaves out


def test_oxford_pets(tmp_path):
    root = tmp_path / "oxford-iiit-pet"
    for split, names in (("trainval", ["Abyssinian_1", "beagle_2"]), ("test", ["beagle_3"])):
        for name in names:
            save_image(root / "images" / f"{name}.jpg")
            save(root / "annotations" / "trimaps" / f"{name}.png", stripes(1, 2, 3))
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
    data = open_data(f"oxford-iiit-pet:{tmp_path}")
    assert (list(data.train.names), list(data.val.names)) == (["Abyssinian_1", "beagle_2"], ["beagle_3"])
    assert data.classes == ["pet", "background", "border"]
    assert seen(data.train[0][1]) == [0, 1, 2]
    share = open_data(f"oxford-iiit-pet:{tmp_path}", val="beagle")
    assert (list(share.train.names), list(share.val.names)) == (["Abyssinian_1"], ["beagle_2"])


@pytest.mark.parametrize("kind", ["voc", "cityscapes", "oxford-iiit-pet"])
def test_what_is_missing_is_explained(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=rf"{kind} is not in .*want ROOT/"):
        open_data(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("kind", ["voc", "oxford-iiit-pet"])
def test_download_goes_to_torchvision(tmp_path, monkeypatch, kind):
    from torchvision.datasets import oxford_iiit_pet, voc

    asked = []

    def refuse(url, *_, **__):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(voc, "download_and_extract_archive", refuse)
    monkeypatch.setattr(oxford_iiit_pet, "download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match="no network"):
        open_data(f"{kind}:{tmp_path}", download=True)
    assert asked


def test_progress_is_silent_where_nobody_watches(tmp_path, capfd):
    open_data(f"camvid:{make_camvid(tmp_path, lists=False)}")
    assert capfd.readouterr() == ("", "")


def test_a_long_scan_shows_a_bar_on_a_terminal(tmp_path, monkeypatch, capfd):
    from lookfar.data import _memory

    monkeypatch.setattr(_memory, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    open_data(f"camvid:{make_camvid(tmp_path, lists=False)}")
    out, err = capfd.readouterr()
    assert (out, "Reading images and masks" in err) == ("", True)


def test_the_scan_remembers_values_as_they_stand(tmp_path):
    """The memory holds what is in the files: the same masks mean other labels to another kind of data set."""
    make_camvid(tmp_path, lists=False)
    open_data(f"camvid:{tmp_path}")
    for kind in ("train", "val"):
        (tmp_path / kind / "images").mkdir()
        (tmp_path / kind / "masks").mkdir()
        for path in (tmp_path / kind).glob("*.png"):
            path.rename(tmp_path / kind / "images" / path.name)
        for path in (tmp_path / f"{kind}annot").glob("*.png"):
            path.rename(tmp_path / kind / "masks" / path.name)
    data = open_data(str(tmp_path), classes=12)
    assert len(data.classes) == 12
    assert torch.equal(data.train[0][1][0].unique(), torch.tensor([0, 10, 11], dtype=torch.uint8))
