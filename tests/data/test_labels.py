"""What the values of masks become: numbers that are no classes stop, with the option that says what they are."""

import itertools
import re
import shlex

import numpy as np
import pytest
import torch
from image_trees import SIZE, make_tree, noise, png, refusal, save, stripes
from PIL import Image

from lookfar.data import open_data
from lookfar.data._reading import Mask
from lookfar.data._values import option_text, parse_values
from lookfar.data.labels import Labels


def advised(message, **options):
    """What was given, together with every option that a message offers up to the first alternative."""
    words = shlex.split(re.split(r"[;.] |, or (?:--| )|; else", message[message.index("--") :])[0].replace(",.", ","))
    for name, value in itertools.pairwise(words):
        if name.startswith("--"):
            value = value.rstrip(".,;:")
            options[name[2:].replace("-", "_")] = int(value) if name == "--classes" else value
    return options


def labels(data, index=0):
    return data.train[index][1].unique().tolist()


def seen(data, index=0):
    return data.train[index][1][0].unique_consecutive().tolist()


def colours(*words):
    """An image in stripes of the colours."""
    table = np.array([[int(word[i : i + 2], 16) for i in (1, 3, 5)] for word in words], np.uint8)
    return table[stripes(*range(len(words)))]


def indexed(values, palette):
    image = Image.fromarray(values)
    flat = [int(word[i : i + 2], 16) for word in palette for i in (1, 3, 5)]
    image.putpalette(flat + [0] * (768 - len(flat)))
    return image


# ---- numbers that are no classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 206, 210), (0, 100), (0, 127, 128, 255), (3, 200), (0, 1000)])
def test_greys_are_not_numbered_and_the_advice_works(tmp_path, values):
    root = make_tree(tmp_path, [stripes(*values, dtype=np.uint16 if max(values) > 255 else np.uint8)] * 3)
    message = refusal(root)
    assert all(f"{value} (" in message for value in values)
    assert "3 files" in message or "4 files" in message
    assert f"--labels {','.join(map(str, values))}" in message
    data = open_data(str(root), **advised(message))
    assert len(data.classes) == len(values)
    assert seen(data) == list(range(len(values)))


def test_greys_beside_a_little_void(tmp_path):
    mask = stripes(0, 128)
    mask[0, :4] = 255
    root = make_tree(tmp_path, [mask] * 2)
    assert "--labels 0,128," in refusal(root)
    data = open_data(str(root), labels="0,128")
    assert labels(data) == [0, 1, 255]
    assert "mask value 255 in 3 files → ignored." in data.facts


def test_smoothed_masks_are_no_240_classes(tmp_path):
    rough = noise(0, 64, 64) // 128 * 255
    smooth = Image.fromarray(rough).resize((256, 256), Image.Resampling.BICUBIC)
    mask = np.zeros((256, 512), np.uint8)
    mask[:, 256:] = 255
    mask[100:130, 200:230] = np.array(smooth)[:30, :30]
    root = make_tree(tmp_path, [mask] * 2, size=mask.shape)
    message = refusal(root)
    assert "Make them again without interpolation" in message
    assert "0, 255" in message


def test_half_of_the_masks_0_and_1_half_0_and_255(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1)] * 3 + [stripes(0, 255)] * 3)
    message = refusal(root)
    assert "3 masks of 0 and 255 (train_3.png) beside" in message
    assert open_data(str(root), ignore=[255]).classes == ["class 0", "class 1"]
    (root / "classes.txt").write_text("back\nfront\n")
    assert "Write 1 for it" in refusal(root)
    assert "--ignore 7,255" in refusal(root, ignore=[7])


def test_a_large_share_of_255_beside_few_classes(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 255)] * 2)
    message = refusal(root)
    assert "--labels 0,1,255" in message
    assert "--ignore 255" in message
    assert len(open_data(str(root), labels=[0, 1, 255]).classes) == 3
    assert labels(open_data(str(root), ignore=["255"])) == [0, 1, 255]
    border = stripes(0, 1)
    border[:2] = 255
    assert len(open_data(str(make_tree(tmp_path / "border", [border] * 2))).classes) == 2


def test_many_classes_beside_much_void_pass(tmp_path):
    root = make_tree(tmp_path, [stripes(*range(8), 255, 255, 255, size=(24, 33))] * 2, size=(24, 33))
    assert len(open_data(str(root)).classes) == 8


def test_binary_masks(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 255)] * 2)
    message = refusal(root)
    assert "--labels 0,255" in message
    assert seen(open_data(str(root), **advised(message))) == [0, 1]
    assert seen(open_data(str(root), labels=[255, 0])) == [1, 0]


def test_few_gaps_are_named_and_with_classes_all_are_fine(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 3)] * 2)
    data = open_data(str(root))
    assert len(data.classes) == 4
    assert "no mask holds 2: --labels 0,1,3 closes the gap." in data.facts
    root = make_tree(tmp_path / "few", [stripes(0, 1, 149)] * 2)
    assert "--classes 150" in refusal(root)
    data = open_data(str(root), classes=150)
    assert len(data.classes) == 150
    assert seen(data) == [0, 1, 149]
    (root / "classes.txt").write_text("".join(f"c{i}\n" for i in range(150)))
    assert len(open_data(str(root)).classes) == 150


def test_masks_counted_from_1(tmp_path):
    root = make_tree(tmp_path, [stripes(1, 2, 3)] * 2, classes=["a", "b", "c"])
    message = refusal(root)
    assert "--ignore" not in message
    data = open_data(str(root), **advised(message))
    assert (data.classes, seen(data)) == (["a", "b", "c"], [0, 1, 2])
    root = make_tree(tmp_path / "void", [stripes(0, 1, 2, 3)] * 2, classes=["a", "b", "c"])
    message = refusal(root)
    assert "Is 0 void?" in message
    data = open_data(str(root), **advised(message))
    assert seen(data) == [255, 0, 1, 2]


def test_void_at_0_given_before(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 2, 3)] * 2, classes=["a", "b", "c"])
    message = refusal(root, ignore=[0])
    assert seen(open_data(str(root), **advised(message, ignore=[0]))) == [255, 0, 1, 2]


def test_150_names_and_numbers_from_0_to_150(tmp_path):
    mask = stripes(*range(151), size=(4, 151))
    root = make_tree(tmp_path, [mask] * 2, size=mask.shape, classes=[f"c{i}" for i in range(150)])
    message = refusal(root)
    assert "--labels 1-150 --ignore 0" in message
    assert labels(open_data(str(root), **advised(message))) == [*range(150), 255]


def test_values_of_the_classes_in_classes_txt_are_offered(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 128, 255)] * 2, classes=["a", "b", "c"])
    assert seen(open_data(str(root), **advised(refusal(root)))) == [0, 1, 2]


def test_advice_on_ignore_goes_with_what_was_given(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 2, 11, 12, 13)] * 2, classes=["a", "b", "c"])
    message = refusal(root, ignore=[11])
    assert "--ignore 11-13" in message or "--ignore 11,12,13" in message
    assert seen(open_data(str(root), **advised(message))) == [0, 1, 2, 255]


def test_numbers_beyond_what_bytes_hold(tmp_path):
    root = make_tree(tmp_path, [stripes(*range(300), size=(2, 300), dtype=np.uint16)] * 2, size=(2, 300))
    assert "only 255 classes are possible" in refusal(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "0"}, "want 2 to 255"),
        ({"labels": "0-255"}, "want 2 to 255"),
        ({"classes": 1}, "want 2 to 255"),
        ({"classes": 4}, "want one number"),
        ({"labels": "0,1"}, "want one number"),
        ({"labels": "0,1,1"}, "names 1 twice"),
        ({"labels": "0,1,#000000"}, "one kind"),
        ({"labels": "0,1,2", "ignore": "2"}, "in --labels and in --ignore"),
        ({"labels": "0,one,2"}, "got 'one'"),
        ({"ignore": [70000]}, "got 70000"),
        ({"ignore": [-1]}, "got -1"),
        ({"ignore": [True]}, "got True"),
        ({"classes": 2.5}, "classes must be"),
        ({"exif": "aply"}, "Did you mean apply"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    root = make_tree(tmp_path, [stripes(0, 1, 2)] * 2, classes=["a", "b", "c"])
    assert message in refusal(root, **options)


def test_values_are_read_and_written():
    assert parse_values("0,128, 255", "x") == (0, 128, 255)
    assert parse_values("1-4,9", "x") == (1, 2, 3, 4, 9)
    assert parse_values(["#FF0000,#0f0", (0, 0, 255), 7], "x") == ("#ff0000", "#00ff00", "#0000ff", 7)
    assert parse_values(["11", "12", 13], "x") == (11, 12, 13)
    assert option_text("--labels", [1, 2, 3, 4, 5, 9, 10]) == "--labels 1-5,9,10"
    assert option_text("--labels", ["#ff0000", 3]) == "--labels '#ff0000,3'"
    for values in ([0, 128, 255], [*range(1, 151)], ["#000000", "#800000"]):
        assert list(parse_values(shlex.split(option_text("--labels", values))[1], "x")) == values


# ---- colours and palettes -------------------------------------------------------------------------------------------

BLACK, RED, GREEN = "#000000", "#800000", "#008000"


def test_masks_in_colours_by_option_and_by_classes_txt(tmp_path):
    root = make_tree(tmp_path, [colours(BLACK, RED, GREEN)] * 3)
    message = refusal(root)
    assert "train_0.png (a mask in colours" in message
    assert all(colour in message for colour in (BLACK, RED, GREEN))
    assert "classes.txt" in message
    data = open_data(str(root), labels=[BLACK, RED, GREEN])
    assert seen(data) == [0, 1, 2]
    assert seen(open_data(str(root), labels=f"{GREEN},{BLACK},{RED}")) == [1, 2, 0]
    for lines in (
        ["back 0 0 0", "red thing 128 0 0", "green 0 128 0"],
        ["0 0 0 back", "128 0 0 red thing", "0 128 0 green"],
        ["back,0,0,0", "red thing,128,0,0", "green,0,128,0"],
    ):
        (root / "classes.txt").write_text("\n".join(lines))
        data = open_data(str(root))
        assert (data.classes, seen(data)) == (["back", "red thing", "green"], [0, 1, 2])


def test_a_colour_without_a_class(tmp_path):
    root = make_tree(tmp_path, [colours(BLACK, RED, GREEN, "#e0e0c0")] * 3)
    message = refusal(root, labels=[BLACK, RED, GREEN])
    assert "#e0e0c0" in message
    data = open_data(str(root), labels=[BLACK, RED, GREEN], ignore=["#e0e0c0"])
    assert seen(data) == [0, 1, 2, 255]
    assert "mask colour #e0e0c0 in 4 files → ignored." in data.facts
    assert "--ignore '7,#e0e0c0'" in refusal(root, labels=[BLACK, RED, GREEN], ignore=[7])


@pytest.mark.parametrize("lines", [["a 0 0 0", "b"], ["a 0 0 0", "b 0 0 0"], ["a 0 0 0", "b 0 0 256"]])
def test_colour_tables_that_cannot_be(tmp_path, lines):
    root = make_tree(tmp_path, [stripes(0, 1)] * 2, classes=lines)
    assert "classes.txt" in refusal(root)


def test_colours_of_rgb_grey_and_palette_together(tmp_path):
    white = "#ffffff"
    masks = [
        colours(BLACK, white),
        stripes(0, 255),
        lambda path: indexed(stripes(1, 0), [white, BLACK]).save(path),
    ]
    root = make_tree(tmp_path, masks)
    data = open_data(str(root), labels=[BLACK, white])
    assert [seen(data, i) for i in range(3)] == [[0, 1]] * 3


def test_grey_saved_as_colour_is_numbers(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 2)[..., None].repeat(3, -1), stripes(0, 1, 2)])
    data = open_data(str(root))
    assert seen(data, 0) == seen(data, 1) == [0, 1, 2]


def test_a_black_rgb_mask_among_coloured_ones_is_the_colour_black(tmp_path):
    root = make_tree(tmp_path, [colours(BLACK, RED), colours(BLACK, BLACK)])
    data = open_data(str(root), labels=[RED, BLACK])
    assert (seen(data, 0), seen(data, 1)) == ([1, 0], [1])


def test_a_palette_that_differs_in_one_file(tmp_path):
    root = make_tree(
        tmp_path,
        [
            lambda path: indexed(stripes(0, 1, 2), [BLACK, RED, GREEN]).save(path),
            lambda path: indexed(stripes(0, 1, 2), [BLACK, GREEN, RED]).save(path),
        ],
    )
    message = refusal(root)
    assert "train_0.png" in message
    assert "train_1.png" in message
    data = open_data(str(root), **advised(message))
    assert (seen(data, 0), seen(data, 1)) == ([0, 1, 2], [0, 2, 1])
    data = open_data(str(root), labels="0-2")
    assert (seen(data, 0), seen(data, 1)) == ([0, 1, 2], [0, 1, 2])


def test_palettes_made_for_each_file(tmp_path):
    """As image programs write them: only the colours in use, so that red is 1 here and 2 there."""
    root = make_tree(
        tmp_path,
        [
            lambda path: indexed(stripes(0, 1), [BLACK, RED]).save(path),
            lambda path: indexed(stripes(0, 1), [BLACK, GREEN]).save(path),
        ],
    )
    message = refusal(root)
    assert "1 is #800000 in train_0.png and #008000 in train_1.png" in message
    data = open_data(str(root), **advised(message))
    assert (seen(data, 0), seen(data, 1)) == ([0, 1], [0, 2])


def test_palettes_that_agree_or_say_nothing_pass(tmp_path):
    same = make_tree(tmp_path / "same", [lambda p: indexed(stripes(0, 1, 2), [BLACK, RED, GREEN]).save(p)] * 3)
    assert seen(open_data(str(same))) == [0, 1, 2]
    one = make_tree(
        tmp_path / "one",
        [lambda p: indexed(stripes(0, 1), [RED] * 256).save(p), lambda p: indexed(stripes(0, 2), [RED] * 256).save(p)],
    )
    assert seen(open_data(str(one)), 1) == [0, 2]
    void = make_tree(
        tmp_path / "void",
        [
            lambda p: indexed(stripes(0, 1, 1, 255), [BLACK, RED, *["#123456"] * 254]).save(p),
            lambda p: indexed(stripes(0, 1, 1, 255), [BLACK, RED, *["#654321"] * 254]).save(p),
        ],
    )
    assert len(open_data(str(void), ignore=[255]).classes) == 2


def test_indices_follow_the_palette_where_classes_txt_has_its_colours(tmp_path):
    masks = [lambda p: indexed(stripes(0, 1, 2), [BLACK, GREEN, RED]).save(p)] * 2
    root = make_tree(tmp_path, masks, classes=["back 0 0 0", "red 128 0 0", "green 0 128 0"])
    assert seen(open_data(str(root))) == [0, 2, 1]
    (root / "classes.txt").write_text("back 1 2 3\nred 4 5 6\ngreen 7 8 9\n")
    data = open_data(str(root))
    assert seen(data) == [0, 1, 2]
    assert any("not the colours of classes.txt" in fact for fact in data.facts)


def test_numbers_beside_a_colour_table_stay_numbers(tmp_path):
    root = make_tree(tmp_path, [stripes(0, 1, 2)] * 2, classes=["back 0 0 0", "red 128 0 0", "green 0 128 0"])
    assert seen(open_data(str(root))) == [0, 1, 2]
    grey = make_tree(tmp_path / "grey", [stripes(0, 255)] * 2, classes=["back 0 0 0", "front 255 255 255"])
    assert "--labels 0,255" in refusal(grey)


def test_a_picture_is_no_mask(tmp_path):
    root = make_tree(tmp_path, [noise(5, 80, 90, 3)] + [stripes(0, 1, size=(80, 90))] * 2, size=(80, 90))
    assert "train_0.png (more than 4096 different values" in refusal(root)


def test_a_colour_that_no_class_has_is_ignored():
    """As in a mask that has changed since it was looked at."""
    labels = Labels(np.zeros(2**16, np.uint8), {0x0000FF: 1, 0xFF0000: 0}, frozenset({"coloured"}))
    mask = Mask(np.array([[0xFF0000, 0x0000FF], [0x00FF00, 0xFFFFFF]]), "RGB", coloured=True)
    assert labels(mask).tolist() == [[0, 1], [255, 255]]


# ---- depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits(tmp_path, bits):
    values = stripes(*range(min(2**bits, 5)))
    root = make_tree(tmp_path, [lambda path: path.write_bytes(png(values, bits))] * 2)
    assert seen(open_data(str(root))) == list(range(min(2**bits, 5)))


def test_the_same_classes_in_files_of_every_depth(tmp_path):
    values = stripes(0, 1, 2, 3)
    writers = [lambda path, bits=bits: path.write_bytes(png(values, bits)) for bits in (2, 4, 8, 16)]
    data = open_data(str(make_tree(tmp_path, writers)))
    assert [seen(data, i) for i in range(4)] == [[0, 1, 2, 3]] * 4


def deep_tree(root, tops, val_top):
    make_tree(root, [stripes(0, 1)] * len(tops))
    for split, some in (("train", tops), ("val", [val_top])):
        for i, top in enumerate(some):
            pixels = noise(i + 9 * len(split), *SIZE, 3, top=top + 1, dtype=np.uint16 if top > 255 else np.uint8)
            pixels[0, 0] = top
            (root / split / "images" / f"{split}_{i}.png").write_bytes(png(pixels, 16 if top > 255 else 8, 2))
    return root


def test_images_of_11_bits_keep_their_levels(tmp_path):
    data = open_data(str(deep_tree(tmp_path, [2047, 2047], 2047)))
    assert len(data.train[0][0].unique()) > 200
    assert any("0 to 2047" in fact for fact in data.facts)


def test_depths_that_do_not_agree(tmp_path):
    message = refusal(deep_tree(tmp_path, [255, 255], 4095))
    assert "8-bit (2 files: train_0.png) and 16-bit (1 file: val_0.png)" in message
    assert "val_0.png in val reaches 65535" in refusal(deep_tree(tmp_path / "scale", [4095, 4095], 65535))
    dark = open_data(str(deep_tree(tmp_path / "dark", [1000, 1000, 65535], 1000)))
    assert any("most images are dark" in fact for fact in dark.facts)


def test_float_images(tmp_path):
    def tree(root, *peaks):
        make_tree(root, [stripes(0, 1)] * len(peaks))
        for split, some in (("train", peaks), ("val", [1.0])):
            for i, peak in enumerate(some):
                pixels = noise(i + len(split), *SIZE, 3, top=1000).astype(np.float32) / 255
                pixels[3, 4] = peak
                (root / split / "images" / f"{split}_{i}.png").unlink()
                save(root / split / "images" / f"{split}_{i}.npy", pixels.astype(np.float32))
        return root

    assert torch.isfinite(open_data(str(tree(tmp_path / "fine", 1.0, 1.0))).batch(0, 0, 2)[0]).all()
    assert "train_1.npy (infinite values" in refusal(tree(tmp_path / "inf", 1.0, np.inf, 1.0))
    assert "train_1.npy (float32 values below 0 or not a number" in refusal(tree(tmp_path / "nan", 1.0, np.nan, 1.0))
    assert "train_1.npy reaches 3e+38" in refusal(tree(tmp_path / "mark", 1.0, 3e38, 1.0))


def test_near_infrared_beside_colours(tmp_path):
    import tifffile

    root = make_tree(tmp_path, [stripes(0, 1)] * 2)
    for path in root.rglob("images/*.png"):
        path.unlink()
        pixels = noise(len(path.name) + ord(path.stem[-1]), *SIZE, 4)
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="rgb", extrasamples=(0,))
    assert "--in-chans 4" in refusal(root)
    assert open_data(str(root), in_chans=4).train[0][0].shape == (4, *SIZE)
