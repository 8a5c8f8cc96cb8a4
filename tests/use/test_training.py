"""One network, one data set: a study's own trial, whose score `evaluate` gives again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lookfar.data import IGNORE
from lookfar.data.transforms import ScaledCrop
from lookfar.networks import create_network
from lookfar.networks.own import OwnHost
from lookfar.study.worker import run_trial
from lookfar.tasks import Segmentation
from lookfar.use import PRESETS, evaluate, open_network, train_network


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Images with masks, and trials that run in this process."""
    for part in ("train", "val"):
        for number in range(2):
            for kind, top, shape in (("images", 256, (24, 33, 3)), ("masks", 3, (24, 33))):
                path = tmp_path / "photos" / part / kind / f"{part}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.RandomState(7 * number + len(part)).randint(0, top, shape)
                Image.fromarray(pixels.astype(np.uint8)).save(path)

    def run_here(scheduler):
        for trial in scheduler.waiting:
            result = run_trial(trial.folder)
            (trial.folder / "result.json").write_text(json.dumps({"status": "done", "reason": "", **result}))

    monkeypatch.setattr("lookfar.study.running.Scheduler.run", run_here)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_then_evaluate(photos, run):
    code, out, err = run(
        "train", "--network", "cgnet", "--data", "photos", "--out", "runs/cg", "--steps", "2", "--batch-size", "2",
        "--crop", "16x16", "--size", "20x28", "--optimizer", "sgd", "--schedule", "poly", "--accelerator", "cpu",
    )  # fmt: skip
    assert code == 0, err
    folder = photos / "runs/cg/trials/baseline/0"
    result = json.loads((folder / "result.json").read_text())
    said = f"mIoU {100 * result['miou']:.2f} %, accuracy {100 * result['accuracy']:.2f} %"
    assert said in out
    before = (folder / "final.safetensors").stat().st_mtime_ns
    code, out, err = run("evaluate", "--network", "runs/cg")  # a study's only trial
    assert code == 0, err
    assert said in out
    opened = open_network(folder)
    assert type(opened.network).__name__ == "CGNet"
    assert evaluate(opened, opened.data, score="training").to_dict()["miou"] == result["miou"]
    again = train_network(
        "cgnet", "photos", "runs/cg", steps=2, batch_size=2, crop=(16, 16), size=(20, 28), optimizer="sgd",
        schedule="poly", accelerator="cpu", quiet=True,
    )  # fmt: skip
    assert again.result["miou"] == result["miou"]
    assert (folder / "final.safetensors").stat().st_mtime_ns == before
    code, out, err = run("train", "--network", "cgnet", "--data", "photos", "--out", "runs/cg", "--steps", "3")
    assert code == 2
    assert "steps" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "41k"), "41k"), (("--crop", "0x4"), "crop must be height and width"),
        (("--network", "danett"), "no host is called"), (("--network", "cgnet", "--weights", "x.pth"), "has none"),
        (("--network", "danet_resnet50_d8", "--weights", "x.pth"), "x.pth"),
        (("--data", "scenes:red"), "segmentation"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(photos, run, arguments, message):
    given = ("--network", "small", "--data", "photos", "--out", "runs/no", "--steps", "1", "--accelerator", "cpu")
    code, _, err = run("train", *given, *arguments)
    assert code == 2, err
    assert message in " ".join(err.split())


def test_presets_are_schedules_of_mmsegmentation():
    assert PRESETS["40k"]["steps"] == 40_000
    assert {name: PRESETS["80k"][name] for name in ("optimizer", "lr", "weight_decay", "schedule", "crop")} == {
        "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "schedule": "poly", "crop": (512, 1024),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "further"), [("danet", (1.0, 1.0, 0.4)), ("fcn", (0.4,)), ("ocrnet", (0.4,))])
def test_auxiliary_losses_count(name, further):
    thin = {"channels": (4, 8, 16, 32), "stem_width": 4}
    network = create_network(name, 3, backbone_options=thin, dropout=0.0)
    images, targets = torch.randn(2, 3, 33, 40), torch.randint(0, 3, (2, 33, 40))
    targets[0, :5] = IGNORE
    outputs = network(images)
    losses = [
        F.cross_entropy(y, targets, ignore_index=IGNORE, reduction="sum") for y in (outputs.logits, *outputs.auxiliary)
    ]
    wanted = losses[0] + sum(share * loss for share, loss in zip(further, losses[1:]))
    for host in (network, OwnHost(network, place="")):
        total, count = Segmentation().learn(host, images, targets, None)
        torch.testing.assert_close(total, wanted)
        assert count == (targets != IGNORE).sum()
    total.backward()
    assert all(p.grad is not None for p in network.auxiliary.parameters())


# ---- crops -------------------------------------------------------------------------------------------------------


def test_crops_have_one_size_and_fit_their_masks():
    """The image shows its own labels, so that it must be moved as the mask is."""
    mask = torch.arange(40).repeat_interleave(4)[None].expand(90, -1).to(torch.uint8)
    image = (5 * mask).repeat(3, 1, 1)
    sizes = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        view, labels = ScaledCrop((64, 80), distort=False)(image, mask, generator)
        assert (view.shape, labels.shape) == ((3, 64, 80), (64, 80))
        real = labels != IGNORE
        sizes.add(int(real.sum()))
        assert ((view[0].float() / 5)[real] - labels[real].float()).abs().max() <= 1.5  # edges are mixed
        assert (view[:, ~real] == torch.tensor([124, 116, 104])[:, None]).all()
        state = torch.get_rng_state()
        same = ScaledCrop((64, 80), distort=False)(image, mask, torch.Generator().manual_seed(seed))
        assert torch.equal(same[0], view)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(sizes) > 1  # small images are padded


def test_crops_show_more_than_one_class():
    mask = torch.zeros(64, 256, dtype=torch.uint8)
    mask[:, 240:] = 1
    crop = ScaledCrop((32, 32), scale=(1.0, 1.0), flip=0.0, distort=False)
    image = torch.zeros(3, 64, 256, dtype=torch.uint8)
    shown = [len(crop(image, mask, torch.Generator().manual_seed(seed))[1].unique()) for seed in range(60)]
    assert sum(count > 1 for count in shown) > 15  # with a single try it would be four
    one = ScaledCrop((32, 32), most=0.75)(image, torch.zeros_like(mask), torch.Generator().manual_seed(0))
    assert one[1].shape == (32, 32)


def test_colours_are_distorted_within_bounds():
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    mask = torch.arange(64).reshape(8, 8).to(torch.uint8) % 3
    crop = ScaledCrop((8, 8), scale=(1.0, 1.0), flip=0.0)
    seen = torch.stack([crop(image, mask, torch.Generator().manual_seed(seed))[0][:, 0, 0] for seed in range(200)])
    assert (seen == seen[:, :1]).all()  # grey stays grey, whatever saturation and hue
    assert seen.min() >= 34
    assert seen.max() <= 198  # (100 ± 32) x 0.5 .. 1.5
    assert 20 < (seen[:, 0] == 100).sum() < 80  # a quarter changes neither brightness nor contrast
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    seen = torch.stack([crop(colour, mask, torch.Generator().manual_seed(seed))[0][:, 0, 0] for seed in range(200)])
    assert len(seen.unique(dim=0)) > 100
    assert crop(image[:1], mask, torch.Generator().manual_seed(0))[0].eq(100).all()
