"""Networks judged on data: at the size of the files, whatever lies in them, and a trial by its own rule."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lookfar.data.judged import open_judged
from lookfar.networks import Inference, create_network, predict
from lookfar.tasks.segmentation import scores
from lookfar.use import Opened, evaluate, open_network, read_image
from lookfar.use.evaluating import check_classes

NAMES = "sky\nroad\ncar\n"


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def draw(number, *shape, top=256):
    return np.random.RandomState(number).randint(0, top, shape)


@pytest.fixture
def photos(tmp_path):
    """Two images of different sizes, one lying on its side, and masks without the third class."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, size in enumerate([(40, 33), (21, 60)]):
        save(tmp_path / f"images/{number}.png", draw(number, *size, 3), **({"exif": exif} if number else {}))
        mask = draw(9 + number, *(size[::-1] if number else size), top=2)
        mask[:3] = 255
        save(tmp_path / f"masks/{number}.png", mask)
    (tmp_path / "classes.txt").write_text(NAMES)
    return tmp_path


def test_one_matrix_over_all_images_at_their_own_size(opened, photos):
    found = evaluate(opened, open_judged(str(photos)))
    total = np.zeros((3, 3), np.int64)
    for number in range(2):
        labels = predict(opened.network, read_image(photos / f"images/{number}.png")).numpy()
        mask = np.array(Image.open(photos / f"masks/{number}.png"))
        np.add.at(total, (mask[mask < 255], labels[mask < 255]), 1)
    assert (found.confusion == total).all()
    assert found.absent == ["car"]
    about = found.to_dict()
    assert about["miou"] == scores(total)["miou"]
    assert about["iou"]["car"] is None
    assert about["images"] == 2
    text = str(found)
    assert f"mIoU {100 * about['miou']:.2f} %, accuracy {100 * about['accuracy']:.2f} %: 2 images of" in text
    assert "left out of the mean, since no mask shows them: car" in text
    whole = evaluate(opened, open_judged(str(photos)), whole=True)
    assert (whole.confusion != total).any()


def test_a_split_alone(opened, tmp_path):
    """Neither train nor val need be there; 11 is nothing in CamVid."""
    save(tmp_path / "test/a.png", draw(0, 20, 30, 3))
    save(tmp_path / "testannot/a.png", draw(1, 20, 30, top=12))
    (tmp_path / "classes.txt").write_text("".join(f"class {n}\n" for n in range(11)))
    data = open_judged(f"camvid:{tmp_path}", "test")
    assert (len(data.val), len(data.classes)) == (1, 11)
    assert set(np.unique(data.own_target(0).numpy())) == {*range(11), 255}
    with pytest.raises(FileNotFoundError, match="no val with valannot"):
        open_judged(f"camvid:{tmp_path}")
    with pytest.raises(ValueError, match="has 3 classes, the data have 11"):
        evaluate(opened, data)


def test_splits_of_a_folder(photos, tmp_path):
    assert len(open_judged(str(photos)).val) == 2
    for split in ("train", "val"):
        for number in range(2 if split == "train" else 1):
            save(photos / f"{split}/images/{number}.png", draw(number + len(split), 9, 9, 3))
            save(photos / f"{split}/masks/{number}.png", draw(number, 9, 9, top=2))
    assert len(open_judged(str(photos)).val) == 1
    assert len(open_judged(str(photos), "train").val) == 2
    assert len(open_judged(str(photos), str(photos)).val) == 2
    with pytest.raises(FileNotFoundError, match="no data called"):
        open_judged(str(photos / "nowhere"))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["sky", "car", "road"], "another order: 1 is road in the network, car in the data, whose place .* is 2"),
        (["road", "Sky", "bus"], "another order: 0 is sky in the network, road in the data"),
        (["sky", "road"], "has 3 classes, the data have 2: sky, road"),
    ],
)
def test_other_classes(opened, classes, message):
    with pytest.raises(ValueError, match=message):
        check_classes(opened, classes)


def test_names_that_differ_are_said(opened):
    assert check_classes(opened, ["Sky", "road", "bus"]) == ["names of classes differ (network / data): 2 car / bus"]
    assert check_classes(opened, ["sky ", "Road", "c-a-r"]) == []
    assert check_classes(opened, [f"class {n}" for n in range(3)]) == []


def test_masks_in_which_0_is_no_class(opened, photos, run):
    network = opened.network
    own, network.inference = network.inference, Inference(reduce_zero_label=True)
    try:
        network.config = {**network.config, "inference": network.inference}
        network.save_pretrained(photos / "network")
    finally:
        network.inference = own
        network.config = {**network.config, "inference": own}
    for number in range(2):
        mask = np.array(Image.open(photos / f"masks/{number}.png"))
        save(photos / f"masks/{number}.png", np.where(mask == 255, 0, mask + 1))
    code, out, err = run("evaluate", "--network", str(photos / "network"), "--data", str(photos), "--whole", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert "0 in masks is no class and 1 is class 0" in found["notes"][0]
    for number in range(2):
        mask = np.array(Image.open(photos / f"masks/{number}.png")).astype(int)
        save(photos / f"masks/{number}.png", np.where(mask == 0, 255, mask - 1))
    assert found["confusion"] == evaluate(opened, open_judged(str(photos)), whole=True).confusion.tolist()


def test_the_command(opened, roads, photos, run, tmp_path):
    arguments = ("evaluate", "--network", str(roads), "--data", str(photos), "--out", str(tmp_path / "out"))
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "mIoU" in out
    written = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert written == evaluate(opened, open_judged(str(photos))).to_dict() | {"network": str(roads)}
    with Image.open(tmp_path / "out/confusion.png") as picture:
        assert picture.size[0] > 100
    for wrong, message in [
        (("--data", str(tmp_path / "no")), "no data called"), (("--tile", "0x"), "tile must be N or HxW"),
        (("--scales", "1,a"), "scales must be numbers"), (("--scales", "0"), "between 0 and 16"),
        (("--score", "training"), "for the trial of a study"), (("--val", "nowhere"), "neither a share"),
    ]:  # fmt: skip
        code, out, err = run(*arguments, *wrong)
        assert code == 2, wrong
        assert message in " ".join(err.split())
    code, out, err = run("evaluate", "--network", str(roads))
    assert "give --data PATH" in " ".join(err.split())  # lines end where the folder's length puts it


def test_predict_command(roads, photos, run, tmp_path):
    (photos / "images/bad.png").write_bytes(b"no")
    code, out, err = run("predict", str(photos / "images"), "--network", str(roads), "--out", str(tmp_path / "out"))
    assert code == 1
    assert out.startswith("2 of 3 images in")
    assert "bad.png: no image of a known format" in err
    assert "1 of 3 images could not be predicted" in err
    code, out, err = run("predict", "*.nothing", "--network", str(roads), "--out", str(tmp_path / "out"))
    assert (code, err.strip()) == (2, "lookfar: no file matches *.nothing")


def test_many_images_are_predicted_by_the_optimized_network(roads, run, tmp_path, monkeypatch):
    from lookfar.use import command

    used = []
    write = command.predict_files
    monkeypatch.setattr(
        command, "predict_files", lambda opened, *args, **more: used.append(opened) or write(opened, *args, **more)
    )
    for number in range(command.MANY):
        save(tmp_path / f"images/{number}.png", draw(number, 40, 33, 3))

    def labels(out, *images):
        code, _, err = run("predict", *map(str, images), "--network", str(roads), "--out", str(tmp_path / out))
        assert code == 0, err
        return np.array(Image.open(tmp_path / out / "0_labels.png"))

    def norms():
        return sum(isinstance(m, torch.nn.BatchNorm2d) for m in used[-1].network.modules())

    few = labels("few", tmp_path / "images/0.png")
    alone = norms()
    many = labels("many", tmp_path / "images")
    assert norms() < alone
    assert len(np.unique(few)) > 1
    assert (few != many).mean() < 1e-3
    monkeypatch.setattr(command, "EXAMPLE", (0, 0))  # an image that this network cannot take
    labels("as it is", tmp_path / "images")
    assert norms() == alone


def test_tiny_numbers_are_zero_while_a_command_runs_a_network(roads, photos, run, tmp_path, monkeypatch):
    from lookfar.use import command

    def tiny():
        return torch.tensor(1e-39).mul(1).item()

    seen = []
    for name in ("predict_files", "evaluate"):
        before = getattr(command, name)
        monkeypatch.setattr(command, name, lambda *a, f=before, **more: seen.append(tiny()) or f(*a, **more))
    network = ("--network", str(roads))
    assert run("predict", str(photos / "images/0.png"), *network, "--out", str(tmp_path / "out"))[0] == 0
    assert run("evaluate", *network, "--data", str(photos))[0] == 0
    assert seen == [0, 0]
    assert tiny() > 0


def test_a_trial_is_judged_as_it_was_trained(tmp_path, run, photos):
    from lookfar.study.plan import Plan
    from lookfar.study.worker import run_trial

    for part in ("train", "val"):
        for number in range(2):
            save(photos / part / f"images/{number}.png", draw(number + 2 * len(part), 24, 33, 3))
            save(photos / part / f"masks/{number}.png", draw(number, 24, 33, top=3))
    plan = Plan(
        data=str(photos), blocks=("cbam",), steps=2, host="small", batch_size=2, size=(16, 24), accelerator="cpu"
    )
    folder = tmp_path / "study/trials/baseline/0"
    folder.mkdir(parents=True)
    plan = plan.resolved()
    config = {"plan": plan.to_dict(), "candidate": "baseline", "seed": 0, "control_parameters": 0}
    (folder / "config.json").write_text(json.dumps(config))
    result = run_trial(folder)
    (folder / "result.json").write_text(json.dumps({"status": "done", "reason": "", **result}))
    opened = open_network(folder)
    assert isinstance(opened, Opened)
    found = evaluate(opened, opened.data, score="training")
    assert found.to_dict()["miou"] == result["miou"]
    own = evaluate(opened, opened.data)
    assert own.confusion.sum() == 2 * 24 * 33
    with torch.no_grad():
        image = opened.data.val[0][0]
        logits = opened.network(opened.data.normalise(image[None]))
    seen = torch.nn.functional.interpolate(logits, (24, 33), mode="bilinear")[0].argmax(0)
    labels = predict(opened.network, read_image(photos / "val/images/0.png"))
    assert (labels == seen).float().mean() > 0.99
    code, out, err = run("evaluate", "--network", str(folder), "--json")
    assert json.loads(out)["miou"] == result["miou"], err
    assert json.loads(out)["score"] == "at 16×24, as it was trained"


def test_wide_numbers_are_white_as_predict_has_it(photos):
    """Not by the brightest of the images that are judged."""
    wide = (draw(3, 20, 30) * 100).astype(np.uint16)
    for number in range(2):
        (photos / f"images/{number}.png").unlink()
        Image.fromarray(wide).save(photos / f"images/{number}.png")
        save(photos / f"masks/{number}.png", draw(number, 20, 30, top=2))
    assert (open_judged(str(photos)).val[0][0] == read_image(photos / "images/0.png")).all()
    found = open_judged(str(photos), white=25500.0).val[0][0]
    assert (found == read_image(photos / "images/0.png", peak=25500.0)).all()


@pytest.mark.parametrize(
    ("spec", "split", "says"),
    [("voc", "tset", "voc has no split 'tset'"), ("cifar10", None, "a label for each image; want images with masks")],
)
def test_splits_that_are_not_there_are_refused(tmp_path, monkeypatch, spec, split, says):
    whole = SimpleNamespace(train=[], val=[], classes=["a"], classes_from="", table=None, labels=None)
    monkeypatch.setattr("lookfar.data.torchvision_sets.read", lambda *_, **__: whole)
    with pytest.raises(ValueError, match=says):
        open_judged(f"{spec}:{tmp_path}", split)


def test_classes_of_a_named_network_are_given(run, tmp_path, photos):
    torch.save(create_network("cgnet", 3).state_dict(), tmp_path / "w.pth")
    given = ("--network", "cgnet", "--weights", tmp_path / "w.pth", "--data", photos, "--classes", 3)
    code, out, err = run("evaluate", *given)
    assert code == 0, err
    assert "mIoU" in out
    assert "what surrounds cgnet" in " ".join(err.split())
