"""Images with one label each: what their beginnings say, what is seen of them, and in which batch."""

import numpy as np
import pytest
import torch
from image_trees import noise, png, refusal, save
from PIL import Image
from torchvision.transforms import v2

from lookfar.data import _heads, open_data
from lookfar.data.scan import File
from lookfar.data.views import RandomCrop, choose_views, middle, resize_box, shrunk


def turned_jpeg(path, turn, size=(8, 12)):
    exif = Image.Exif()
    exif[0x0112] = turn
    return save(path, Image.fromarray(noise(turn, *size, 3)), exif=exif)


def image_of(kind, path, side=8):
    """A file of a kind, 8×12 or larger."""
    size = (side, side + 4)
    rgb = Image.fromarray(noise(1, *size, 3))
    grey, alpha = Image.fromarray(noise(2, *size)), Image.fromarray(noise(3, *size))
    make = {
        "grey.png": lambda p: save(p, grey),
        "grey.jpg": lambda p: save(p, grey),
        "colour.png": lambda p: save(p, rgb),
        "colour.jpg": lambda p: save(p, rgb),
        "colour.JPEG": lambda p: save(p, rgb, format="JPEG"),
        "lossless.webp": lambda p: save(p, rgb, lossless=True),
        "alpha.webp": lambda p: save(p, Image.merge("RGBA", [*rgb.split(), alpha]), lossless=True),
        "alpha.png": lambda p: save(p, Image.merge("RGBA", [*rgb.split(), alpha])),
        "grey_alpha.png": lambda p: save(p, Image.merge("LA", [grey, alpha])),
        "indexed.png": lambda p: save(p, rgb.quantize(16)),
        "indexed_clear.png": lambda p: save(p, rgb.quantize(16), transparency=3),
        "indexed.gif": lambda p: save(p, rgb.quantize(16)),
        "one_bit.png": lambda p: save(p, grey.convert("1")),
        "four_bits.png": lambda p: p.write_bytes(png(noise(4, *size, top=16), 4)),
        "interlaced.png": lambda p: p.write_bytes(png(noise(4, *size, 3), 8, 2, interlaced=True)),
        "wide.png": lambda p: p.write_bytes(png(noise(4, *size, 3, top=9999, dtype=np.uint16), 16, 2)),
        "wide_grey.png": lambda p: save(p, noise(4, *size, top=9999, dtype=np.uint16)),
        "print.jpg": lambda p: save(p, rgb.convert("CMYK")),
        "print.tif": lambda p: save(p, rgb.convert("CMYK")),
        "turned.jpg": lambda p: turned_jpeg(p, 6, size),
        "turned.png": lambda p: save(p, rgb, exif=turned_exif()),
        "colour.bmp": lambda p: save(p, rgb),
        "colour.ppm": lambda p: save(p, rgb),
        "grey.tiff": lambda p: save(p, grey),
        "array.npy": lambda p: save(p, noise(5, *size, 3)),
    }
    make[kind](path / kind)
    return path / kind


def turned_exif():
    exif = Image.Exif()
    exif[0x0112] = 8
    return exif


KINDS = [
    "grey.png", "grey.jpg", "colour.png", "colour.jpg", "colour.JPEG", "lossless.webp", "alpha.webp", "alpha.png",
    "grey_alpha.png", "indexed.png", "indexed_clear.png", "indexed.gif", "one_bit.png", "four_bits.png",
    "interlaced.png", "wide.png", "wide_grey.png", "print.jpg", "print.tif", "turned.jpg", "turned.png", "colour.bmp",
    "colour.ppm", "grey.tiff", "array.npy",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 201])
def test_a_beginning_says_what_decoding_says(tmp_path, kind, side):
    file = File(kind, image_of(kind, tmp_path, 1 if kind == "wide.png" else side))
    begun, whole = _heads.look(file), _heads.look(file, whole=True)
    assert not whole.error, whole.error
    assert whole.whole
    assert {**vars(begun), "whole": True} == vars(whole)


@pytest.mark.parametrize("kind", ["grey.png", "colour.jpg", "alpha.webp", "grey_alpha.png", "indexed_clear.png"])
def test_a_beginning_is_enough_for_usual_files(tmp_path, kind):
    assert not _heads.look(File(kind, image_of(kind, tmp_path))).whole


@pytest.mark.parametrize("kind", ["colour.png", "colour.jpg", "lossless.webp", "colour.bmp"])
@pytest.mark.parametrize("side", [24, 201])
def test_files_that_are_cut_short_are_found_by_their_ends(tmp_path, kind, side):
    path = image_of(kind, tmp_path, side)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert _heads.look(File(kind, path)).error.startswith(kind)


# ---- what becomes of them ----------------------------------------------------------------------------------------


def two_classes(root, write):
    """Two classes of which the second has one more image, written by ``write(path)``; returns what is seen of it."""
    for number in range(4):
        save(root / "train" / "ab"[number % 2] / f"{number}.png", noise(number, 8, 12, 3))
        save(root / "val" / "ab"[number % 2] / f"{number}.png", noise(number + 10, 8, 12, 3))
    (root / "train/b").mkdir(exist_ok=True)
    write(root / "train/b")
    return root


def last_of(root, **options):
    data = open_data(str(root), **options)
    assert data.train[len(data.train) - 1][1] == 1
    return data.train[len(data.train) - 1][0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("wide")])
def test_every_kind_becomes_three_bands(tmp_path, kind):
    path = two_classes(tmp_path, lambda folder: image_of(kind, folder).rename(folder / f"z{kind}")) / "train/b"
    seen = last_of(tmp_path)
    if kind == "array.npy":
        want = np.load(path / f"z{kind}")
    else:
        with Image.open(path / f"z{kind}") as image:
            want = np.array(image.convert("RGBA").convert("RGB") if "clear" in kind else image.convert("RGB"))
    if "turned" in kind:
        want = np.rot90(want, -1 if kind.endswith("jpg") else 1)
    assert seen.shape == (3, *want.shape[:2])
    assert (seen.permute(1, 2, 0).numpy() == want).all()
    if kind != "array.npy":  # bands that may be anything
        assert last_of(tmp_path, in_chans=1).shape == (1, *want.shape[:2])


def test_orientation_is_applied_or_ignored(tmp_path):
    root = two_classes(tmp_path, lambda folder: turned_jpeg(folder / "z.jpg", 6))
    assert last_of(root).shape == (3, 12, 8)
    assert "1 image turned upright by EXIF." in open_data(str(root)).facts
    assert last_of(root, exif="ignore").shape == (3, 8, 12)
    assert "1 image not turned by EXIF." in open_data(str(root), exif="ignore").facts


def test_images_of_16_bits(tmp_path):
    for number in range(8):
        pixels = noise(number, 8, 12, top=1000, dtype=np.uint16)
        pixels[0, 0] = 4000
        save(tmp_path / "ab"[number % 2] / f"{number}.png", pixels)
    data = open_data(str(tmp_path), in_chans=1)
    assert data.train[0][0].max() == 255
    assert any("0 to 4000" in fact for fact in data.facts)
    save(tmp_path / "a/eight.png", noise(9, 8, 12))
    assert "one kind of numbers" in refusal(tmp_path, in_chans=1)


def test_bands_must_agree(tmp_path):
    for number in range(8):
        save(tmp_path / "ab"[number % 2] / f"{number}.npy", noise(number, 8, 12, 5))
    assert "--in-chans 5" in refusal(tmp_path)
    data = open_data(str(tmp_path), in_chans=5, size=(4, 4))
    images, _ = data.batch(0, 0, 2)
    assert images.shape == (2, 5, 4, 4)
    assert len(data.mean) == 5


def test_images_of_one_pixel(tmp_path):
    for number in range(8):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", noise(number, 1, 1 + number * (number > 5), 3))
    for options in ({}, {"size": (7, 5)}):
        data = open_data(str(tmp_path), **options)
        images, _ = data.batch(0, 0, 8)
        assert images.isfinite().all()
        assert images.shape[-2:] == data.size
        for images, _ in data.val_batches(3):
            assert images.shape[-2:] == data.size
    assert open_data(str(tmp_path)).size == (32, 32)


def test_what_is_damaged_inside_is_named_when_it_is_read(tmp_path, monkeypatch):
    """Of many files only the beginnings are read; --skip-bad reads all of all."""
    root = two_classes(tmp_path, lambda folder: save(folder / "z.webp", noise(1, 64, 64, 3), lossless=True))
    monkeypatch.setattr(_heads, "FEW", 0)
    content = bytearray((root / "train/b/z.webp").read_bytes())
    content[100:400] = bytes(300)
    (root / "train/b/z.webp").write_bytes(content)
    data = open_data(str(root))
    assert any("by their beginnings" in fact for fact in data.facts)
    with pytest.raises(ValueError, match=r"cannot read .*z\.webp.*--skip-bad"):
        data.train[len(data.train) - 1]
    assert len(open_data(str(root), skip_bad=True).train) == 4


# ---- what is seen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 48), (40, 90), (57, 57)])
def test_the_middle_is_that_of_resize_and_center_crop(height, width):
    image = torch.from_numpy(noise(0, 3, height, width))
    theirs = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(28)])(image)
    ours = middle(image, (28, 28), 28 / 32)
    # theirs rounds the other side and the corner to whole pixels: half a pixel of noise is much, its mean is little
    assert (ours.double() - theirs).abs().mean() < (20 if height != width else 1)
    assert abs(ours.double().mean() - theirs.double().mean()) < 2


def test_a_box_is_cut_out_of_the_image_resized():
    image = torch.from_numpy(noise(0, 3, 64, 64))
    whole = resize_box(image, (0, 0, 64, 64), (32, 32))
    assert (resize_box(image, (16, 8, 32, 40), (16, 20)) == whole[:, 8:24, 4:24]).all()
    assert resize_box(image, (0, 0, 64, 64), (64, 64)) is image
    five = torch.from_numpy(noise(1, 5, 64, 64))
    assert (resize_box(five, (0, 0, 64, 64), (32, 32))[:1] == resize_box(five[:1], (0, 0, 64, 64), (32, 32))).all()


def test_random_crops_depend_on_their_generator_alone():
    image, label = torch.from_numpy(noise(0, 3, 40, 90)), torch.tensor(300)
    crop = RandomCrop((16, 24))
    state = torch.get_rng_state()
    views = [crop(image, label, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert (views[0] == views[1]).all()
    assert not (views[0] == views[2]).all()
    assert (torch.get_rng_state() == state).all()
    assert crop(image, label)[1] == 300


def test_crops_are_as_large_as_said_and_mirrored_as_often():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).contiguous()  # values are columns
    crop = RandomCrop((50, 50))
    views = [crop(ramp, torch.tensor(0), torch.Generator().manual_seed(s))[0][0, 0].double() for s in range(300)]
    widths = torch.tensor([(view[-1] - view[0]).abs() / 49 * 50 for view in views])
    assert 200 * (0.35 * 3 / 4) ** 0.5 - 4 < widths.min() < 115
    assert 190 < widths.max() <= 204
    mirrored = sum(bool(view[0] > view[-1]) for view in views)
    assert 120 < mirrored < 180
    still = RandomCrop((50, 50), flip=0.0)
    views = [still(ramp, torch.tensor(0), torch.Generator().manual_seed(s))[0][0, 0] for s in range(50)]
    assert not any(view[0] > view[-1] for view in views)


def test_what_is_kept_is_enough_for_the_smallest_crop():
    image = torch.from_numpy(noise(0, 3, 300, 500))
    assert shrunk(image, (64, 64)).shape == (3, 64, 107)
    assert shrunk(image, (400, 400)) is image


@pytest.mark.parametrize(
    ("sizes", "size", "want", "share"),
    [
        ([(28, 28)], None, (28, 28), 1.0),
        ([(28, 40)], None, (28, 40), 1.0),
        ([(28, 28)], (56, 56), (56, 56), 0.875),
        ([(480, 640)], None, (224, 224), 0.875),
        ([(100, 300), (90, 120)], None, (96, 96), 0.875),
        ([(3, 5), (5, 3)], None, (32, 32), 0.875),
    ],
)
def test_the_size_by_default(sizes, size, want, share):
    views = choose_views(sizes, size, None, True)
    assert (views.size, views.val.keywords["share"]) == (want, share)
    assert choose_views(sizes, size, 0.95, True).val.keywords["share"] == (0.95 if share < 1 else 1)


def test_flip_off_is_said_and_done(tmp_path):
    root = two_classes(tmp_path, lambda _: None)
    assert any("mirror images" in fact for fact in open_data(str(root)).facts)
    data = open_data(str(root), flip=False)
    assert not any("mirror" in fact for fact in data.facts)
    assert data.augment.flip == 0


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    root = two_classes(tmp_path, lambda folder: save(folder / "z.png", noise(77, 30, 20, 3)))
    first, second = open_data(str(root)), open_data(str(root))
    first.batch(0, 0, 4)
    for step in (3, 0):
        (images, labels), (again, too) = first.batch(1, step, 4), second.batch(1, step, 4)
        assert (images == again).all()
        assert (labels == too).all()
    halves = [second.batch(1, 0, 4, rank=rank, world=2)[0] for rank in (0, 1)]
    assert (torch.cat(halves) == images).all()
