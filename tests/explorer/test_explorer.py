"""The page of `lookfar explore`: what it answers, and what it refuses."""

import http.client
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lookfar import create_block, create_network
from lookfar.diagnostics import look
from lookfar.explorer import Picture, Server, Subject, open_subject, read_picture
from lookfar.explorer.pictures import BYTES, SIDE
from lookfar.explorer.subjects import open_subjects

CLASSES = ("sky", "road", "tree")


def network():
    torch.manual_seed(0)
    block = create_block("nonlocal", 8, heads=2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), block, create_block("squeeze_excitation", 8), nn.Conv2d(8, 3, 1)
    ).eval()


def prepare(picture):
    return torch.from_numpy(np.asarray(picture.image).transpose(2, 0, 1) / 255.0).float()


def picture(height=18, width=26):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture("noise", Image.fromarray(values))


class Images:
    """Four bands, of which a page shows three."""

    names = ("one",)

    def __getitem__(self, index):
        return torch.arange(96, dtype=torch.uint8).view(4, 4, 6), None


def coded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def server():
    with Server([Subject("tiny", network(), prepare, CLASSES)]) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server, route, *, method="GET", body=None, token=None, **headers):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    address = f"/{server.token if token is None else token}/{route}"
    connection.request(method, address, body, {"Host": f"127.0.0.1:{server.server_port}", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def post(server, content, name="mine.png"):
    status, _, answer = ask(server, f"image?name={name}", method="POST", body=content)
    return status, json.loads(answer)


def test_a_click_is_the_row_of_the_definition(server):
    mine = picture()
    status, shown = post(server, coded(mine.image))
    assert (status, shown["name"], shown["width"], shown["height"]) == (200, "mine.png", 26, 18)
    status, _, content = ask(server, f"map?image={shown['image']}&x=0.6&y=0.2&mean=1")
    (answer,) = json.loads(content)
    subject = server.answers.subjects[0]
    looks = look(subject.network, prepare(mine), (int(0.2 * 18), int(0.6 * 26)))
    with torch.no_grad():
        label = subject.network(prepare(mine)[None])[0, :, int(0.2 * 9), int(0.6 * 13)].argmax()
    assert (status, answer["says"]) == (200, CLASSES[label])
    block, gate = answer["blocks"]
    assert (block["name"], block["size"], block["names"]) == ("1", [9, 13], ["head 0", "head 1"])
    assert len(block["maps"]) == 2
    for got, want in ((block["maps"], looks[0].maps), (block["mean"], looks[0].mean)):
        np.testing.assert_allclose(got, want.flatten(1), rtol=1e-3)
    assert block["query"] == [(looks[0].query[0] + 0.5) / 9, (looks[0].query[1] + 0.5) / 13]
    assert "maps" not in gate
    assert gate["reason"]


def test_a_click_does_not_wait_for_a_mean_map(server, monkeypatch):
    """Of a slow block the mean of all queries takes seconds; what was clicked meanwhile is answered."""
    _, shown = post(server, coded(picture().image))
    block, begun, clicked = server.answers.subjects[0].network[1], threading.Event(), threading.Event()
    attention = block.attention

    def slow(x, queries=None):
        if queries is None or len(queries) > 1:
            begun.set()
            assert clicked.wait(30), "the click waited"
        return attention(x, queries)

    monkeypatch.setattr(block, "attention", slow)
    answers: list = []
    at = f"map?image={shown['image']}&x=0.5&y=0.5"
    averaging = threading.Thread(target=lambda: answers.append(ask(server, f"{at}&mean=1")))
    averaging.start()
    assert begun.wait(30)
    status, _, content = ask(server, at)
    clicked.set()
    averaging.join()
    assert status == answers[0][0] == 200
    assert "mean" not in json.loads(content)[0]["blocks"][0]
    assert "mean" in json.loads(answers[0][2])[0]["blocks"][0]


def test_corners_are_inside(server):
    _, shown = post(server, coded(picture(5, 3).image))
    for x, y in ((0, 0), (1, 1), (1, 0)):
        status, _, content = ask(server, f"map?image={shown['image']}&x={x}&y={y}")
        assert status == 200, content
        assert json.loads(content)[0]["blocks"][0]["size"] == [3, 2]


@pytest.mark.parametrize("route", ["", "maps.js", "explore.js", "explore.css", "report.css", "start"])
def test_the_page_is_there_and_asks_nobody_else(server, route):
    status, headers, content = ask(server, route)
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert b"http://" not in content
    assert b"https://" not in content


def test_only_the_page_itself_is_answered(server):
    port = server.server_port
    assert ask(server, "", token="guess")[0] == 403
    assert ask(server, "start", token="")[0] == 403
    assert ask(server, "start", Host="evil.example")[0] == 403
    assert ask(server, "start", Host=f"evil.example:{port}")[0] == 403
    assert ask(server, "start", Origin="http://evil.example")[0] == 403
    assert ask(server, "start", Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(server, "start", Host=f"localhost:{port}")[0] == 200
    assert ask(server, "../../../../etc/passwd")[0] == 404
    assert ask(server, "elsewhere", method="POST", body=b"1")[0] == 404
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image", "is not an image that can be read here"),
        (b"", "is not an image that can be read here"),
        (coded(picture().image)[:60], "damaged"),
        (coded(Image.fromarray(np.zeros((4, 4), np.uint16))), "more than 8 bits"),
        (coded(Image.new("1", (9000, 9000))), "more than 50 million"),
    ],
    ids=["text", "empty", "cut", "16 bits", "unfolds"],
)
def test_bad_images_get_a_line(server, content, said):
    status, answer = post(server, content)
    assert status == 400
    assert said in answer["error"]
    assert "\n" not in answer["error"]


def test_large_files_are_not_read(server):
    status, headers, _ = ask(server, "image?name=a", method="POST", body=b"", **{"Content-Length": str(BYTES + 1)})
    assert status == 413
    assert ask(server, "image?name=a", method="POST", body=b"", **{"Content-Length": "-1"})[0] == 411


@pytest.mark.parametrize(
    "given", ["x=2&y=0&image=0", "x=nan&y=0&image=0", "x=0.5&y=0.5", "x=.5&y=.5&image=99999", "x=a"]
)
def test_bad_questions_get_a_line(server, given):
    status, _, content = ask(server, f"map?{given}")
    assert status == 400
    assert "Traceback" not in json.loads(content)["error"]


def test_an_error_of_one_request_is_not_the_end(server):
    assert post(server, b"x")[0] == 400
    assert ask(server, "start")[0] == 200


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, TypeError])
def test_an_image_that_the_network_cannot_take_gets_a_line(server, monkeypatch, kind):
    def fail(picture):
        raise kind("Given groups=1, expected input[1, 1, 3, 3] to have 3 channels\nand more")

    monkeypatch.setattr(server.answers, "subjects", (Subject("broken", network(), fail),))
    status, answer = post(server, coded(picture().image))
    assert status == 500
    assert answer["error"].endswith("to have 3 channels")


def test_only_the_last_images_are_kept(server):
    _, first = post(server, coded(picture().image))
    for _ in range(4):
        post(server, coded(picture().image))
    status, _, content = ask(server, f"map?image={first['image']}&x=0.5&y=0.5")
    assert status == 400
    assert "choose it again" in json.loads(content)["error"]


def test_pictures_are_upright_and_small_enough():
    wide = Image.new("RGB", (1300, 700))
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = read_picture("a\nb\x00.jpg", coded(wide, "JPEG", exif=exif)).to_json()
    assert (shown["name"], shown["height"]) == ("ab.jpg", SIDE)
    assert shown["width"] < shown["height"]
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        assert read_picture("x", coded(Image.new(mode, (3, 2)), kind)).image.mode == "RGB"


def test_networks_are_opened_or_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_subject(str(tmp_path / "weights.pth"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no trial in"):
        open_subject(str(tmp_path))
    net = create_network("emanet", 3, backbone="resnet18")
    net.save_pretrained(tmp_path / "ours")
    subject = open_subject(str(tmp_path / "ours"))
    assert subject.classes == ("class 0", "class 1", "class 2")
    assert subject.prepare(picture(33, 65)).shape == (3, 33, 65)
    create_network("fcn", 3, backbone="resnet18").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no block to look from"):
        open_subject(str(tmp_path / "bare"))


def test_networks_of_one_name_are_told_apart(tmp_path):
    paths = [str(tmp_path / study / "net") for study in ("one", "two")]
    for path in paths:
        create_network("emanet", 3, backbone="resnet18").save_pretrained(path)
    assert [one.name for one in open_subjects(paths)] == ["one/net", "two/net"]
    assert [one.name for one in open_subjects(paths[:1])] == ["net"]


def test_a_page_that_is_left_before_its_answer_leaves_no_traceback(capsys):
    with Server([Subject("tiny", network(), lambda picture: torch.rand(3, 16, 24))]) as running:
        for error in (BrokenPipeError(), KeyError("ours")):
            try:
                raise error
            except (BrokenPipeError, KeyError):
                running.handle_error(None, ("127.0.0.1", 1))
    said = capsys.readouterr().err
    assert "BrokenPipeError" not in said
    assert "KeyError" in said  # what is a fault of ours is not hidden


def test_images_of_other_bands_are_shown_as_they_came(monkeypatch, tmp_path):
    data = SimpleNamespace(
        in_chans=4, size=(4, 6), classes=["a"], val=Images(), normalise=lambda images: images.float() / 255
    )
    monkeypatch.setattr("lookfar.study.load_trial", lambda folder, images: (network(), data, ("1",)))
    (tmp_path / "config.json").write_text("{}")
    subject = open_subject(str(tmp_path))
    assert subject.prepare(subject.sample(0)).equal(data.val[0][0].float() / 255)
    with pytest.raises(ValueError, match="takes 4 bands"):
        subject.prepare(picture())


def test_the_page_is_part_of_the_package():
    import lookfar.explorer as package

    assert {path.name for path in Path(package.__file__).parent.iterdir()} >= {
        "explore.html",
        "explore.js",
        "explore.css",
    }
