"""Public sets of images with one label each, through torchvision's classes, on tiny trees of the right layout."""

import json
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
from image_trees import noise, save
from torchvision import datasets

from lookfar.data import open_data, target_of
from lookfar.data.fingerprint import fingerprint

FLOWERS = {"trnid": [1, 4], "valid": [2, 5], "tstid": [3, 6]}


def make_cifar(root, kind):
    folder = root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind]
    folder.mkdir(parents=True)
    key, words = {"cifar10": ("labels", "label_names"), "cifar100": ("fine_labels", "fine_label_names")}[kind]
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if kind == "cifar10" else ["train", "test"]
    for number, name in enumerate(files):
        content = {"data": noise(number, 4, 3072), key: [0, 1, 2, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = "batches.meta" if kind == "cifar10" else "meta"
    (folder / meta).write_bytes(pickle.dumps({words: ["aeroplane", "car", "bird"]}))


def make_fashion(root, kind):
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    for number, part in enumerate(("train", "t10k")):
        images, labels = noise(number, 6, 28, 28), np.arange(6, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, *images.shape) + images.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 6) + labels.tobytes())


def make_stl(root, kind):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for number, part in enumerate(("train", "test")):
        noise(number, 4, 3, 96, 96).tofile(folder / f"{part}_X.bin")
        np.array([1, 2, 3, 1], np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")


def make_flowers(root, kind):
    folder = root / "flowers-102"
    for number in range(1, 7):
        save(folder / f"jpg/image_{number:05}.jpg", noise(number, 40, 50, 3))
    scipy.io.savemat(folder / "setid.mat", FLOWERS)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [1, 1, 1, 102, 102, 102]})


def make_food(root, kind):
    folder = root / "food-101"
    for number, name in enumerate(["apple_pie/1", "apple_pie/2", "waffles/1", "waffles/2"]):
        save(folder / f"images/{name}.jpg", noise(number, 40, 50, 3))
    (folder / "meta").mkdir()
    for split, number in (("train", 1), ("test", 2)):
        names = {name: [f"{name}/{number}"] for name in ("apple_pie", "waffles")}
        (folder / f"meta/{split}.json").write_text(json.dumps(names))


def make_pets(root, kind):
    folder = root / "oxford-iiit-pet"
    for number, name in enumerate(["Abyssinian_1", "Abyssinian_2", "great_pyrenees_1", "great_pyrenees_2"]):
        save(folder / f"images/{name}.jpg", noise(number, 40, 50, 3))
    (folder / "annotations").mkdir()
    for split, number in (("trainval", 1), ("test", 2)):
        lines = [f"Abyssinian_{number} 1 1 1", f"great_pyrenees_{number} 2 2 1"]
        (folder / f"annotations/{split}.txt").write_text("\n".join(lines))


def make_imagenet(root, kind):
    for number, name in enumerate(["train/n01/n01_1", "train/n02/n02_1", "val/n01/v_1", "val/n02/v_2"]):
        save(root / f"{name}.JPEG", noise(number, 40, 50, 3))
    words = {"n01": ("crane",), "n02": ("crane", "bird")}
    torch.save((words, ["n01", "n02"]), root / "meta.bin")


SETS = {
    "cifar10": (make_cifar, 3, 20, 4, (32, 32)),
    "cifar100": (make_cifar, 3, 4, 4, (32, 32)),
    "fashion-mnist": (make_fashion, 10, 6, 6, (28, 28)),
    "stl10": (make_stl, 3, 4, 4, (96, 96)),
    "flowers102": (make_flowers, 102, 2, 2, (40, 50)),
    "food101": (make_food, 2, 2, 2, (40, 50)),
    "oxford-iiit-pet-category": (make_pets, 2, 2, 2, (40, 50)),
    "imagenet": (make_imagenet, 2, 2, 2, (40, 50)),
}


@pytest.fixture
def unpacked(monkeypatch):
    """torchvision compares the files with the hashes of the published ones."""
    for kind in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10, datasets.Flowers102):
        monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", read_meta)


def read_meta(cifar):
    path = cifar.root / cifar.base_folder / cifar.meta["filename"]
    cifar.classes = pickle.loads(path.read_bytes())[cifar.meta["key"]]


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.usefixtures("unpacked")
def test_a_public_set(tmp_path, kind):
    make, classes, train, val, size = SETS[kind]
    make(tmp_path, kind)
    spec = f"{kind}:{tmp_path}"
    assert target_of(spec) == "class"
    data = open_data(spec)
    assert (data.target, len(data.classes), len(data.train), len(data.val)) == ("class", classes, train, val)
    assert data.size == size
    images, labels = data.batch(0, 0, 2)
    assert images.shape == (2, 3, *size)
    assert labels.dtype == torch.int64
    names = [*data.train.names, *data.val.names]
    assert all("/" in name for name in names)
    assert len({*data.val.names}) == val
    assert len(fingerprint(data)["sets"]["train"]) == train
    assert open_data(spec, size=(16, 16)).val[0][0].shape == (3, 16, 16)


@pytest.mark.usefixtures("unpacked")
def test_pixels_and_labels_are_those_of_torchvision(tmp_path):
    for kind, make in (
        ("cifar10", datasets.CIFAR10),
        ("stl10", datasets.STL10),
        ("fashion-mnist", datasets.FashionMNIST),
    ):
        SETS[kind][0](tmp_path, kind)
        theirs = make(tmp_path)
        ours = open_data(f"{kind}:{tmp_path}").train
        for index in range(4):
            image, label = theirs[index]
            assert (ours[index][0].permute(1, 2, 0).numpy() == np.array(image.convert("RGB"))).all()
            assert ours[index][1] == label


@pytest.mark.usefixtures("unpacked")
def test_other_images_may_validate(tmp_path):
    make_cifar(tmp_path, "cifar10")
    data = open_data(f"cifar10:{tmp_path}", val=0.25)
    assert (len(data.train), len(data.val)) == (16, 4)
    assert not {*data.train.names} & {*data.val.names}
    data = open_data(f"cifar10:{tmp_path}", val=0.25, also_val="test")
    assert len(data.also_val) == 4


@pytest.mark.usefixtures("unpacked")
def test_what_is_wrong_in_a_public_set_is_reported(tmp_path):
    make_food(tmp_path, "food101")
    folder = tmp_path / "food-101/images"
    (folder / "waffles/2.jpg").write_bytes((folder / "apple_pie/1.jpg").read_bytes())
    facts = open_data(f"food101:{tmp_path}").facts
    assert "the same file in two classes, 1 time: apple_pie/1.jpg = waffles/2.jpg." in facts


def test_names_of_imagenet(tmp_path):
    make_imagenet(tmp_path, "imagenet")
    assert open_data(f"imagenet:{tmp_path}").classes == ["crane (n01)", "crane (n02)"]
    (tmp_path / "meta.bin").unlink()
    assert open_data(f"imagenet:{tmp_path}").classes == ["n01", "n02"]


@pytest.mark.parametrize("kind", SETS)
def test_a_set_that_is_not_there(tmp_path, kind):
    with pytest.raises(OSError, match=rf"{kind} is not in .*want ROOT/"):
        open_data(f"{kind}:{tmp_path}")
    with pytest.raises(OSError, match=f"{kind}:PATH"):
        open_data(kind)
    if kind in ("imagenet",):
        with pytest.raises(ValueError, match="cannot be downloaded"):
            open_data(f"{kind}:{tmp_path}", download=True)
