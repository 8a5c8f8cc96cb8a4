"""EXIF orientation: an image is turned where its mask fits only then; where both fit the user says which."""

import itertools

import numpy as np
import pytest
from image_trees import noise, stripes
from PIL import Image

from lookfar.data import open_data
from lookfar.data._stored import turned, turned_size

TURNS = range(1, 9)


def unturned(pixels, turn):
    """What is stored so that it looks like ``pixels`` once turned."""
    return turned(pixels, {6: 8, 8: 6}.get(turn, turn))


def save(path, pixels, turn):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"exif": exif} if turn != 1 else {}
    options |= {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)


def make_pairs(root, image_turn, mask_turn, *, size=(20, 30), drawn_upright=True, suffix="png"):
    """Images whose red tells the label of every pixel as one sees it, masks that were drawn upright or as stored."""
    for number, split in enumerate(("train", "val")):
        labels = noise(number, *size) % 3
        image = np.stack([labels * 100, noise(number + 7, *size), noise(number + 9, *size)], -1)
        stored = unturned(image, image_turn)
        mask = labels if drawn_upright else unturned(labels, image_turn)
        save(root / split / "images" / f"{split}.{suffix}", stored, image_turn)
        save(root / split / "masks" / f"{split}.png", unturned(mask, mask_turn), mask_turn)
    return root


def lies_right(data):
    image, mask = data.train[0]
    return bool((image[0].int() == mask.int() * 100).all())


@pytest.mark.parametrize(("image_turn", "mask_turn"), [*itertools.product(TURNS, TURNS)])
@pytest.mark.parametrize("square", [False, True])
def test_masks_drawn_upright(tmp_path, image_turn, mask_turn, square):
    """Every orientation of image and mask: right of itself where one way fits, asked for where both do."""
    size = (24, 24) if square else (20, 30)
    root = make_pairs(tmp_path, image_turn, mask_turn, size=size)
    stored = [turned_size(size, turn) for turn in (image_turn, mask_turn)]
    if stored[0] != stored[1] or image_turn == mask_turn:
        data = open_data(str(root))
        assert lies_right(data)
        assert data.size == size
        if image_turn != 1:
            assert "2 images turned upright by EXIF." in data.facts
    else:
        with pytest.raises(
            ValueError, match=r"2 images .* fit both ways: train.png, val.png.*--exif apply.*--exif ignore"
        ):
            open_data(str(root))
    assert lies_right(open_data(str(root), exif="apply"))


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("square", [False, True])
def test_masks_drawn_as_stored(tmp_path, turn, square):
    size = (24, 24) if square else (20, 30)
    root = make_pairs(tmp_path, turn, 1, size=size, drawn_upright=False)
    data = open_data(str(root), exif="ignore")
    assert lies_right(data)
    assert data.size == turned_size(size, turn)
    if turn >= 5 and not square:
        data = open_data(str(root))
        assert lies_right(data)
        assert "2 images not turned by EXIF: the masks fit as stored." in data.facts
    elif turn > 1:
        with pytest.raises(ValueError, match="fit both ways"):
            open_data(str(root))


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_formats(tmp_path, suffix, turn):
    root = make_pairs(tmp_path, turn, 1, suffix=suffix)
    data = open_data(str(root))
    assert data.size == (20, 30)
    image, mask = data.train[0]
    apart = (image[0].float() / 100 - mask).abs()
    assert apart.mean() < (0.3 if suffix == "jpg" else 1e-6)


def test_other_sizes_are_still_refused(tmp_path):
    root = make_pairs(tmp_path, 6, 1)
    save(root / "train" / "masks" / "train.png", stripes(0, 1, size=(21, 30)), 1)
    with pytest.raises(ValueError, match=r"train.png \(image 30×20, mask 21×30\)"):
        open_data(str(root))


def test_answers_hold_where_both_fit_and_only_there(tmp_path):
    """In a set with both kinds either answer is followed without a new complaint."""
    root = make_pairs(tmp_path, 6, 1)
    other = make_pairs(tmp_path / "other", 3, 1)
    for kind in ("images", "masks"):
        (other / "train" / kind / "train.png").rename(root / "train" / kind / "second.png")
    for exif in ("apply", "ignore"):
        data = open_data(str(root), exif=exif)
        right = [bool((image[0].int() == mask.int() * 100).all()) for image, mask in data.train]
        assert right == [exif == "apply", True]


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_orientations_that_do_not_exist_turn_nothing(tmp_path, turn):
    make_pairs(tmp_path, 1, 1)
    path = tmp_path / "train" / "images" / "train.png"
    save(path, np.array(Image.open(path)), turn)
    assert lies_right(open_data(str(tmp_path)))


@pytest.mark.parametrize("mask_turn", [1, 6])
def test_masks_at_the_size_of_their_files_lie_as_the_samples_do(tmp_path, mask_turn):
    """For --score original: labels, upright, not resized."""
    root = make_pairs(tmp_path, 6, mask_turn)
    data, small = open_data(str(root), labels=[2, 1, 0]), open_data(str(root), labels=[2, 1, 0], size=(5, 4))
    truth = data.val[0][1]
    assert truth.shape == (20, 30)
    for samples in (data.val, small.val):
        assert samples.own_target(0).equal(truth)
    assert small.own_target(0).equal(truth)
    assert small.own_target(0, small.train).equal(data.train[0][1])
