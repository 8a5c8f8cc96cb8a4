"""``lookfar inspect``: networks of trials, studies and one's own; labelled data and bare images; what is refused."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from image_trees import make_photos
from PIL import Image

from lookfar import create_network
from lookfar.insight import find_subjects, inspect_subject
from lookfar.insight.subjects import _smaller, of_images
from lookfar.insight.words import lines_of
from lookfar.study import Plan, load
from lookfar.study._files import write_json
from lookfar.study.plan import trial_folder
from lookfar.study.worker import run_trial

OWN = """
import lookfar
import torch
from torch import nn
from lookfar import create_block

def build():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), create_block("nonlocal", 8, zero_init=False), nn.Conv2d(8, 3, 1))
    nn.init.zeros_(network[1].query.weight)
    return network

def bare(classes=2):
    return nn.Conv2d(3, classes, 1)

def needy(classes):
    return bare(classes)

def nothing():
    return 3

def named():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), create_block("local_attention", 8, zero_init=False), create_block("nonlocal", 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
    nn.init.constant_(network[5].bias[:1], 50)  # the same class for all images
    return network

def strided():
    network = build()
    network[2] = nn.Conv2d(8, 2, 1)
    return network

def brought_up():
    return nn.Sequential(*strided(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))

class Wrapped(nn.Sequential):
    def forward(self, x):
        return {"out": super().forward(x)}

def wrapped():
    return Wrapped(*build())

class Square(nn.Conv2d):
    def forward(self, x):
        assert x.shape[2] == x.shape[3], "not square"
        return super().forward(x)

def square():
    return nn.Sequential(Square(3, 8, 1), create_block("nonlocal", 8))

class Mine(nn.Module):  # of nobody's registry
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv(x.mean((2, 3), keepdim=True))

def mine():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)).eval()
    lookfar.insert(network, Mine, at="1", example=torch.zeros(1, 3, 24, 32))
    return network

class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.whole, self.spare = build(), create_block("nonlocal", 8)

    def forward(self, x):
        return self.whole(x)

def partly():
    return Partly()

class Other(nn.Module):  # attends from elsewhere
    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.attention(tokens[:, :1], tokens, tokens)[0][:, 0]

def other():
    return Other()

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.shared = nn.Conv2d(3, 8, 3, 2, 1), create_block("nonlocal", 8, zero_init=False)
        self.pooled, self.classify = create_block("asymmetric_nonlocal", 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.classify(self.pooled(self.shared(self.shared(self.down(x))[..., ::2, ::2])))

def twice():
    return Twice()

def broken():
    network = build()
    nn.init.constant_(network[2].bias, float("nan"))
    return network
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study of three steps on pairs of images and masks, and a network of one's own."""
    home = tmp_path_factory.mktemp("inspect")
    make_photos(home / "data", train=4, val=6)
    plan = Plan(
        str(home / "data"), ("nonlocal", "squeeze_excitation"), seeds=1, steps=3, batch_size=2, host="small",
        accelerator="cpu", groups=r"val\d",
    ).resolved()  # fmt: skip
    study = home / "study"
    study.mkdir()
    plan.save(study / "study.yaml")
    for candidate in ("baseline", "nonlocal", "squeeze_excitation"):
        folder = trial_folder(study, candidate, 0)
        folder.mkdir(parents=True)
        config = {"candidate": candidate, "seed": 0, "control_parameters": 50, "plan": plan.to_dict()}
        write_json(folder / "config.json", config)
        write_json(folder / "result.json", {"status": "done", "reason": "", **run_trial(folder)})
    write_json(study / "environment.json", {"data": {"val_names": [f"val{n}" for n in range(6)]}})
    (home / "own.py").write_text(OWN)
    (home / "empty").mkdir()
    (home / "broken.png").write_bytes(b"no image")
    np.save(home / "light.npy", np.ones((24, 32, 3), np.float32))
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "config.json").write_text('{"model_type": "vit"}')
    return home


@pytest.fixture
def run(run, home, monkeypatch):
    """Run the command in this process, in ``home``: exit code, what it printed, what it complained of."""
    monkeypatch.chdir(home)
    return functools.partial(run, "inspect")


def test_a_study_with_its_labels_as_json(run, home):
    code, out, _ = run("study", "--json")
    assert code == 0
    first, second = json.loads(out)
    assert (first["network"], first["labels"], first["images"]) == ("nonlocal", True, 6)
    assert [rung["kind"] for rung in first["ladder"]] == ["off", "uniform", "mean", "other"]
    assert set(first["scores"]) == {"full", "off", "uniform", "mean", "other", "pairwise", "unary", "constant"}
    result = json.loads((trial_folder(home / "study", "nonlocal", 0) / "result.json").read_text())
    assert first["scores"]["full"] == pytest.approx(100 * result["miou"])
    assert first["at initialisation"]["entropy_normalised"]["mean"][0] == pytest.approx(1, abs=0.01)
    assert (first["maps"], second["maps"]) == ([""], None)
    assert second["verdict"] in ("on", "off", "harms", "open")
    assert "squeeze_excitation has no weights over positions" in second["said"]
    assert second["statistics"] is None
    assert not (home / "inspect").exists()


def test_bare_images_give_a_page_and_pictures(run, home):
    trial = trial_folder(home / "study", "nonlocal", 0)
    code, out, _ = run(trial, "data/val/images", "--query", "5,7", "--out", "seen")
    assert code == 0
    assert re.match(r"\nnonlocal \(nonlocal\), 6 images\n", out)
    assert "labelled" not in out
    page = (home / "seen" / "inspect.html").read_text()
    assert "Content-Security-Policy" in page
    assert not re.search(r"(?:src|href)=[\"']https?:", page)
    assert "Predictions that change" in page
    assert "true classes of" not in page
    names = sorted(path.name for path in (home / "seen").glob("*.png"))
    assert names == [f"nonlocal-val{n}-5-7.png" for n in range(4)]
    with Image.open(home / "seen" / names[0]) as sheet:
        width = 32 * 8  # the image as often as fills the panel
        assert sheet.size[0] == 5 * width + 4 * 4  # image, map, mean, pairwise, unary


def test_blocks_that_do_without_different_things_share_a_page(run, home):
    """A study's squeeze-and-excitation has no maps; a window's has no two terms."""
    assert run("study", "--out", "both")[0] == 0
    page = (home / "both" / "inspect.html").read_text()
    rows = page.partition('id="verdicts"')[2].partition("</table>")[0].split("<tr>")[2:]
    assert [row.count(">–</td>") for row in rows] == [0, 5]
    assert run("--network", "own.py:named", "data/val/images", "--out", "named")[0] == 0


def test_few_images_of_one_outcome_leave_a_block_open_unless_it_adds_nothing(run, home):
    window, start = json.loads(run("--network", "own.py:named", "data/val/images", "--json")[1])
    assert (window["scores"]["off"], window["verdict"]) == (0, "open")
    assert (start["scores"]["off"], start["verdict"]) == (0, "off")


def test_logits_of_a_stride_are_judged_at_the_size_of_the_masks(run, home):
    """As those of a network that ends in its last feature map: the same numbers as where it brings them up itself."""
    found = {}
    for name in ("strided", "brought_up"):
        code, out, err = run("--network", f"own.py:{name}", "--data", "data", "--out", name, "--json")
        assert code == 0, err
        (found[name],) = json.loads(out)
        assert "What it predicts" in (home / name / "inspect.html").read_text()
    for kind, score in found["strided"]["scores"].items():
        assert score == pytest.approx(found["brought_up"]["scores"][kind], abs=1e-6), kind


def test_a_large_image_is_said_to_take_time(tmp_path, monkeypatch):
    monkeypatch.setattr("lookfar.insight.subjects.LARGE", 1000)
    Image.new("RGB", (400, 200)).save(tmp_path / "large.png")
    with pytest.warns(UserWarning, match=r"images of 200×400: --size 32x32 takes far less time"):
        of_images([str(tmp_path / "large.png")])
    of_images([str(tmp_path / "large.png")], (200, 400))  # asked for: a warning would fail here


def test_a_smaller_size_has_the_proportions():
    assert _smaller((4000, 6000)) == "416x640"


def test_a_pixel_outside_is_refused_before_anything_is_measured(run, home, monkeypatch):
    monkeypatch.setattr("lookfar.insight.command.inspect_subject", lambda subject: pytest.fail("measured"))
    code, _, err = run("study/trials/nonlocal/0", "data/val/images", "--query", "32,0")
    assert code == 2
    assert "lies outside" in err


def test_a_network_of_ones_own(run, home):
    arguments = ["--network", "own.py:build", "data/val/images", "--size", "12x16", "--json"]
    (found,) = json.loads(run(*arguments)[1])
    assert found["verdict"] in ("one map", "pools", "off")  # its query has no weights
    assert found["labels"] is False
    assert found["at initialisation"] is None
    with pytest.raises(ValueError, match="of the registry"):
        inspect_subject(find_subjects(None, ["data/val/images"], network="own.py:bare")[0])
    (five,) = find_subjects(None, ["data/val/images"], network="own.py:bare(classes=5)")
    assert five.network.out_channels == 5
    state = {"0.weight": torch.zeros(8, 3, 3, 3)}
    torch.save(state, home / "wrong.pth")
    code, _, err = run(*arguments, "--weights", "wrong.pth")
    assert code == 2
    assert "wrong.pth does not fit own.py:build: these weights: no key starts with '1.'" in " ".join(err.split())
    torch.save({"weight": torch.zeros(2, 3, 1, 1)}, home / "half.pth")
    code, _, err = run("--network", "own.py:bare", "data/val/images", "--weights", "half.pth")
    assert code == 2
    assert (
        "half.pth does not fit own.py:bare: 1 weights are missing, 0 unknown, 0 of another shape, such as bias"
        in " ".join(err.split())
    )
    torch.save(torch.nn.Linear(1, 1), home / "pickled.pth")
    assert run(*arguments, "--weights", "pickled.pth")[0] == 2  # what would run code is not loaded


def test_a_block_of_ones_own_is_asked_what_it_can_be_asked(run, home):
    """It has no maps; what the network does without it counts all the same."""
    code, out, err = run("--network", "own.py:mine", "data/val/images", "--json")
    assert (code, err) == (0, "")
    (one,) = json.loads(out)
    assert (one["module"], one["block"], one["statistics"]) == ("1.mine", "Mine", None)
    assert {"off"} <= one["scores"].keys()
    assert one["said"].endswith("Not a block of the registry")
    assert run("--network", "own.py:mine", "data/val/images")[0] == 0


def test_a_block_that_cannot_be_asked_leaves_the_others(run, home):
    code, out, err = run("--network", "own.py:partly", "data/val/images", "--json")
    assert code == 0
    assert [one["module"] for one in json.loads(out)] == ["whole.1"]
    assert "spare: the network does not call it, so not shown" in err


def test_each_call_has_its_pictures_and_what_has_none_says_why(run, home):
    code, out, err = run(
        "--network", "own.py:twice", "data/val/images/val0.png", "--size", "24x24", "--query", "2,3", "--out", "calls"
    )
    assert code == 0
    first, second = sorted(path.name for path in (home / "calls").glob("*.png"))
    assert re.fullmatch(r"twice-shared-\w+-val0-2-3-call1.png", first)
    assert second == first.replace("call1", "call2")
    assert err == "lookfar: no pictures of twice · pooled: its 110 keys form no grid\n"
    said = " ".join(out.split())
    assert said.count("the network calls it 2 times for an image: numbers of its maps are those of the last call") == 1
    assert said.endswith("inspect.html, and 2 pictures of queries")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "own.py:other", "data/val/images"], "nothing to inspect, it attends from one sequence"),
        (
            ["--network", "own.py:needy", "data/val/images"],
            "cannot build needy(): TypeError: needy() missing 1 required",
        ),
        (["study", "empty"], "no images in the folder empty"),
        (["--network", "own.py:wrapped", "data/val/images"], "gives dict, want logits (B, K) or (B, K, h, w): give a"),
        (
            ["--network", "own.py:square", "data/val/images"],
            "cannot take images (1, 3, 24, 32): AssertionError: not square",
        ),
        (["study", "broken.png"], "cannot read broken.png"),
        (["study", "absent.png"], "no image absent.png"),
        (["study", "light.npy"], "holds float32 numbers, and nothing says which is white"),
        (["study/trials/baseline/0"], "without a block"),
        (["empty"], "empty holds no config.json with model.safetensors"),
        (["elsewhere"], "no trial in elsewhere"),
        (["absent"], "no network absent"),
        (["study", "--weights", "absent.pth"], "weights go with the name of a network; study is not one"),
        (["study", "--size", "12x16"], "a trial sees its data at 24×32: --size is for images"),
        (
            ["--network", "own.py:build", "--data", "scenes:lookup", "--size", "32x32"],
            "embedded as it is: scenes of 64×64",
        ),
        (["--network", "own.py:broken", "data/val/images"], "broken cannot be judged"),
        ([], "name a trial's folder"),
        (["study", "data/val/images", "--data", "data"], "not both"),
        (["study", "--query", "here"], "--query X,Y in pixels"),
        (["study/trials/nonlocal/0", "data/val/images/val0.png", "--query", "32,0"], "lies outside the image of 32×24"),
        (["--network", "own.py:bare", "data/val/images"], "no block of the registry"),
        (["--network", "own.py:nothing", "data/val/images"], "gives int, want a torch.nn.Module"),
        (["--network", "own.py:build"], "nothing to look at"),
        (["study", "--margin", "-1"], "margin must be from 0 to 100"),
        (["study", "--size", "3x3x3"], "size must be two numbers"),
        (["study", "--size", "0x3"], "size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2, err
    assert said in " ".join(err.split())
    assert len(err.splitlines()) <= 3
    assert max(map(len, err.splitlines())) <= 80


def test_a_network_that_was_saved_is_looked_at_as_it_sees_images(home, run):
    create_network("emanet", 3, backbone="resnet18").save_pretrained(home / "ours")
    (subject,) = find_subjects(str(home / "ours"), [str(home / "data/val/images/val0.png")], size=(32, 40))
    assert list(subject.data.classes) == ["class 0", "class 1", "class 2"]
    image = subject.data.val[0][0]
    torch.testing.assert_close(subject.data.normalise(image[None]), subject.network.preprocessing(image[None]))
    torch.save(subject.network.state_dict(), home / "ours.pth")
    code, _, err = run("emanet_resnet18_d8", "data/val/images", "--weights", "ours.pth")
    assert code == 2
    assert "number of classes, got None: --data says it" in " ".join(err.split())
    code, _, err = run("ours", "--data", "data", "--json")
    assert code == 2
    assert "ours has 3 classes, the data have 2" in err


def test_groups_are_those_of_the_study_and_of_no_other_images(home):
    trial = trial_folder(home / "study", "nonlocal", 0)
    study = load(home / "study")
    (own,) = find_subjects(str(trial))
    assert own.groups == study.conclusions.groups
    assert own.groups.labels == tuple(f"val{n}" for n in range(6))
    (other,) = find_subjects(str(trial), [str(home / "data/train/images")], size=(20, 28))
    assert other.groups.noun == "image"  # which the plan's pattern finds nothing in
    assert other.data.val[0][0].shape == (3, 20, 28)


def test_images_of_one_name_keep_a_picture_each(run, home):
    for folder in ("a", "b"):
        (home / "both" / folder).mkdir(parents=True)
        shutil.copy(home / "data/val/images/val0.png", home / "both" / folder / "1.png")
    arguments = ["--network", "own.py:build", "both/a", "both/b/1.png", "--query", "2,3", "--out", "pictures"]
    assert run(*arguments)[0] == 0
    assert len([*(home / "pictures").glob("*.png")]) == 2


def test_what_a_study_has_not_finished_is_said(run, home, tmp_path):
    shutil.copytree(home / "study", tmp_path / "half")
    (trial_folder(tmp_path / "half", "squeeze_excitation", 0) / "result.json").unlink()
    code, out, err = run(tmp_path / "half", "--json")
    assert (code, [one["network"] for one in json.loads(out)]) == (0, ["nonlocal"])
    assert err == "lookfar: squeeze_excitation: not finished at seed 0, so not shown\n"


def test_a_network_is_left_as_it_was_and_text_has_its_numbers(home):
    (subject,) = find_subjects(str(trial_folder(home / "study", "nonlocal", 0)))
    state = {key: value.clone() for key, value in subject.network.state_dict().items()}
    random = torch.get_rng_state()
    (one,) = inspect_subject(subject)
    assert torch.get_rng_state().equal(random)
    assert all(subject.network.state_dict()[key].equal(value) for key, value in state.items())
    assert not any(module._forward_hooks for name, module in subject.network.named_modules() if name == one.module)
    text = "\n".join(lines_of(one))
    assert str(one.told) in text
    assert "entropy_normalised" in text
    for kind in one.scores:
        assert {"uniform": "plain average", "other": "another image's map"}.get(kind, kind) in text
