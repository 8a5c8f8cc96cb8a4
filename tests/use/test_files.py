"""Images of every kind into files, none over another's; what cannot be read is said and the rest goes on."""

import io
import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lookfar.networks import predict
from lookfar.use import open_network, predict_files, read_image
from lookfar.use.files import names_of
from lookfar.use.pictures import confusion_picture, labels_picture, legend, overlay
from lookfar.use.reading import find_images

GREY = np.random.RandomState(0).randint(0, 256, (20, 30)).astype(np.uint8)
COLOUR = np.random.RandomState(1).randint(0, 256, (20, 30, 3)).astype(np.uint8)


def stored(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(picture, exif=exif)


def test_images_of_every_kind(tmp_path):
    colour, path = Image.fromarray(COLOUR), tmp_path / "x.png"

    def read(content):
        path.write_bytes(content)
        return read_image(path).numpy().transpose(1, 2, 0)

    assert (read(stored(colour)) == COLOUR).all()
    assert (read(stored(Image.fromarray(GREY))) == GREY[..., None]).all()
    assert (read(stored(Image.fromarray(np.dstack([COLOUR, GREY])))) == COLOUR).all()
    assert (read(stored(colour.quantize(7))) == np.array(colour.quantize(7).convert("RGB"))).all()
    wide = GREY.astype(np.uint16) * 257
    assert (read(stored(Image.fromarray(wide))) == GREY[..., None]).all()
    assert (read(stored(Image.fromarray(GREY > 99))) == 255 * (GREY > 99)[..., None]).all()
    for orientation, upright in [
        (3, COLOUR[::-1, ::-1]), (6, np.rot90(COLOUR, -1)), (8, np.rot90(COLOUR)), (2, COLOUR[:, ::-1]),
    ]:  # fmt: skip
        assert (read(turned(colour, orientation)) == upright).all(), orientation
    assert read(stored(Image.new("RGB", (1, 1)))).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.jpg", stored(Image.fromarray(COLOUR), "JPEG")[:300], "cannot read .*cut.jpg"),
        ("text.png", b"no picture", "cannot read .*text.png: no image of a known format"),
        ("empty.png", b"", "an empty file"),
        ("float.tif", stored(Image.fromarray(GREY / 255.0).convert("F"), "TIFF"), "float32 numbers, and nothing says"),
        ("film.gif", stored(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(GREY[::-1])]),
         "2 frames; want one picture"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_bands_that_a_network_does_not_take(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(ValueError, match="has 7 bands, the network takes 3"):
        read_image(tmp_path / "x.npy")


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.jpg", "a/2.PNG", "a/notes.txt", "a/.hidden.png", "b/3.png", "[odd].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.as_posix() for p in find_images(["b/3.png", "a", "*/1.jpg", "[odd].png"])] == [
        "b/3.png", "a/1.jpg", "a/2.PNG", "[odd].png",
    ]  # fmt: skip
    assert [p.as_posix() for p in find_images(["**/*.png"])][-1] == "b/3.png"
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no images in the folder none"):
        find_images(["none"])
    with pytest.raises(ValueError, match=r"no file matches none/\*\.jpg"):
        find_images(["none/*.jpg"])


def test_results(tmp_path, opened):
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(COLOUR if name < "b" else COLOUR[::-1]).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images, out, seen = (
        [tmp_path / name for name in ("a/x.png", "bad.png", "nowhere.png", "b/x.png")],
        tmp_path / "out",
        [],
    )
    failed = predict_files(opened, images, out, done=lambda path, error: seen.append((path.name, bool(error))))
    assert seen == [("x.png", False), ("bad.png", True), ("nowhere.png", True), ("x.png", False)]
    assert {path.name for path in failed} == {"bad.png", "nowhere.png"}
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "a/x_labels.png", "a/x_overlay.jpg", "b/x_labels.png", "b/x_overlay.jpg", "classes.txt", "legend.png",
        "predictions.jsonl",
    ]  # fmt: skip
    for path in (images[0], images[3]):
        labels = Image.open(out / path.parent.name / "x_labels.png")
        assert labels.mode == "P"
        assert (np.array(labels) == predict(opened.network, read_image(path)).numpy()).all()
        assert labels.getpalette()[:9] == [1, 2, 3, 100, 0, 0, 0, 200, 0]
    assert (out / "classes.txt").read_text() == "sky 1 2 3\nroad 100 0 0\ncar 0 200 0\n"
    about = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(one["name"], one["size"]) for one in about] == [("a/x", [20, 30]), ("b/x", [20, 30])]


def test_nothing_of_another_image_is_written_over(tmp_path, opened):
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(COLOUR).save(tmp_path / name)
    out = tmp_path / "out"
    predict_files(opened, [tmp_path / "a/x.png"], out)
    predict_files(opened, [tmp_path / "a/x.png"], out)
    before = (out / "x_labels.png").read_bytes()
    with pytest.raises(ValueError, match=r"x_labels\.png exists already and of .*a/x\.png: give another folder for"):
        predict_files(opened, [tmp_path / "b/x.png"], out)
    (out / "predictions.jsonl").unlink()
    with pytest.raises(ValueError, match="not of this command"):
        predict_files(opened, [tmp_path / "a/x.png"], out)
    assert (out / "x_labels.png").read_bytes() == before
    own = tmp_path / "c" / "y_overlay.jpg"
    own.parent.mkdir()
    Image.fromarray(COLOUR).save(own)
    Image.fromarray(COLOUR).save(tmp_path / "c/y.png")
    with pytest.raises(ValueError, match=r"y_overlay\.jpg exists already and not of this command"):
        predict_files(opened, [tmp_path / "c/y.png", own], tmp_path / "c")


def test_names_differ_whatever_their_case(tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "a/X.jpg", "b/x.png", "y.png")]
    names = list(names_of(paths).values())
    assert len({name.casefold() for name in names}) == 4
    assert names[3] == "y"
    assert list(names_of(paths[:1]).values()) == ["x"]


def test_options_of_predict_count(tmp_path, opened):
    Image.fromarray(COLOUR.repeat(3, 0)).save(tmp_path / "x.png")
    predict_files(opened, [tmp_path / "x.png"], tmp_path / "whole", whole=True)
    predict_files(opened, [tmp_path / "x.png"], tmp_path / "tiles")
    assert (tmp_path / "whole/x_labels.png").read_bytes() != (tmp_path / "tiles/x_labels.png").read_bytes()
    with pytest.raises(ValueError, match="exclude each other"):
        predict_files(opened, [tmp_path / "x.png"], tmp_path / "no", whole=True, tile=(4, 4))
    assert not (tmp_path / "no").exists()


def test_pictures():
    labels = np.array([[0, 299], [1, 2]])
    assert np.array(labels_picture(labels, [(0, 0, 0)] * 300)).tolist() == labels.tolist()
    image = np.full((3, 2, 2), 100, np.uint8)
    half = np.array(overlay(image, labels % 3, [(0, 0, 0), (200, 0, 50), (0, 0, 0)]))
    assert half[1, 0].tolist() == [150, 50, 75]
    assert (
        np.array(overlay(image[:1], labels * 0, [(0, 0, 0)], strength=0)).tolist() == image.transpose(1, 2, 0).tolist()
    )
    assert legend(["a"] * 40, [(0, 0, 0)] * 40).width > legend(["a"] * 20, [(0, 0, 0)] * 20).width
    for K in (2, 19, 150):
        picture = np.array(confusion_picture(np.eye(K, dtype=np.int64), [f"class {n}" for n in range(K)]))
        assert (picture == [0, 90, 181]).all(-1).any()
        assert max(picture.shape) < 1200


# ---- opening -----------------------------------------------------------------------------------------------------


def test_weights_for_a_name(tmp_path, opened):
    torch.save({"state_dict": opened.network.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"do not fit|missing|no place"):
        open_network("cgnet", num_classes=3, weights=tmp_path / "w.pth")
    with pytest.raises(ValueError, match="the name of a network without weights"):
        open_network("danet_resnet50_d8")
    with pytest.raises(ValueError, match="weights go with the name of a network; nowhere is not one"):
        open_network("nowhere", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "."), (b"PK\x03\x04 cut short", "."), (b"<html>not found</html>", "."),
        (stored(Image.fromarray(GREY)), "."),
    ],
)  # fmt: skip
def test_files_that_are_no_networks(tmp_path, content, message):
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message) as raised:
            open_network(path)
    assert len(str(raised.value)) < 240


def test_a_whole_module_and_a_strange_state(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="module"):
        open_network(tmp_path / "module.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no network of ours has such names"):
        open_network(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"no network nowhere\.pth: want a file"):
        open_network("nowhere.pth")


@pytest.mark.parametrize("peak", [255.0, 60000.0])
def test_wide_numbers_are_white_where_the_data_of_the_trial_were(opened, tmp_path, monkeypatch, peak):
    """Data that held bytes say nothing of 16 bits: an image of them would come out white."""
    wide = np.linspace(0, 60000, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    trial = replace(opened, data=SimpleNamespace(train=SimpleNamespace(peak=peak)))
    seen = []
    monkeypatch.setattr(
        "lookfar.networks.predict", lambda network, image, **_: seen.append(image) or image[0].long() % 3
    )
    assert predict_files(trial, [tmp_path / "wide.png"], tmp_path / "out") == {}
    brightest = 255 if peak == 60000 else 255 * 60000 // 65535
    assert abs(int(seen[0].max()) - brightest) <= 1


def test_classes_of_others_stay(opened, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    (tmp_path / "classes.txt").write_text("n01440764 tench\n")
    with pytest.raises(ValueError, match=r"classes.txt exists already and has other classes"):
        predict_files(opened, [tmp_path / "x.png"], tmp_path)
    assert (tmp_path / "classes.txt").read_text() == "n01440764 tench\n"
