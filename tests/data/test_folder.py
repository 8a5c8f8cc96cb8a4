"""Folders of images and masks: every layout, every kind of image, and what a reader is told about wrong files."""

import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lookfar.data import open_data, scan

SIZE = (24, 32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where what was found is remembered."""
    monkeypatch.setenv("LOOKFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_image(path, number, *, size=SIZE, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.RandomState(number).randint(0, 256, (*size, *bands), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_mask(path, values=(0, 1, 2), *, size=SIZE, palette=False):
    """Vertical stripes of the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.tile(np.array(values, dtype=np.uint8).repeat(-(-size[1] // len(values)))[: size[1]], (size[0], 1))
    image = Image.fromarray(stripes)
    if palette:
        image.putpalette([200, 10, 10] * 256)
    image.save(path)
    return stripes


def make_tree(root, layout="{split}/{kind}", *, train=5, val=2, classes=("sky", "road", "car"), **options):
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            name = f"{split}_{i}.png"
            save_image(root / layout.format(split=split, kind="images") / name, i + 100 * (split == "val"), **options)
            save_mask(root / layout.format(split=split, kind="masks") / name)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_layouts_with_splits(tmp_path, layout, prefix):
    root = make_tree(tmp_path / "crops", layout)
    data = open_data(f"{prefix}{root}")
    assert (len(data.train), len(data.val), data.size, data.classes) == (5, 2, SIZE, ["sky", "road", "car"])
    assert list(data.val.names) == ["val_0", "val_1"]
    image, mask = data.train[3]
    assert np.array_equal(
        image.permute(1, 2, 0),
        np.asarray(Image.open(root / layout.format(split="train", kind="images") / "train_3.png")),
    )
    assert mask.dtype == torch.uint8
    assert mask[0].unique_consecutive().tolist() == [0, 1, 2]
    assert data.facts[0] == "5 train, 2 val; 3 classes (from classes.txt); images 24×32 RGB, masks 8-bit grey."
    images, masks = data.batch(0, 0, 4)
    assert images.shape == (4, 3, *SIZE)
    assert masks.shape == (4, *SIZE)


@pytest.mark.parametrize(
    ("images", "masks"), [("imgs", "Labels"), ("JPEGImages", "SegmentationClass"), ("img_dir", "ann_dir")]
)
def test_other_words_for_folders(tmp_path, images, masks):
    for number, split in enumerate(("training", "validation")):
        save_image(tmp_path / images / split / "a.jpg", number)
        save_mask(tmp_path / masks / split / "a.png")
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val)) == (1, 1)
    assert data.classes == ["class 0", "class 1", "class 2"]
    assert "no classes.txt" in data.facts[0]


def flat_tree(root, names, first=0):
    for i, name in enumerate(names, first):
        save_image(root / "images" / f"{name}.png", i)
        save_mask(root / "masks" / f"{name}_mask.png")
    return root


def test_one_folder_gives_a_share_for_validation(tmp_path):
    names = [f"{street}_{i}" for street in "abcd" for i in range(5)]
    root = flat_tree(tmp_path / "flat", names)
    data = open_data(str(root))
    assert (len(data.train), len(data.val)) == (16, 4)
    assert sorted([*data.train.names, *data.val.names]) == names
    assert any("--val SEQUENCE" in fact for fact in data.facts)
    assert list(open_data(str(root)).val.names) == list(data.val.names)
    assert len(open_data(str(root), val=0.5).val) == 10


def test_validation_on_a_sequence_or_another_folder(tmp_path):
    names = [f"{street}_{i}" for street in ("a", "ab", "c") for i in range(3)]
    root = flat_tree(tmp_path / "flat", names)
    data = open_data(str(root), val="a")
    assert list(data.val.names) == ["a_0", "a_1", "a_2"]
    assert len(data.train) == 6
    other = flat_tree(tmp_path / "other", ["x", "y"], 50)
    data = open_data(str(root), val=str(other))
    assert (len(data.train), list(data.val.names)) == (9, ["x", "y"])
    with pytest.raises(ValueError, match=r"'z'.*a \(3\), ab \(3\), c \(3\)"):
        open_data(str(root), val="z")
    with pytest.raises(ValueError, match="between 0 and 1"):
        open_data(str(root), val=1.5)


def test_palette_masks_keep_their_indices(tmp_path):
    root = make_tree(tmp_path / "p")
    for path in sorted(root.rglob("masks/*.png")):
        save_mask(path, (2, 0, 255), palette=True)
    data = open_data(str(root))
    assert data.train[0][1][0].unique_consecutive().tolist() == [2, 0, 255]
    assert "masks 8-bit indexed" in data.facts[0]
    assert "mask value 255 in 7 files → ignored." in data.facts
    assert "never in val: road." in data.facts


def test_a_label_that_does_not_exist_is_named(tmp_path):
    root = make_tree(tmp_path / "bad", train=8)
    for i in range(8):
        save_mask(root / f"train/masks/train_{i}.png", (0, 1, 2, 255))
    for i in range(3):
        save_mask(root / f"train/masks/train_{i}.png", (0, 12, 255))
    with pytest.raises(ValueError) as caught:
        open_data(str(root))
    assert str(caught.value) == (
        "mask value 255 in 8 files → ignored. "
        "mask value 12 in 3 files (train_0.png, train_1.png, train_2.png): only 3 classes given. "
        "3 masks hold a class that does not exist. Correct them, or give --ignore 12."
    )
    data = open_data(str(root), ignore=[12])
    assert "mask value 12 in 3 files → ignored." in data.facts
    assert data.train[0][1][0].unique_consecutive().tolist() == [0, 255]


def test_masks_of_0_and_255_get_advice(tmp_path):
    root = make_tree(tmp_path / "binary", classes=None)
    for path in sorted(root.rglob("masks/*.png")):
        save_mask(path, (0, 255))
    with pytest.raises(ValueError, match="Give the foreground the value 1, or say --labels 0,255"):
        open_data(str(root))


def test_masks_in_colours_are_refused(tmp_path):
    root = make_tree(tmp_path / "colours")
    save_image(root / "val/masks/val_1.png", 0)
    with pytest.raises(ValueError, match=r"val_1.png \(a mask in colours"):
        open_data(str(root))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_files_are_named_or_skipped(tmp_path):
    root = make_tree(tmp_path / "damaged")
    cut(root / "train/images/train_1.png")
    (root / "val/masks/val_0.png").write_bytes(b"")
    save_mask(root / "train/masks/train_4.png", size=(10, 10))
    with pytest.raises(ValueError, match=r"3 files cannot be used: train_1.png .*train_4.png .*val_0.png .*--skip-bad"):
        open_data(str(root))
    data = open_data(str(root), skip_bad=True)
    assert list(data.train.names) == ["train_0", "train_2", "train_3"]
    assert list(data.val.names) == ["val_1"]
    assert any(fact.startswith("skipped 3 files that cannot be used: train_1.png") for fact in data.facts)


def test_files_without_a_partner_are_named_or_skipped(tmp_path):
    root = make_tree(tmp_path / "alone")
    save_image(root / "train/images/lonely.png", 0)
    save_mask(root / "val/masks/empty.png")
    with pytest.raises(ValueError, match=r"2 files without a partner: images/lonely.png, masks/empty.png"):
        open_data(str(root))
    data = open_data(str(root), skip_bad=True)
    assert (len(data.train), len(data.val)) == (5, 2)
    assert any("skipped 2 files without a partner" in fact for fact in data.facts)


def test_two_images_of_one_name(tmp_path):
    root = make_tree(tmp_path / "twice")
    save_image(root / "train/images/train_0.jpg", 0)
    with pytest.raises(ValueError, match=r"train_0.jpg and train_0.png"):
        open_data(str(root))


def test_sizes(tmp_path):
    root = make_tree(tmp_path / "sizes")
    data = open_data(str(root), size=(12, 16))
    assert data.train[0][0].shape == (3, 12, 16)
    assert data.train[0][1][0].unique_consecutive().tolist() == [0, 1, 2]
    assert "images of 24×32 resized to 12×16, height × width." in data.facts
    save_image(root / "train/images/train_0.png", 0, size=(90, 120))
    save_mask(root / "train/masks/train_0.png", size=(90, 120))
    data = open_data(str(root))
    assert data.size == (32, 32)
    assert any("2 sizes" in fact and "the median" in fact for fact in data.facts)
    assert data.batch(0, 0, 5)[0].shape == (5, 3, 32, 32)


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_rgba(tmp_path, in_chans):
    root = make_tree(tmp_path / "rgba", mode="RGBA")
    pixels = np.asarray(Image.open(root / "train/images/train_0.png"))
    data = open_data(str(root), in_chans=in_chans)
    want = {1: np.asarray(Image.fromarray(pixels[..., :3]).convert("L"))[..., None], 3: pixels[..., :3], 4: pixels}
    got = data.train[0][0].permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - want[in_chans]).max() <= (in_chans == 1)
    assert data.batch(0, 0, 2)[0].shape == (2, in_chans, *SIZE)
    assert len(data.mean) == len(data.std) == in_chans


def test_grey(tmp_path):
    root = make_tree(tmp_path / "grey", mode="L")
    assert open_data(str(root), in_chans=1).train[0][0].shape == (1, *SIZE)
    image = open_data(str(root)).train[0][0]
    assert torch.equal(image[0], image[2])
    with pytest.raises(ValueError, match=r"7 files with 1 bands, 4 asked for .*--in-chans 1"):
        open_data(str(root), in_chans=4)


@pytest.mark.parametrize("form", ["npy HWC", "npy CHW", "tif pages"])
def test_many_bands(tmp_path, form):
    root = make_tree(tmp_path / "bands")
    cubes = {}
    for i, path in enumerate(sorted(root.rglob("images/*.png"))):
        cube = np.random.RandomState(i).randint(0, 4096, (*SIZE, 5)).astype(np.uint16)
        cube[0, 0, 0] = 4095
        cubes[path.stem] = cube
        path.unlink()
        if form == "tif pages":
            pages = [Image.fromarray(np.ascontiguousarray(cube[..., band])) for band in range(5)]
            pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
        else:
            np.save(path.with_suffix(".npy"), cube if form == "npy HWC" else cube.transpose(2, 0, 1))
    data = open_data(str(root), in_chans=5)
    want = (cubes["train_2"].astype(np.float64) * 255 / 4095).round()
    assert np.abs(data.train[2][0].permute(1, 2, 0).numpy() - want).max() <= 1
    assert data.batch(0, 0, 5)[0].shape == (5, 5, *SIZE)
    images = data.normalise(torch.stack([image for image, _ in data.train]))
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(5), atol=0.01, rtol=0)
    assert "of 5 bands" in data.facts[0]
    assert any("0 to 4095" in fact for fact in data.facts)
    with pytest.raises(ValueError, match="--in-chans 5"):
        open_data(str(root))


def count_looks(monkeypatch):
    looked = []
    look = scan.look
    monkeypatch.setattr(scan, "look", lambda pair: looked.append(pair.name) or look(pair))
    return looked


def test_what_was_seen_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "again")
    looked = count_looks(monkeypatch)
    first = open_data(str(root))
    assert len(looked) == 7
    assert open_data(str(root)).facts == first.facts
    assert len(looked) == 7
    save_mask(root / "train/masks/train_2.png", (0, 9))
    os.utime(root / "train/masks/train_2.png", (time.time() + 5,) * 2)
    with pytest.raises(ValueError, match="mask value 9 in 1 file "):
        open_data(str(root))
    assert looked[7:] == ["train_2"]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', json.dumps({"version": 1, "files": {"a": {"b": 1}}})])
def test_a_damaged_memory_is_forgotten(tmp_path, cache, content):
    root = make_tree(tmp_path / "again")
    want = open_data(str(root)).facts
    (memory,) = cache.rglob("scan-*.json")
    memory.write_text(content)
    assert open_data(str(root)).facts == want


def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    """A share that was not mounted, a permission that was missing: the files have not changed."""
    root = make_tree(tmp_path / "again")
    monkeypatch.setattr(scan, "look", lambda pair: scan.Found(error=f"{pair.mask.name} (no permission)"))
    with pytest.raises(ValueError, match="7 files cannot be used"):
        open_data(str(root))
    monkeypatch.undo()
    assert len(open_data(str(root)).train) == 5


def test_the_brightest_value_is_that_of_training(tmp_path):
    """Validation images decide nothing; what is brighter there is cut off."""
    root = make_tree(tmp_path / "bright")
    for path in sorted(root.rglob("images/*.png")):
        peak = 1000 if "train" in path.name else 1250
        np.save(path.with_suffix(".npy"), np.linspace(0, peak, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint16))
        path.unlink()
    data = open_data(str(root))
    assert data.train[0][0].max() == 255
    assert data.train[0][0].float().mean() == pytest.approx(127.5, abs=1)
    assert (data.val[0][0] == 255).float().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_arrays_run_no_code(tmp_path, kind):
    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").touch, ()

    root = make_tree(tmp_path / "tree")
    path = root / "train" / kind / "train_0.png"
    np.save(path.with_suffix(".npy"), np.array([Harm()], dtype=object), allow_pickle=True)
    path.unlink()
    with pytest.raises(ValueError, match=r"1 file cannot be used: train_0\.npy"):
        open_data(str(root))
    assert not (tmp_path / "harm").exists()


def test_a_memory_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOKFAR_CACHE", str(tmp_path / "file"))
    assert len(open_data(str(make_tree(tmp_path / "tree"))).train) == 5


def test_decoded_samples_stay_while_there_is_room(tmp_path):
    data = open_data(str(make_tree(tmp_path / "tree")))
    assert data.train[1][0] is data.train[1][0]
    data.train.kept.clear()
    data.train.room = 1
    first, second = data.train[0], data.train[1]
    assert data.train[0][0] is first[0]
    assert data.train[1][0] is not second[0]
    assert torch.equal(data.train[1][0], second[0])


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean camvid.*scenes:lookup"):
        open_data("camvit:somewhere")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"it holds pictures. Want train/images"):
        open_data(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be downloaded"):
        open_data(str(tmp_path), download=True)


def test_a_relative_path_starts_at_root(tmp_path):
    make_tree(tmp_path / "here")
    assert len(open_data("here", root=tmp_path).train) == 5
    assert open_data("folder:here", root=tmp_path).name == "folder:here"
