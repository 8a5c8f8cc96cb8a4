"""Damaged files are named whatever a decoder raises, skipped where asked for, and never the half of what is learned."""

import random

import numpy as np
import pytest
import torch
from image_trees import SIZE, make_tree, noise, png, refusal, save, stripes
from PIL import Image

from lookfar.data import open_data, scan
from lookfar.data._reading import read_mask, read_picture


def file_of(kind, folder):
    """A file of every format, as bytes."""
    colours = Image.fromarray(noise(3, *SIZE, 3))
    path = folder / f"sound.{kind.split()[0]}"
    if kind == "npy":
        np.save(path, stripes(0, 1))
    elif kind == "png deep":
        path.write_bytes(png(noise(1, *SIZE, 3, dtype=np.uint16), 16, 2))
    elif kind == "tif lzw":
        colours.save(path, compression="tiff_lzw")
    elif kind == "tif bands":
        import tifffile

        tifffile.imwrite(
            path,
            noise(1, *SIZE, 5, dtype=np.uint16),
            photometric="minisblack",
            planarconfig="contig",
            compression="zlib",
        )
    elif kind == "pgm plain":
        path.write_bytes(b"P2 4 3 9\n0 1 2 3 4 5 6 7 8 9 0 1\n")
    elif kind in ("pgm", "png grey"):
        Image.fromarray(stripes(0, 1)).save(path)
    else:
        colours.save(path)
    return path.read_bytes()


KINDS = ["png", "png grey", "png deep", "jpg", "bmp", "gif", "webp", "tif", "tif lzw", "tif bands", "pgm", "ppm", "npy"]


@pytest.mark.parametrize("kind", [*KINDS, "pgm plain"])
def test_changed_bytes_end_in_a_result_or_in_a_bad_file(tmp_path, kind):
    """Not in an exception that escapes, nor in a pair that was read but not said to be wrong."""
    sound, suffix = file_of(kind, tmp_path), kind.split()[0]
    dice = random.Random(kind)
    partner = save(tmp_path / "partner.png", stripes(0, 1))
    for turn in range(60):
        content = bytearray(sound)
        for _ in range(dice.choice([1, 3, 20])):
            content[dice.randrange(min(len(content), dice.choice([40, 400, 10**6])))] = dice.randrange(256)
        if turn % 5 == 0:
            content = content[: dice.randrange(len(content))]
        path = tmp_path / f"changed.{suffix}"
        path.write_bytes(content)
        for pair in (scan.Pair("x", path, partner), scan.Pair("x", partner, path)):
            found = scan.look(pair)
            assert found.error or found.values
            assert not found.error or found.error.startswith(("changed.", "partner."))
            assert found.error.isprintable()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError("too deep"),
        KeyError("x"),
        AttributeError("no tag"),
        type("TokenError", (Exception,), {})("EOF in multi-line statement"),
        UserWarning("Corrupt EXIF data"),
        ZeroDivisionError("division by zero"),
        IndexError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("what", ["read_mask", "read_picture"])
def test_whatever_a_decoder_raises_is_a_bad_file(tmp_path, monkeypatch, error, what):
    reader = getattr(scan, what)

    def read(path, *rest):
        if path.name == "train_1.png":
            raise error
        return reader(path, *rest)

    monkeypatch.setattr(scan, what, read)
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    assert "1 file cannot be used: train_1.png (" in refusal(root)
    assert len(open_data(str(root), skip_bad=True).train) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"just text\n", "no image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (b"\x89PNG\r\n\x1a\n", "no image of a known format"),
        (b"\xff\xd8\xff\xe0", "no image of a known format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "no image of a known format"),
    ],
)
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_are_no_images(tmp_path, content, message, kind):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    (root / "train" / kind / "train_2.png").write_bytes(content)
    assert f"train_2.png ({message}" in refusal(root)
    data = open_data(str(root), skip_bad=True)
    assert len(data.train) == 3
    assert any("skipped 1 file that cannot be used: train_2.png" in fact for fact in data.facts)


def test_things_that_are_no_files(tmp_path):
    import os

    root = make_tree(tmp_path, [stripes(0, 1)] * 5)
    images = root / "train" / "images"
    for name in ("train_1.png", "train_2.png"):
        (images / name).unlink()
    os.mkfifo(images / "train_1.png")  # reading it would wait for ever
    (images / "train_2.png").symlink_to(tmp_path / "nowhere.png")
    (images / "folder.png").mkdir()
    message = refusal(root)
    assert "train_1.png (not a regular file)" in message
    assert "train_2.png (No such file or directory)" in message
    assert "folder" not in message
    assert len(open_data(str(root), skip_bad=True).train) == 3


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 no archive", b"\x93NUMPY\x01\0\x10\0{'descr': broken", b"\x80\x04K\x01."]
)
def test_arrays_that_are_none(tmp_path, content):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    (root / "train" / "masks" / "train_2.png").unlink()
    (root / "train" / "masks" / "train_2.npy").write_bytes(content)
    assert "train_2.npy (" in refusal(root)
    assert len(open_data(str(root), skip_bad=True).train) == 3


def test_a_file_that_is_damaged_after_the_scan_is_named(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    data = open_data(str(root))
    path = root / "train" / "images" / "train_3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read .*train_3.png: "):
        data.train[3]


# ---- what --skip-bad may leave out ----------------------------------------------------------------------------------


def damage(path):
    path.write_bytes(path.read_bytes()[:50])


def test_the_only_images_of_a_class_are_not_left_out(tmp_path):
    masks = [stripes(0, 1)] * 4 + [stripes(0, 1, 2)] * 2
    root = make_tree(tmp_path, masks, classes=["a", "b", "c"])
    for i in (4, 5):
        damage(root / "train" / "images" / f"train_{i}.png")
    assert "--skip-bad would leave out all images in train of c" in refusal(root, skip_bad=True)
    (root / "classes.txt").unlink()
    assert "--skip-bad would leave out all images in train of class 2" in refusal(root, skip_bad=True)
    for i in (4, 5):
        (root / "train" / "images" / f"train_{i}.png").unlink()
    assert "--skip-bad would leave out all images in train of class 2" in refusal(root, skip_bad=True)


def test_masks_that_cannot_be_read_may_hold_the_other_half_of_the_classes(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 3 + [stripes(2, 3)] * 2, classes=["a", "b", "c", "d"])
    for i in (3, 4):
        damage(root / "train" / "masks" / f"train_{i}.png")
    assert "--skip-bad would train on 2 of 4 classes" in refusal(root, skip_bad=True)


def test_more_than_half_of_train_is_not_left_out(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 5)
    for i in (1, 2, 3):
        damage(root / "train" / "images" / f"train_{i}.png")
    assert "--skip-bad would leave out 3 of the 5 images of train: train_1.png" in refusal(root, skip_bad=True)
    names = make_tree(tmp_path / "names", [stripes(0, 1)] * 5)
    for i in range(1, 5):
        (names / "train" / "masks" / f"train_{i}.png").rename(names / "train" / "masks" / f"train-{i}.png")
    for i in range(6):
        save(names / "train" / "images" / f"more_{i}.png", noise(i, 9, 9, 3))
    assert "Correct the names" in refusal(names, skip_bad=True)


def test_lossy_masks_are_named_and_not_called_missing(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    path = root / "train" / "masks" / "train_2.png"
    save(path.with_suffix(".jpg"), stripes(0, 1))
    assert len(open_data(str(root)).train) == 4
    path.unlink()
    assert "train_2.jpg (a JPEG invents labels; want PNG)" in refusal(root)


def test_long_names_and_many_files_stay_within_three_lines(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 40)
    for i in range(15):
        for kind in ("images", "masks"):
            path = root / "train" / kind / f"train_{i}.png"
            path.rename(path.with_name(f"a_very_long_name_that_some_camera_has_given_to_this_image_{i:0100d}.png"))
    for path in (root / "train" / "images").glob("a_very*"):
        path.write_bytes(b"")
    message = refusal(root)
    assert "15 files cannot be used" in message
    assert "more" in message


# ---- no labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_sets_without_labels(tmp_path, classes):
    nothing = np.full(SIZE, 255, np.uint8)
    root = make_tree(tmp_path / "val", [stripes(0, 1)] * 2, val=[nothing], classes=classes)
    assert "no labels to judge by: the masks of val (1 file: val_0.png) hold 255, ignored" in refusal(root)
    root = make_tree(tmp_path / "train", [nothing] * 2, val=[stripes(0, 1)], classes=classes)
    assert "no labels to learn: the masks of train" in refusal(root)
    root = make_tree(tmp_path / "one", [stripes(0, 0)] * 2, val=[stripes(0, 1)], classes=classes)
    assert "no labels to learn: the masks of train (2 files: train_0.png) hold 0, only" in refusal(root)
    root = make_tree(tmp_path / "ignored", [stripes(0, 1, 2)] * 2, val=[stripes(2, 2)], classes=classes)
    assert "no labels to judge by" in refusal(root, ignore=[2])


def test_labels_that_are_lost_in_resizing(tmp_path):
    mask = np.full((64, 64), 255, np.uint8)
    mask[1, 1:3] = 0, 1
    root = make_tree(tmp_path, [mask] * 2, size=(64, 64))
    assert open_data(str(root), ignore=[255]).size == (64, 64)
    assert "no labels are left in train at 8×8" in refusal(root, size=(8, 8), ignore=[255])


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_limits_come_before_memory(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    (root / "train" / "images" / "train_2.png").write_bytes(png(stripes(0, 1), 8, size=(30_000, 30_000)))
    assert "train_2.png (more than 67 million pixels; cut it into tiles)" in refusal(root)
    (root / "train" / "images" / "train_2.png").write_bytes(png(noise(3, *SIZE), 8))
    assert "--size 100000x100000" in refusal(root, size=(100_000, 100_000))
    assert "7 bands" not in refusal(root, in_chans=10**9)
    with pytest.raises(ValueError, match="2 to 255 classes"):
        open_data(str(root), classes=10**6)


def test_statistics_of_bands_are_those_of_all_pixels(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4)
    for path in root.rglob("images/*.png"):
        Image.fromarray(noise(sum(map(ord, path.stem)), *SIZE)).save(path)
    data = open_data(str(root), in_chans=1)
    pixels = torch.stack([image for image, _ in data.train]).double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()])
    assert data.std == pytest.approx([pixels.std(correction=0).item()])


def test_readers_agree_on_sound_files(tmp_path):
    """The fuzzed formats are read at all."""
    for kind in KINDS:
        path = tmp_path / f"a.{kind.split()[0]}"
        path.write_bytes(file_of(kind, tmp_path))
        assert read_picture(path).pixels.shape[:2] == SIZE
    path.write_bytes(file_of("npy", tmp_path))
    assert read_mask(path).values.max() == 1
