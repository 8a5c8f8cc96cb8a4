"""Labels of images: what mmsegmentation does, written again plainly, and the same in bands of rows."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar.cost.memory import peak_memory
from lookfar.networks import Inference, Preprocessing, create_network, predict
from lookfar.networks.resizing import fitted, resize_bytes, resized_bands

HERE = Path(__file__).parent


class Thin(nn.Module):
    """A network that is quick, local, and different everywhere."""

    def __init__(self, classes: int = 4, *, align_corners: bool = False, **around: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, stride=4, padding=1)
        self.align_corners = align_corners
        self.preprocessing = Preprocessing(**around)
        self.inference = Inference()

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), x.shape[2:], mode="bilinear", align_corners=self.align_corners)


def image_of(*size: int) -> Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def plain(network: Any, image: Tensor, tile: Any = None, stride: Any = None, scale: float = 1, flip: bool = False):
    """Logits at the image's size, as mmsegmentation's segmentor has them: everything at once."""
    x = network.preprocessing(network.preprocessing.resized(image, scale)[None])
    x = x.flip(3) if flip else x
    h, w = x.shape[2:]
    if tile is None:
        y = network(x)
    else:
        y, counts = torch.zeros(1, 4, h, w), torch.zeros(1, 1, h, w)
        for row in range(max(h - tile[0] + stride[0] - 1, 0) // stride[0] + 1):
            for column in range(max(w - tile[1] + stride[1] - 1, 0) // stride[1] + 1):
                y2, x2 = min(row * stride[0] + tile[0], h), min(column * stride[1] + tile[1], w)
                part = slice(max(y2 - tile[0], 0), y2), slice(max(x2 - tile[1], 0), x2)
                y[(..., *part)] += network(x[(..., *part)])[0]
                counts[(..., *part)] += 1
        y = y / counts
    y = y.flip(3) if flip else y
    return F.interpolate(y, image.shape[1:], mode="bilinear", align_corners=network.align_corners)[0]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("within", [None, (80, 60), (30, 20)])
@pytest.mark.parametrize(
    ("tile", "stride"), [(None, None), ((32, 24), (20, 24)), ((40, 40), (13, 9)), ((500, 7), (500, 7))]
)
def test_equals_the_plain_form(corners: bool, within: Any, tile: Any, stride: Any) -> None:
    network, image = Thin(align_corners=corners, within=within), image_of(65, 49)
    with torch.no_grad():
        logits = plain(network, image, tile, stride)
    found = predict(network, image, tile=tile, stride=stride)
    assert found.dtype == torch.uint8
    # where two classes are as likely, the rounding of the second resizing decides
    clear = logits.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear].long(), logits.argmax(0)[clear])
    if within is None:
        assert torch.equal(found.long(), logits.argmax(0))


def test_scales_and_flip_are_means_of_probabilities() -> None:
    network, image = Thin(within=(80, 60)), image_of(33, 49)
    passes = [(scale, flip) for scale in (0.5, 1.0, 1.75) for flip in (False, True)]
    with torch.no_grad():
        total = sum(plain(network, image, scale=scale, flip=flip).softmax(0) for scale, flip in passes)
    found = predict(network, image, scales=(0.5, 1.0, 1.75), flip=True)
    assert (found == total.argmax(0)).float().mean() > 0.999  # type: ignore[union-attr]
    assert (found != predict(network, image)).any()


def test_the_network_is_left_as_it_was() -> None:
    network = create_network(
        "fcn", 3, backbone="resnet18c", backbone_options={"channels": (4, 4, 8, 8), "stem_width": 4}
    )
    network.get_submodule("head").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (predict(network, image_of(40, 33) * 0) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert network.training
    assert not network.get_submodule("head").training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3)])
@pytest.mark.parametrize("within", [None, (64, 32)])
def test_small_and_long_images(size: tuple[int, int], within: Any) -> None:
    assert predict(Thin(within=within), image_of(*size)).shape == size
    assert predict(create_network("cgnet", 3, depths=(2, 2)), image_of(*size), tile=(16, 16)).shape == size


def test_more_classes_than_a_byte_holds() -> None:
    assert predict(Thin(300), image_of(9, 9)).dtype == torch.int32


def test_memory_is_that_of_a_row_of_tiles() -> None:
    """Four times the height takes the bytes of image and labels more, and no logits."""
    network = Thin(19, within=None)
    options: dict[str, Any] = {"tile": (128, 128), "stride": (86, 86)}
    images = [image_of(height, 256) for height in (256, 1024)]
    peaks = [peak_memory(partial(predict, network, image, **options)) for image in images]
    row = 19 * 128 * 256 * 4
    assert peaks[1] - peaks[0] < 3 * 768 * 256
    assert peaks[1] < 3 * row


def test_a_second_size_takes_no_more() -> None:
    network, image = Thin(19, within=(512, 256)), image_of(1024, 512)
    peak = peak_memory(lambda: predict(network, image, tile=(64, 64), stride=(64, 64)))
    assert peak < 19 * 1024 * 512  # a quarter of the logits of the image


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(3, 4, 4), {}, "want an image .* of uint8"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {}, "want an image"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), {}, "want images of 3 bands"),
        (None, {"scales": ()}, "scales must be positive"),
        (None, {"scales": (1, 0)}, "scales must be positive"),
        (None, {"stride": (4, 4)}, "give their size"),
        (None, {"tile": (4, 4), "whole": True}, "exclude each other"),
        (None, {"tile": (4, 4), "stride": (9, 4)}, "leaves gaps"),
    ],
)
def test_what_is_refused(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(Thin(), image_of(5, 5) if image is None else image, **options)


def test_a_network_without_maps_of_logits() -> None:
    with pytest.raises(ValueError, match=r"want a network that gives logits \(1, K, 5, 6\), got \(1, 3\)"):
        predict(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_of(5, 6))


# ---- resizing ----------------------------------------------------------------------------------------------------


def test_bytes_are_resized_as_opencv_does_it() -> None:
    """Vectors of ``cv2.resize(..., interpolation=cv2.INTER_LINEAR)`` 5.0.0, the same with 4.11.0."""
    with np.load(HERE / "opencv_resize.npz") as vectors:
        names = [name for name in vectors if name.endswith("_to")]
        assert len(names) >= 12
        for name in names:
            image, wanted = (torch.from_numpy(vectors[key]) for key in (name.removesuffix("_to"), name))
            assert torch.equal(resize_bytes(image, tuple(wanted.shape[1:])), wanted), name  # type: ignore[arg-type]


def test_bytes_are_nearly_resized_as_floats() -> None:
    """No more than a grey level from the bilinear form without antialiasing that it rounds."""
    image = image_of(37, 53)
    for size in ((80, 99), (17, 20), (37, 5), (1, 1)):
        floats = F.interpolate(image[None].double(), size, mode="bilinear")[0]
        assert (resize_bytes(image, size).double() - floats).abs().max() < 1.5


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(9, 7), (1, 1), (40, 30)])
@pytest.mark.parametrize("wanted", [(20, 15), (9, 7), (3, 1), (150, 2)])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_bands_are_resized_as_the_whole(corners: bool, size: Any, wanted: Any, rows: int) -> None:
    logits = torch.randn(3, *size, dtype=torch.float64)
    whole = F.interpolate(logits[None], wanted, mode="bilinear", align_corners=corners)[0]
    bands = list(resized_bands(logits.split(rows, 1), size, wanted, align_corners=corners))
    torch.testing.assert_close(torch.cat(bands, 1), whole, atol=1e-12, rtol=0)


def test_sizes_are_rounded_as_mmcv_rounds() -> None:
    assert fitted((333, 500), 2048, 512) == (512, 769)
    assert fitted((1024, 2048), 2049, 1025) == (1025, 2049)
    assert fitted((100, 5000), 2048, 512) == (41, 2048)  # 40.96
    assert fitted((1, 9000), 2048, 512) == (1, 2048)
