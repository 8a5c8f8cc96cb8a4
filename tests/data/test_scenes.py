"""The embedded scenes: labels follow from what is in the picture, and nothing from validation is in training."""

import pytest
import torch

from lookfar.data import MemorySamples, open_data, target_of
from lookfar.data._worlds import COLOURS, MATCHES, RED, WORLDS
from lookfar.data.scenes import INK, Clouds, Scenes, load_digits, make_scenes


def test_digits_are_disjoint_and_complete():
    train, val = (load_digits(split) for split in ("train", "val"))
    assert len(train[0]) + len(val[0]) == 1797
    assert not {bytes(d.numpy()) for d in train[0]} & {bytes(d.numpy()) for d in val[0]}
    for images, labels in (train, val):
        assert labels.unique().tolist() == list(range(10))
        assert images.max() == 16


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    want = datasets.load_digits()
    got = torch.cat([load_digits("train")[0], load_digits("val")[0]])
    assert sorted(bytes(d.numpy()) for d in got) == sorted(bytes(d) for d in want.images.astype("uint8"))


@pytest.mark.parametrize("task", WORLDS)
def test_scenes_depend_on_seed_alone(task):
    image, label = make_scenes(task, "val", 6, 3)
    torch.rand(1)
    again = make_scenes(task, "val", 6, 3)
    assert torch.equal(image, again[0])
    assert torch.equal(label, again[1])
    assert not torch.equal(image, make_scenes(task, "val", 6, 4)[0])
    assert image.dtype == torch.uint8
    assert (label.dtype, label.dim()) == {"mask": (torch.uint8, 3), "class": (torch.int64, 1)}[
        target_of(f"scenes:{task}")
    ]


def cells(image):
    """``(C, n h, n h) -> (n n, C, h, h)``."""
    C, n = image.shape[0], 5 if image.shape[-1] == 40 else 4
    h = image.shape[-1] // n
    return image.reshape(C, n, h, n, h).permute(1, 3, 0, 2, 4).reshape(n * n, C, h, h)


def read_scene(image, digits, labels):
    """What stands in each cell, seen from the pixels: None, ("square", colour) or (class, colour), and its ink."""
    palette = torch.cat([COLOURS, torch.ones(1, 3)])
    things = []
    for cell in cells(image.float() / 255):
        strength = cell.amax(0)
        if strength.mean() < 0.15:
            things.append((None, None, None))
            continue
        bright = cell[:, strength > 0.7].mean(1)
        colour = int((palette - bright).square().sum(1).argmin())
        flat = cell[palette[colour] > 0].mean(0)
        h = len(flat)
        if flat[h // 4 : -h // 4, h // 4 : -h // 4].min() > 0.7 and flat[h // 8].amin() < 0.3:
            things.append(("square", colour, flat > 0.5))
            continue
        small = flat.reshape(8, h // 8, 8, h // 8).mean((1, 3))
        best = (digits.float() / 16 - small).square().sum((1, 2)).argmin()
        ink = (digits[best] >= INK).repeat_interleave(h // 8, 0).repeat_interleave(h // 8, 1)
        things.append((int(labels[best]), colour, ink))
    return things


def expected_mask(task, things):
    """The labels that the rule of the task gives to what was seen."""
    want = torch.zeros(16, 16, 16, dtype=torch.uint8)
    red = int((COLOURS == RED).all(1).nonzero()[0])
    cued = next((what for what, colour, _ in things if colour == red), None)
    parity = {colour: what % 2 for what, colour, _ in things if isinstance(what, int)}
    for cell, (what, colour, ink) in zip(want, things):
        if what is None:
            continue
        if task == "cue":
            label = 0 if colour == red else 1 if what == cued else 2
        else:
            label = (2 - parity[colour]) + (2 if what == "square" else 0)
        cell[ink] = label
    return want


@pytest.mark.parametrize("task", ["cue", "lookup"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_follow_from_the_picture(task, split):
    images, masks = make_scenes(task, split, 40, 0)
    for image, mask in zip(images, masks):
        things = read_scene(image, *load_digits(split))
        assert torch.equal(cells(mask[None])[:, 0], expected_mask(task, things))
        present = [what for what, _, _ in things if what is not None]
        colours = [colour for _, colour, _ in things if colour is not None]
        if task == "cue":
            labels = [int(cell.max()) for cell in cells(mask[None])]
            assert (labels.count(1), labels.count(2), len(present), len(set(colours))) == (4, 4, 9, 2)
        else:
            assert present.count("square") == 4
            assert sorted(colours.count(c) for c in set(colours)) == [2, 2, 2, 2]


@pytest.mark.parametrize("task", ["cue", "lookup"])
def test_open_scenes(task):
    data = open_data(f"scenes:{task}")
    assert (len(data.train), len(data.val), data.size, data.in_chans) == (6000, 600, (64, 64), 3)
    images, masks = data.batch(0, 0, 64)
    assert images.shape == (64, 3, 64, 64)
    assert masks.dtype == torch.int64
    assert masks.unique().tolist() == list(range(len(data.classes)))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=0.1, rtol=0)


def test_a_red_scene_is_called_what_its_red_digit_shows():
    images, labels = make_scenes("red", "val", 60, 0)
    for image, label in zip(images, labels):
        things = [thing for thing in read_scene(image, *load_digits("val")) if thing[0] is not None]
        assert len(things) == 9
        assert [what for what, colour, _ in things if colour == 0] == [int(label)]
    assert make_scenes("red", "train", 2000, 0)[1].bincount().min() > 150


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_match_scene_is_called_by_the_squares_of_its_digits_colour(split):
    scenes, lines = Scenes("match", split, 60, 3), set()
    for i in range(60):
        image, label = scenes[i]
        things = [thing for thing in read_scene(image, *load_digits(split)) if thing[0] is not None]
        squares = [colour for what, colour, _ in things if what == "square"]
        (colour,) = {colour for what, colour, _ in things if what != "square"}
        assert len(things) - len(squares) == 5
        assert squares.count(colour) == MATCHES[int(label)]
        # in whichever order, the numbers of squares are those of every scene: they alone say nothing
        assert sorted(squares.count(c) for c in {*squares, colour}) == [*MATCHES][label > 0 :]
        answer = scenes.answer(i)
        assert answer is not None
        asks, holds = (cells(part[None]).flatten(1) for part in answer)
        assert (asks == asks[:, :1]).all()
        assert (int(asks[:, 0].sum()), int(holds[:, 0].sum())) == (MATCHES[int(label)], 5 if label else 0)
        places = {
            divmod(k, 5): what
            for k, (what, *_) in enumerate(read_scene(image, *load_digits(split)))
            if what is not None
        }
        apart = [
            max(abs(y - v), abs(x - u))
            for (y, x), what in places.items()
            for (v, u), other in places.items()
            if what == "square" != other
        ]
        assert min(apart) == 3  # no window of 3x3 cells, not even one between them, holds a digit and a square
        lines.add(tuple(place for place, what in places.items() if what != "square"))
    assert len(lines) == 4
    counts = make_scenes("match", split, 2000, 0)[1].bincount()
    assert counts.min() > 580


@pytest.mark.parametrize("task", [name for name, world in WORLDS.items() if world.target == "class"])
def test_open_scenes_with_one_label(task):
    data = open_data(f"scenes:{task}")
    bands = 2 if task == "points" else 3
    assert (data.target, len(data.train), len(data.val), data.in_chans) == ("class", 6000, 600, bands)
    image, label = data.val[3]
    assert (image.shape, image.dtype) == ((bands, *data.size), torch.uint8)
    assert (label.shape, label.dtype) == ((), torch.int64)
    images, labels = data.batch(0, 0, 64)
    assert (images.shape, labels.shape, labels.dtype) == ((64, bands, *data.size), (64,), torch.int64)
    torch.testing.assert_close(images.transpose(0, 1).flatten(1).mean(1), torch.zeros(bands), atol=0.1, rtol=0)
    for samples in (data.train, data.val):
        assert isinstance(samples, MemorySamples)
        assert set(samples.targets.tolist()) == set(range(len(data.classes)))


def test_half_the_points_of_a_cloud_lie_on_the_ink_of_its_digit():
    """In any order, and of no other digit of the split so many."""
    scenes, (images, labels) = Clouds("val", 40, 3), load_digits("val")
    inked = images > 0
    for i in range(40):
        points, label = scenes[i]
        across, down = (points.long() * 8) // 256
        on_ink = inked[:, down, across].sum(1)
        assert int(on_ink[labels == label].max()) >= 48
        shown = scenes.picture(i)[0].nonzero()
        assert {(int(y), int(x)) for y, x in shown} == {(int(y), int(x)) for x, y in (points.long() // 4).T}
    # a position in the cloud says nothing: the first half lies on ink as often as the second
    many = Clouds("val", 400, 0)
    density = torch.zeros(8, 8)
    for half in (slice(0, 48), slice(48, 96)):
        across, down = ((many.inputs[..., half].long() * 8) // 256).unbind(1)
        density += (1 if half.start else -1) * torch.bincount((down * 8 + across).flatten(), minlength=64).view(8, 8)
    assert density.abs().sum() / (400 * 96) < 0.08


def test_what_is_labelled():
    targets = {"cue": "mask", "lookup": "mask", "red": "class", "match": "class", "points": "class"}
    assert {name: target_of(f"scenes:{name}") for name in WORLDS} == targets
    assert open_data("scenes:cue").target == "mask"
    with pytest.raises(ValueError, match="scenes:cue or scenes:lookup or scenes:red or scenes:match or scenes:points"):
        target_of("scenes:lokup")


def test_classes_are_balanced():
    for task, pairs in (("cue", [(1, 2)]), ("lookup", [(1, 2), (3, 4)])):
        counts = make_scenes(task, "train", 600, 5)[1].flatten().bincount().double()
        for a, b in pairs:
            assert 0.8 < counts[a] / counts[b] < 1.25


@pytest.mark.parametrize(
    ("spec", "options"), [("scenes:lokup", {}), ("scenes:cue", {"size": (32, 32)}), ("scenes:cue", {"ignore": [1]})]
)
def test_wrong_scenes(spec, options):
    with pytest.raises(ValueError, match=r"scenes:(cue|lookup)"):
        open_data(spec, **options)


@pytest.mark.parametrize("task", ["cue", "lookup"])
def test_answers_stand_where_scenes_say(task):
    scenes = Scenes(task, "val", 30, 7)
    for i in range(30):
        image, mask = scenes[i]
        answer = scenes.answer(i)
        assert answer is not None
        asks, holds = answer
        picture = cells(image.float() / 255)
        asked, held = (cells(part[None]).flatten(1) for part in (asks, holds))
        assert (asked == asked[:, :1]).all()
        assert len(asked[asked[:, 0] > 0]) == (8 if task == "cue" else 4)
        named = cells(mask[None]).flatten(1).amax(1)
        for cell in asked[:, 0].nonzero().flatten():
            there = (held[:, 0] == asked[cell, 0]).nonzero().flatten()
            assert len(there) == 1
            if task == "cue":
                assert (picture[there[0]].amax((1, 2)) > 0.6).tolist() == [True, False, False]
            else:
                assert named[cell] == named[there[0]] + 2
                colours = [picture[k].flatten(1).quantile(0.9, 1) > 0.5 for k in (cell, there[0])]
                assert torch.equal(*colours)
