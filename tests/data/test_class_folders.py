"""A folder of images for each class: how folders are read, and what stops before the first step."""

import os
import shutil

import numpy as np
import pytest
import torch
from image_trees import make_tree, noise, refusal, save, stripes
from PIL import Image

from lookfar.data import open_data, target_of
from lookfar.data.fingerprint import differences, fingerprint

SPLITS = ("train", "val")


def make_classes(root, classes=("cat", "dog"), *, splits=SPLITS, count=3, size=(8, 10), suffix="png"):
    """``count`` images for each class of each split, all different; no splits put the classes into ``root`` itself."""
    number = 0
    for split in splits or ("",):
        for name in classes:
            for i in range(count):
                save(root / split / name / f"{i}.{suffix}", noise(number, *size, 3))
                number += 1
    return root


def labels_of(samples):
    return [samples[i][1].item() for i in range(len(samples))]


# ---- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["val", "valid", "Validation", "test"])
@pytest.mark.parametrize("spec", ["{}", "classify:{}"])
def test_splits_with_a_folder_for_each_class(tmp_path, word, spec):
    make_classes(tmp_path, splits=("train", word))
    assert target_of(spec.format(tmp_path)) == "class"
    data = open_data(spec.format(tmp_path))
    assert (data.target, data.classes, data.size) == ("class", ["cat", "dog"], (8, 10))
    assert list(data.train.names) == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert labels_of(data.val) == [0, 0, 0, 1, 1, 1]
    image, label = data.val[4]
    assert (label.dtype, label.shape) == (torch.int64, ())
    assert (image.numpy() == noise(10, 8, 10, 3).transpose(2, 0, 1)).all()
    assert any("folder:PATH reads masks" in fact for fact in data.facts) == (spec == "{}")
    assert any(f"{word} is used for validation" in fact for fact in data.facts) == (word == "test")
    images, labels = data.batch(0, 0, 4)
    assert (images.shape, labels.shape, labels.dtype) == ((4, 3, 8, 10), (4,), torch.int64)


def test_classes_have_the_order_of_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    names = ["b", "B", "10", "9", "ä", "a b", "Z_"]
    make_classes(tmp_path, names, count=1)
    theirs = ImageFolder(str(tmp_path / "train"))
    data = open_data(str(tmp_path))
    assert data.classes == theirs.classes
    for path, label in theirs.samples:
        (index,) = [i for i, file in enumerate(data.train.files) if str(file.image) == path]
        assert data.train[index][1] == label


def test_a_share_is_taken_of_each_class(tmp_path):
    make_classes(tmp_path, ("cat", "dog"), splits=(), count=10)
    save(tmp_path / "one" / "0.png", noise(99, 8, 10, 3))
    data = open_data(str(tmp_path), val=0.3)
    assert np.bincount(labels_of(data.val)).tolist() == [3, 3]
    assert np.bincount(labels_of(data.train)).tolist() == [7, 7, 1]
    assert not {*data.train.names} & {*data.val.names}
    assert any("never in val: one" in fact for fact in data.facts)
    again = open_data(str(tmp_path), val=0.3)
    assert again.val.names == data.val.names
    assert len(open_data(str(tmp_path)).val) == 4  # 0.2 by default


def test_a_sequence_is_a_beginning_within_the_classes(tmp_path):
    for number, name in enumerate(["cat/a_0", "cat/b_0", "dog/a_1", "dog/ab_1"]):
        save(tmp_path / f"{name}.png", noise(number, 8, 10, 3))
    data = open_data(str(tmp_path), val="a")
    assert list(data.val.names) == ["cat/a_0.png", "dog/a_1.png"]
    assert "these begin with a (2)" in refusal(tmp_path, val="cat")


def test_a_class_that_is_held_out_whole_is_not_judged(tmp_path):
    for number, name in enumerate(["cat/a_0", "cat/b_0", "dog/a_1", "dog/a_2"]):
        save(tmp_path / f"{name}.png", noise(number, 8, 10, 3))
    assert "no images are left in train of dog" in refusal(tmp_path, val="a")


def test_what_is_learned_does_not_judge(tmp_path):
    root = make_classes(tmp_path / "set", splits=("train",))
    for val in ("train", str(root / "train")):
        assert "the same file in two sets: train/cat/0.png = val/cat/0.png" in refusal(root, val=val)
    assert "0 in train" in refusal(root, val="train", skip_bad=True)


def test_another_folder_and_a_second_set_to_judge_by(tmp_path):
    make_classes(tmp_path / "set", splits=("train", "val", "test"))
    shutil.move(tmp_path / "set/test", tmp_path / "other")
    data = open_data(str(tmp_path / "set"), also_val=str(tmp_path / "other"))
    assert (len(data.train), len(data.val), len(data.also_val)) == (6, 6, 6)
    data = open_data(str(tmp_path / "set"), val=str(tmp_path / "other"))
    assert len(data.val) == 6
    assert any("val is not used" in fact for fact in data.facts)
    shutil.move(tmp_path / "other", tmp_path / "set/train/held")
    data = open_data(f"classify:{tmp_path / 'set/train'}", val="held")
    assert (data.classes, len(data.train), len(data.val)) == (["cat", "dog"], 6, 6)


def test_subfolders_links_and_what_systems_leave_behind(tmp_path):
    root = make_classes(tmp_path / "set")
    save(root / "train/cat/clip 1/é.JPG", noise(50, 8, 10, 3))
    save(root / "elsewhere.webp", noise(51, 8, 10, 3), lossless=True)
    (tmp_path / "elsewhere.webp").write_bytes((root / "elsewhere.webp").read_bytes())
    (root / "elsewhere.webp").unlink()
    (root / "train/dog/link.webp").symlink_to(tmp_path / "elsewhere.webp")
    (root / "train/dog/circle").symlink_to(root / "train/dog")
    for name in (".ipynb_checkpoints/cat-checkpoint.png", "__MACOSX/._0.png", "cat/.hidden.png", "cat/.git/0.png"):
        save(root / "train" / name, noise(52, 8, 10, 3))
    (root / "train/runs/first").mkdir(parents=True)
    (root / "train/runs/first/study.yaml").write_text("data: x")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.TXT"):
        (root / "train/cat" / name).write_text("x")
    data = open_data(str(root))
    assert (data.classes, len(data.train)) == (["cat", "dog"], 8)
    assert {"cat/clip 1/é.JPG", "dog/link.webp"} < {*data.train.names}
    assert "1 image of train in sub-folders of the class folders." in data.facts
    assert "files of train that are not images, not read: .txt 1." in data.facts


def test_names_that_are_no_text(tmp_path):
    root = make_classes(tmp_path / "set")
    (root / "train/cat/0.png").rename(root / "train/cat" / os.fsdecode(b"\xff.png"))
    for split in SPLITS:
        (root / split / "dog").rename(root / split / os.fsdecode(b"d\xe9g"))
    data = open_data(str(root))
    assert data.classes == ["cat", "d\\xe9g"]
    assert "cat/\\xff.png" in data.train.names
    fingerprint(data)


def test_class_folders_called_as_splits(tmp_path):
    data = open_data(str(make_classes(tmp_path / "trains", ("train", "plane"), splits=(), count=5)))
    assert data.classes == ["plane", "train"]
    assert "train is a class: it holds images, and no folders of images." in data.facts


def test_the_first_line_of_facts(tmp_path):
    root = make_classes(tmp_path)
    save(root / "train/cat/more.png", noise(70, 8, 10))
    facts = open_data(str(root)).facts
    assert facts[0] == "7 train, 6 val; 2 classes (a folder each); images 8×10 RGB and grey."
    assert facts[1] == "images of a class in train: 3 (dog) to 4 (cat)."


# ---- which reading -----------------------------------------------------------------------------------------------


def test_folders_of_masks_are_read_as_before(tmp_path):
    make_tree(tmp_path, [stripes(0, 1)] * 2)
    assert target_of(str(tmp_path)) == target_of(f"folder:{tmp_path}") == "mask"
    assert open_data(str(tmp_path)).target == "mask"
    message = refusal(f"classify:{tmp_path}")
    assert "images and masks" in message
    assert "folder:PATH" in message


def test_masks_and_classes_in_one_place_are_asked_about(tmp_path):
    make_tree(tmp_path, [stripes(0, 1)] * 2)
    make_classes(tmp_path / "elsewhere", splits=())
    make_classes(tmp_path, ("also here",), splits=())
    assert open_data(str(tmp_path)).target == "mask"
    make_classes(tmp_path, splits=("train",))
    message = refusal(tmp_path)
    assert "folder:PATH" in message
    assert "classify:PATH" in message
    with pytest.raises(ValueError, match="Which"):
        target_of(str(tmp_path))
    assert open_data(f"folder:{tmp_path}").target == "mask"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train/cat", "train/dog", "cat", "dog"], ["Which are the classes", "classify:PATH/train"]),
        (["val/cat", "val/dog", "cat", "dog"], ["no train", "train/CLASS"]),
        (["cat/train", "cat/val", "dog/train", "dog/val"], ["cat holds train, val", "train/cat and val/cat"]),
        (["cats/cat", "cats/dog"], ["no images and masks", "a folder a class"]),
        (["train", "val"], ["no folders images and masks"]),
        (["leftImg8bit/train/a", "leftImg8bit/val/a", "gtFine/train/a", "gtFine/val/a"], ["holds train, val"]),
    ],
)
def test_layouts_that_are_not_clear(tmp_path, folders, words):
    make_classes(tmp_path, folders, splits=())
    message = refusal(tmp_path)
    assert all(word in message for word in words), message


def test_labels_that_are_no_folders(tmp_path):
    save(tmp_path / "train/0.jpg", noise(0, 8, 10, 3))
    (tmp_path / "labels.csv").write_text("0.jpg,cat\n")
    message = refusal(f"classify:{tmp_path}")
    assert "labels.csv" in message
    assert "CLASS/*.png" in message
    assert "CLASS/*.png" in refusal(tmp_path / "labels.csv")
    (tmp_path / "set.zip").write_bytes(b"PK")
    assert "unpack it" in refusal(tmp_path / "set.zip")


# ---- faults: one message each ------------------------------------------------------------------------------------


def other_class_in_val(root):
    (root / "val/dog").rename(root / "val/wolf")
    return "no dog, but wolf"


def class_without_images(root):
    (root / "train/emu").mkdir()
    (root / "train/emu/readme.txt").write_text("none yet")
    return "1 folder without images"


def one_class(root):
    shutil.rmtree(root / "train/dog")
    return "one class, cat"


def same_file_in_two_sets(root):
    shutil.copy(root / "train/cat/0.png", root / "val/cat/7.png")
    return "the same file in two sets: train/cat/0.png = val/cat/7.png"


def same_file_in_two_classes(root):
    shutil.copy(root / "train/cat/1.png", root / "train/dog/7.png")
    return "the same file in two classes: cat/1.png = dog/7.png"


def large_file_in_two_classes(root):
    for name in ("cat/7.bmp", "dog/7.bmp"):
        save(root / "train" / name, noise(7, 160, 160, 3))
    return "the same file in two classes: cat/7.bmp = dog/7.bmp"


def cut_short(root):
    path = root / "train/cat/0.png"
    path.write_bytes(path.read_bytes()[:150])
    return "1 file cannot be used: 0.png"


def damaged_inside(root):
    path = root / "train/cat/0.png"
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    return "1 file cannot be used: 0.png"


def no_image_at_all(root):
    (root / "train/dog/page.jpg").write_text("<html>not found</html>")
    return "1 file cannot be used: page.jpg"


def empty_file(root):
    (root / "val/dog/empty.gif").touch()
    return "1 file cannot be used: empty.gif"


def broken_link(root):
    (root / "train/dog/link.png").symlink_to(root / "nowhere.png")
    return "1 file cannot be used: link.png"


def moving_picture(root):
    frames = [Image.fromarray(noise(i, 8, 10, 3)) for i in range(3)]
    frames[0].save(root / "train/cat/moving.gif", save_all=True, append_images=frames[1:])
    return "moving.gif (3 frames"


def bomb(root):
    Image.new("1", (9000, 9000)).save(root / "train/cat/bomb.png")
    return "bomb.png (9000×9000, more than 67 million pixels"


FAULTS = [
    other_class_in_val, class_without_images, one_class, same_file_in_two_sets, same_file_in_two_classes,
    large_file_in_two_classes, cut_short, damaged_inside, no_image_at_all, empty_file, broken_link, moving_picture,
    bomb,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_stops_with_one_message(tmp_path, fault):
    root = make_classes(tmp_path / "set")
    assert open_data(str(root)).target == "class"
    words = fault(root)
    message = refusal(root)
    assert words in message, message
    if fault is one_class:
        return
    assert "--skip-bad" in message
    facts = open_data(str(root), skip_bad=True).facts
    told = words.partition(":")[0].removeprefix("1 folder ").removeprefix("1 file ")
    assert any(
        told.partition(" (")[0] in fact or "no classes, since they hold no images: emu" in fact for fact in facts
    )


def test_what_is_left_out_is_left_out_everywhere(tmp_path):
    root = make_classes(tmp_path / "set")
    same_file_in_two_sets(root)
    same_file_in_two_classes(root)
    data = open_data(str(root), skip_bad=True)
    assert list(data.train.names) == ["cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert "cat/7.png" in data.val.names
    for number in range(4):
        save(root / "train/dog" / f"{number}b.png", noise(number + 80, 8, 10, 3))
    shutil.copy(root / "val/dog/0.png", root / "train/cat/2.png")
    assert "all images in train of cat" in refusal(root, skip_bad=True)


def test_the_same_file_twice_in_a_class_is_reported(tmp_path):
    root = make_classes(tmp_path / "set")
    shutil.copy(root / "train/cat/0.png", root / "train/cat/9.png")
    assert "1 image more than once in a class: cat/0.png = cat/9.png." in open_data(str(root)).facts


def test_two_large_files_with_equal_samples_are_not_the_same(tmp_path):
    root = make_classes(tmp_path / "set")
    pixels = noise(7, 160, 160, 3)
    save(root / "train/cat/7.bmp", pixels)
    pixels[100, 3, 0] ^= 1
    save(root / "train/dog/7.bmp", pixels)
    heads = open_data(str(root)).train.digests
    if heads[3][0] == heads[-1][0]:  # the changed byte is in none of the samples
        assert not any("same file" in fact for fact in open_data(str(root)).facts)


@pytest.mark.parametrize("option", [{"ignore": (1,)}, {"labels": "0,255"}, {"classes": 2}])
def test_options_of_masks_are_refused(tmp_path, option):
    assert "is for masks" in refusal(make_classes(tmp_path), **option)


# ---- names -------------------------------------------------------------------------------------------------------


def rename(root, *lines):
    (root / "classes.txt").write_text("\n".join(lines) + "\n")
    return root


def test_classes_txt_renames(tmp_path):
    root = make_classes(tmp_path, ("n01", "n02", "n03"))
    assert open_data(str(rename(root, "a tabby", "a tench", "emu"))).classes == ["a tabby", "a tench", "emu"]
    assert open_data(str(rename(root, "n03 emu", "n01, tabby", "n02\ttench"))).classes == ["tabby", "tench", "emu"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a", "b"], "names 2 classes; there are 3"),
        (["2 b", "1 a", "10 a"], "names a twice"),
        (["zero", "one", "ten"], "folders are numbers"),
        (["1", "2", "10"], "another order"),
    ],
)
def test_classes_txt_that_does_not_fit(tmp_path, lines, words):
    assert words in refusal(rename(make_classes(tmp_path, ("1", "2", "10")), *lines))


def test_the_fingerprint_tells_changes(tmp_path):
    root = make_classes(tmp_path / "set")
    before = fingerprint(open_data(str(root)))
    assert differences(before, fingerprint(open_data(str(root)))) == []
    save(root / "train/cat/0.png", noise(90, 8, 10, 3))
    assert differences(before, fingerprint(open_data(str(root)))) == ["images of train changed: cat/0.png"]
    (root / "train/cat/1.png").rename(root / "train/dog/1b.png")
    found = "; ".join(differences(before, fingerprint(open_data(str(root)))))
    assert "1 missing (cat/1.png)" in found
    assert "1 new (dog/1b.png)" in found
    rename(root, "cats", "dogs")
    assert "class 0: cat there, cats now" in "; ".join(differences(before, fingerprint(open_data(str(root)))))
