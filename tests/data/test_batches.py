"""A batch is a function of (seed, step): not of what was asked before, of the process, or of the random state."""

import pickle

import pytest
import torch

from lookfar.data import Data, MemorySamples
from lookfar.data.transforms import RandomView, resize


def make_data(count=10, *, augment=None, threads=False):
    """Images whose pixels and masks all hold the sample's number."""
    numbers = torch.arange(count, dtype=torch.uint8)
    images = numbers[:, None, None, None].expand(-1, 3, 12, 16).clone()
    masks = numbers[:, None, None].expand(-1, 12, 16).clone()
    samples = MemorySamples(images, masks, [str(i) for i in range(count)])
    data = Data("test", samples, samples, ["a", "b"], 3, (12, 16), (0.0,) * 3, (1 / 255,) * 3, "none", threads=threads)
    if augment:
        data.augment = augment
    return data


def numbers(data, *args, **kwargs):
    return data.batch(*args, **kwargs)[1][:, 0, 0].tolist()


def test_epochs_are_permutations_and_batches_cross_their_end():
    data = make_data(10)
    stream = [number for step in range(10) for number in numbers(data, 0, step, 4)]
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_set():
    assert sorted(numbers(make_data(3), 1, 0, 6)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("threads", [False, True])
def test_a_batch_does_not_depend_on_what_was_asked_before(threads):
    data = make_data(augment=RandomView(), threads=threads)
    straight = [data.batch(0, step, 4) for step in range(6)]
    resumed = make_data(augment=RandomView(), threads=not threads)
    for step in (4, 5, 0, 3, 3):
        torch.rand(3)
        for got, want in zip(resumed.batch(0, step, 4), straight[step]):
            assert torch.equal(got, want)
    assert numbers(data, 0, 0, 4) != numbers(data, 1, 0, 4)


def test_the_random_state_of_the_caller_stays():
    before = torch.get_rng_state()
    make_data(augment=RandomView()).batch(0, 0, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_position_has_an_augmentation_of_its_own():
    drawn = []

    def augment(image, mask, generator=None):
        drawn.append(float(torch.rand(1, generator=generator)))
        return image, mask

    data = make_data(3, augment=augment)
    for seed in (0, 1):
        for step in range(4):
            data.batch(seed, step, 3)
    assert len(set(drawn)) == len(drawn) == 24


@pytest.mark.parametrize("threads", [False, True])
def test_shares_of_processes_make_the_batch_of_one(threads):
    data = make_data(augment=RandomView(), threads=threads)
    for step in range(3):
        whole = data.batch(0, step, 6)
        shares = [data.batch(0, step, 6, rank=rank, world=3) for rank in range(3)]
        for i in range(2):
            assert torch.equal(torch.cat([share[i] for share in shares]), whole[i])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 5, "world": 2}, {"batch_size": 4, "rank": 1}])
def test_unequal_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="share"):
        make_data().batch(0, 0, **wrong)


def test_data_in_use_pickles():
    data = make_data(threads=True)
    want = data.batch(0, 0, 4)[0]
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(0, 0, 4)[0], want)


@pytest.mark.parametrize("threads", [False, True])
def test_validation_is_complete_and_in_order(threads):
    data = make_data(10, threads=threads)
    batches = list(data.val_batches(4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert torch.cat([masks[:, 0, 0] for _, masks in batches]).tolist() == list(range(10))
    torch.testing.assert_close(batches[0][0][:, 0, 0, 0], torch.arange(4.0))


def test_normalise():
    data = make_data()
    data.mean, data.std = (0.5, 0.0, 1.0), (0.5, 1.0, 2.0)
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert data.normalise(white)[1, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    torch.testing.assert_close(data.normalise(white.float() / 255), data.normalise(white))


@pytest.mark.parametrize("size", [(7,), (3, 5), (3, 5, 6), (8, 5, 6)])
def test_bands_are_axis_1_whatever_follows(size):
    """Three frames of three bands would else be normalised along time, and nobody would hear of it."""
    data = make_data()
    data.size, data.mean, data.std = size, (0.5, 0.0, 1.0), (0.5, 1.0, 2.0)
    torch.manual_seed(0)
    x = data.example(4)
    assert x.shape == (4, 3, *size)
    got = data.normalise(x)
    for band, (mean, std) in enumerate(zip(data.mean, data.std)):
        torch.testing.assert_close(got[:, band], (x[:, band] - mean) / std)
    with pytest.raises(ValueError, match=r"want \(B, 3, ...\), bands in axis 1"):
        data.normalise(x.transpose(0, 1))


def test_view_moves_image_and_mask_together():
    """Where the image's grey is its label, it still is after crop, zoom and flip, up to the borders of regions."""
    mask = torch.zeros(60, 80, dtype=torch.uint8)
    mask[20:50, 10:35], mask[5:30, 50:75] = 1, 2
    image = (mask * 100)[None]
    seen = set()
    for seed in range(20):
        picture, labels = RandomView()(image, mask, torch.Generator().manual_seed(seed))
        assert picture.shape == image.shape
        assert (type(picture), type(labels)) == (torch.Tensor, torch.Tensor)
        assert set(labels.unique().tolist()) <= {0, 1, 2}
        assert ((picture[0].float() / 100 - labels).abs() < 0.3).float().mean() > 0.93
        seen.add(bytes(labels.numpy()))
    assert len(seen) == 20


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_coordinates_drawn_into_image_and_mask_agree_after_any_view(scale):
    """Neither side may be shifted: off by half a pixel looks like noise, and costs thin classes half their labels."""
    H, W = 46, 62
    rows, columns = (t.to(torch.uint8) for t in torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"))
    for seed in range(20):
        for axis, mask in (("rows", rows), ("columns", columns)):
            view = RandomView(scale=scale)
            picture, labels = view(4 * mask[None], mask, torch.Generator().manual_seed(seed))
            apart = picture[0].double() / 4 - labels.double()
            assert apart.abs().max() <= 0.5 + 1 / 8, (axis, seed)
            assert apart[4:-4, 4:-4].mean().abs() < 0.06, (axis, seed)


def test_view_draws_from_the_global_generator_by_default():
    image, mask = torch.randint(256, (3, 20, 30), dtype=torch.uint8), torch.randint(3, (20, 30), dtype=torch.uint8)
    torch.manual_seed(5)
    first = RandomView()(image, mask)
    second = RandomView()(image, mask)
    torch.manual_seed(5)
    assert torch.equal(RandomView()(image, mask)[0], first[0])
    assert not torch.equal(first[0], second[0])


def test_view_without_colours_keeps_grey_values():
    image, mask = torch.randint(256, (4, 20, 30), dtype=torch.uint8), torch.randint(3, (20, 30), dtype=torch.uint8)
    picture, labels = RandomView(scale=1, flip=1)(image, mask)
    assert torch.equal(picture, image.flip(-1))
    assert torch.equal(labels, mask.flip(-1))


def test_resize_keeps_labels_whole():
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[:, 30:] = 255
    image, labels = resize(torch.full((2, 40, 60), 9, dtype=torch.uint8), mask, (20, 32))
    assert image.shape == (2, 20, 32)
    assert labels.shape == (20, 32)
    assert labels.unique().tolist() == [0, 255]
    assert image.unique().tolist() == [9]
