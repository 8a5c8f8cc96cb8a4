"""A split that is there is used or named, in every layout; names are matched whatever way they are written."""

import os
import unicodedata

import pytest
from image_trees import make_tree, noise, refusal, save, stripes

from lookfar.data import open_data


def put(images, masks, *names, first=0):
    """Pairs of files, all images different."""
    for number, name in enumerate(names):
        seed = first + number + sum(map(ord, f"{images}"[-20:]))
        save(images / f"{name}.png", noise(seed, 12, 16, 3))
        if masks is not None:
            save(masks / f"{name}.png", stripes(0, 1, size=(12, 16)))


def said(data, text):
    return any(text in fact for fact in data.facts)


@pytest.mark.parametrize("word", ["val", "valid", "validation", "eval", "evaluation", "Val", "dev"])
@pytest.mark.parametrize("kind_first", [False, True])
def test_words_for_validation(tmp_path, word, kind_first):
    for split, names in (("train", "abc"), (word, "de")):
        folders = [tmp_path / kind / split if kind_first else tmp_path / split / kind for kind in ("images", "masks")]
        put(*folders, *names)
    data = open_data(str(tmp_path))
    assert (list(data.train.names), list(data.val.names)) == (["a", "b", "c"], ["d", "e"])


@pytest.mark.parametrize("kind_first", [False, True])
def test_test_validates_where_nothing_else_does_and_is_named(tmp_path, kind_first):
    def folders(split):
        return [tmp_path / kind / split if kind_first else tmp_path / split / kind for kind in ("images", "masks")]

    put(*folders("train"), *"abcde")
    put(*folders("test"), *"xy")
    data = open_data(str(tmp_path))
    assert list(data.val.names) == ["x", "y"]
    assert said(data, "test is used for validation: there is no val.")
    put(*folders("val"), *"uvw")
    data = open_data(str(tmp_path))
    assert list(data.val.names) == ["u", "v", "w"]
    assert said(data, "test (2 images) is not used; --val test judges by it.")
    assert list(open_data(str(tmp_path), val="test").val.names) == ["x", "y"]
    data = open_data(str(tmp_path), val=0.4)
    assert (len(data.train), len(data.val)) == (3, 2)
    assert said(data, "val (3 images) is not used")


def test_a_second_set_to_judge_by(tmp_path):
    for split, names in (("train", ["a_1", "a_2", "b_1", "b_2"]), ("val", "uv"), ("test", "xyz")):
        put(tmp_path / split / "images", tmp_path / split / "masks", *names)
    data = open_data(str(tmp_path), also_val="test")
    assert (len(data.train), len(data.val), list(data.also_val.names)) == (4, 2, ["x", "y", "z"])
    data = open_data(str(tmp_path), also_val="b")
    assert (list(data.train.names), list(data.also_val.names)) == (["a_1", "a_2"], ["b_1", "b_2"])
    assert [len(images) for images, _ in data.val_batches(1, data.also_val)] == [1, 1]
    assert data.facts[0].startswith("2 train, 2 val, 2 also val;")
    assert open_data(str(tmp_path)).also_val is None
    assert "all 2 images of also-val are in val too" in refusal(tmp_path, also_val="val")


@pytest.mark.parametrize("missing", ["masks", "images"])
@pytest.mark.parametrize("kind_first", [False, True])
def test_a_split_that_is_there_in_part_stops(tmp_path, missing, kind_first):
    put(tmp_path / "train" / "images", tmp_path / "train" / "masks", *"abcde")
    if kind_first:
        (tmp_path / "train").rename(tmp_path / "old")
        put(tmp_path / "images" / "train", tmp_path / "masks" / "train", *"abcde")
    other = {"masks": "images", "images": "masks"}[missing]
    put(tmp_path / other / "val" if kind_first else tmp_path / "val" / other, None, *"xy")
    message = refusal(tmp_path)
    assert "val" in message
    assert missing in message
    assert "--val 0.2" in message
    data = open_data(str(tmp_path), val="0.2")
    assert (len(data.train), len(data.val)) == (4, 1)


def test_masks_in_a_folder_of_another_name(tmp_path):
    put(tmp_path / "train" / "images", tmp_path / "train" / "masks", *"abc")
    put(tmp_path / "val" / "images", tmp_path / "val" / "drawn_by_hand", *"xy")
    data = open_data(str(tmp_path))
    assert list(data.val.names) == ["x", "y"]
    assert said(data, "masks of val are in drawn_by_hand.")
    put(tmp_path / "val" / "others", None, *"xy")
    assert "val/ holds drawn_by_hand, images, others, no masks" in refusal(tmp_path)


@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "ImageSets", "splits", "."])
def test_lists(tmp_path, folder):
    put(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", *"abcdefg")
    put(tmp_path / "JPEGImages", None, "unlabelled")
    lists = tmp_path / folder
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("a\nb 1\nJPEGImages/c.png SegmentationClass/c.png\n\n")
    (lists / "val.txt").write_text("\ufeffd\r\ne\r\n", encoding="utf-8")
    data = open_data(str(tmp_path))
    assert (list(data.train.names), list(data.val.names)) == (["a", "b", "c"], ["d", "e"])
    assert said(data, "splits are the lists in")
    assert said(data, "2 images in none of the lists: not used.")
    (lists / "test.txt").write_text("f\n")
    data = open_data(str(tmp_path))
    assert said(data, "test (1 image) is not used")
    assert list(open_data(str(tmp_path), val="test").val.names) == ["f"]
    (lists / "train.txt").write_text("a\nb\nnowhere\n")
    assert "1 file without a partner: train.txt/nowhere" in refusal(tmp_path)
    (lists / "val.txt").unlink()
    (lists / "train.txt").write_text("a\nb\n")
    assert list(open_data(str(tmp_path)).val.names) == ["f"]


def test_a_list_of_val_alone(tmp_path):
    put(tmp_path / "images", tmp_path / "masks", *"abcd")
    (tmp_path / "val.txt").write_text("d\n")
    data = open_data(str(tmp_path))
    assert (list(data.train.names), list(data.val.names)) == (["a", "b", "c"], ["d"])


def test_val_beside_images_that_are_not_split(tmp_path):
    put(tmp_path / "images", tmp_path / "masks", *"abcd")
    put(tmp_path / "val" / "images", tmp_path / "val" / "masks", *"xy")
    data = open_data(str(tmp_path))
    assert (len(data.train), list(data.val.names)) == (4, ["x", "y"])


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", ".hidden", "__MACOSX", "@eaDir", "a/.git/b"])
def test_folders_that_hold_no_data(tmp_path, folder):
    put(tmp_path / "train" / "images", tmp_path / "train" / "masks", *"abc")
    put(tmp_path / "val" / "images", tmp_path / "val" / "masks", *"xy")
    for kind in ("images", "masks"):
        put(tmp_path / "train" / kind / folder, None, "x-checkpoint", "a")
    data = open_data(str(tmp_path))
    assert (list(data.train.names), list(data.val.names)) == (["a", "b", "c"], ["x", "y"])


def test_sub_folders_and_links_are_followed_once(tmp_path):
    put(tmp_path / "train" / "images" / "bonn", tmp_path / "train" / "masks" / "bonn", *"abc")
    put(tmp_path / "val" / "images", tmp_path / "elsewhere", *"xy")
    (tmp_path / "val" / "masks").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind / "round").symlink_to(tmp_path / "train" / kind, target_is_directory=True)
    data = open_data(str(tmp_path))
    assert (list(data.train.names), list(data.val.names)) == (["bonn/a", "bonn/b", "bonn/c"], ["x", "y"])


# ---- equal files ----------------------------------------------------------------------------------------------------


def test_images_in_train_and_val(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 4, val=[stripes(0, 1)] * 3)
    val, train = root / "val" / "images", root / "train" / "images"
    (val / "val_1.png").write_bytes((train / "train_2.png").read_bytes())
    data = open_data(str(root))
    assert said(data, "1 of 3 images of val are in train too: train_2 = val_1.")
    for i in (0, 2):
        (val / f"val_{i}.png").write_bytes((train / f"train_{i}.png").read_bytes())
    assert "all 3 images of val are in train too" in refusal(root)
    assert "--val 0.2" in refusal(root)
    assert len(open_data(str(root), val=0.25).val) == 1
    assert "in train too" in refusal(root, val=str(root / "train"))


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_form", "mask_form"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_composed_and_decomposed_names_are_one(tmp_path, image_form, mask_form):
    names = ["Zürich_1", "Zürich_2", "Ängsholm_1", "plain_1"]
    for number, name in enumerate(names):
        save(tmp_path / "images" / f"{unicodedata.normalize(image_form, name)}.png", noise(number, 12, 16, 3))
        save(tmp_path / "masks" / f"{unicodedata.normalize(mask_form, name)}.png", stripes(0, 1, size=(12, 16)))
    data = open_data(str(tmp_path), val=unicodedata.normalize("NFD", "Zürich"))
    assert list(data.val.names) == names[:2]
    (tmp_path / "train.txt").write_text(unicodedata.normalize("NFD", "Zürich_1\nplain_1\n"))
    (tmp_path / "val.txt").write_text(unicodedata.normalize("NFC", "Ängsholm_1\n"))
    assert list(open_data(str(tmp_path)).val.names) == ["Ängsholm_1"]


def test_names_that_are_no_utf_8_or_hold_control_characters(tmp_path):
    names = [b"caf\xe9", b"red\x1b[31m", b"two\nlines", "x\u202ey".encode()]
    for number, name in enumerate(names):
        for kind, pixels in (("images", noise(number, 12, 16, 3)), ("masks", stripes(0, 1, size=(12, 16)))):
            (tmp_path / kind).mkdir(exist_ok=True)
            save(tmp_path / "x.png", pixels)
            (tmp_path / "x.png").rename(tmp_path / kind / os.fsdecode(name + b".png"))
    data = open_data(str(tmp_path))
    shown = {*data.train.names, *data.val.names}
    assert shown == {"caf\\xe9", "red\\x1b[31m", "two\\nlines", "x\\u202ey"}
    assert "\n".join(shown).encode("utf-8")
    for name in names:
        (tmp_path / "images" / os.fsdecode(name + b".png")).write_bytes(b"")
    message = refusal(tmp_path)
    assert "\\x1b[31m.png (an empty file)" in message


def test_a_root_that_is_no_utf_8(tmp_path):
    root = tmp_path / os.fsdecode(b"donn\xe9es")
    put(root / "images", root / "masks", *"abcde")
    data = open_data(str(root))
    assert data.name.encode("utf-8").endswith(b"donn\\xe9es")
    assert len(open_data(str(root)).train) == 4


def test_class_names_are_printable_and_one_in_any_form(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 2, classes=["ca\u0301r", "\x1b[31mred"])
    assert open_data(str(root)).classes == ["cár", "\\x1b[31mred"]
    (root / "classes.txt").write_bytes(b"caf\xe9\nb\n")
    assert "not text in UTF-8" in refusal(root)
    (root / "classes.txt").write_text("cár\nca\u0301r\n")
    assert "twice" in refusal(root)
