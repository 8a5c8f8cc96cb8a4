"""Maps of one, two and three axes: what has no axes in its mathematics gives the same numbers on all of them."""

import pytest
import torch
from samples import assert_same, outputs, randomise
from torch import Tensor, nn

from lookfar import create_block, insert, list_blocks
from lookfar.blocks import block_info
from lookfar.blocks._layers import CONV

ON_MAPS = [name for name in list_blocks() if block_info(name).kind not in ("tokens", "region")]
OF_ALL = [name for name in ON_MAPS if "dims" in block_info(name).options]
WITH_AXES = {"criss_cross"}  # these know them, but not how many there are
NORMS = {name: {"norm_layer": nn.BatchNorm2d} for name in OF_ALL if "norm_layer" in block_info(name).options}


def twins(name: str, dims: int, like: nn.Module, **options: object) -> nn.Module:
    """The block for maps of ``dims`` axes with the weights of another."""
    m = create_block(name, like.channels, dims=dims, dtype=torch.float64, **options)
    own = m.state_dict()
    m.load_state_dict({key: value.reshape(own[key].shape) for key, value in like.state_dict().items()})
    return m


def assert_same_in(name: str, dims: int, shape: tuple[int, ...], **options: object) -> None:
    """On the same features as a map of another shape the block gives the same, in training too, with all gradients."""
    for train in (False, True):
        m = randomise(create_block(name, 16, dtype=torch.float64, **options))
        m.channels = 16
        other = twins(name, dims, m, **options).train(train)
        m.train(train)
        x = torch.randn(2, 16, 4, 6, dtype=torch.float64, requires_grad=True)
        z = x.detach().reshape(2, 16, *shape).requires_grad_()
        rest = [torch.randn(2, 5, 4, 6, dtype=torch.float64)] if name == "object_contextual" else []
        found = []
        for module, features in ((m, x), (other, z)):
            torch.manual_seed(0)
            (y,) = outputs(module, (features, *(r.reshape(*r.shape[:2], *features.shape[2:]) for r in rest)))
            y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
            found.append(y)
        assert_same(name, found[1].reshape(x.shape), found[0])
        assert_same(f"{name} dx", gradient(z).reshape(x.shape), gradient(x))
        for (key, p), q in zip(m.named_parameters(), other.parameters(), strict=True):
            if p.requires_grad:
                assert_same(f"{name} d{key}", gradient(q).reshape(p.shape), gradient(p))


def gradient(t: Tensor) -> Tensor:
    assert t.grad is not None
    return t.grad


@pytest.mark.parametrize("options", [{}, NORMS], ids=["default", "BatchNorm2d"])
@pytest.mark.parametrize("name", OF_ALL)
def test_a_single_image_of_a_clip_is_a_map(name: str, options: dict[str, dict[str, object]]) -> None:
    if options and name not in options:
        pytest.skip("no choice of norm")
    assert_same_in(name, 3, (1, 4, 6), **options.get(name, {}))


@pytest.mark.parametrize("name", [name for name in OF_ALL if name not in WITH_AXES])
def test_a_map_is_a_sequence_of_positions_and_a_clip(name: str) -> None:
    assert_same_in(name, 1, (24,))
    assert_same_in(name, 3, (2, 3, 4))


@pytest.mark.parametrize(
    ("name", "options"),
    [("object_context", {"mode": "context", "sizes": (1, 2)}), ("object_contextual", {"subsample": 2})],
)
def test_a_map_is_pooled_and_resized_as_one_image_of_a_clip(name: str, options: dict[str, object]) -> None:
    assert_same_in(name, 3, (1, 4, 6), **options)


@pytest.mark.parametrize(
    ("name", "options", "cure"),
    [
        ("object_context", {"mode": "pyramid"}, "base and context take any"),
        ("object_context", {"mode": "asp"}, "base and context take any"),
        ("object_contextual", {"dilations": (1, 2)}, "without them"),
        ("feature_denoising", {"filter": "median"}, "gaussian, dot and none take any"),
        ("feature_denoising", {"filter": "bilateral_dot"}, "gaussian, dot and none take any"),
    ],
)
def test_what_works_in_windows_says_what_does_not(name: str, options: dict[str, object], cure: str) -> None:
    with pytest.raises(ValueError, match=rf"works on maps \(B, C, H, W\), got dims=3: {cure}"):
        create_block(name, 16, dims=3, **options)


@pytest.mark.parametrize("name", ON_MAPS)
def test_other_axes_are_refused_in_one_line(name: str) -> None:
    options = {"dims": 2} if name in OF_ALL else {}
    m = create_block(name, 16, **options).eval()
    for shape in ((2, 16, 7), (2, 16, 3, 6, 5)):
        with pytest.raises(ValueError, match=name) as refusal:
            m(torch.randn(shape))
        message = str(refusal.value)
        assert "(B, C, H, W)" in message
        assert str(shape) in message
        assert "\n" not in message
        assert (f"dims={len(shape) - 2}" in message) == (name in OF_ALL)


@pytest.mark.parametrize("name", ["channel_attention", "squeeze_excitation", "symbolic_graph_reasoning"])
def test_without_layers_of_axes_any_map_is_taken(name: str) -> None:
    m = create_block(name, 16)
    for shape in ((2, 16, 7), (2, 16, 6, 5), (2, 16, 3, 4, 5), (2, 16, 1, 2, 3, 4)):
        assert m(torch.randn(shape)).shape == shape
    with pytest.raises(ValueError, match=r"takes maps \(B, C, \*S\), got \(2, 16\)"):
        m(torch.randn(2, 16))
    with pytest.raises(ValueError, match="build it with dims=1"):
        create_block(name, 16, dims=3)(torch.randn(2, 16, 7))


@pytest.mark.parametrize("dims", [1, 3])
def test_insertion_finds_the_axes_or_refuses(dims: int) -> None:
    size = {1: (9,), 3: (3, 6, 5)}[dims]
    for name in list_blocks(kind="context"):
        host = nn.Sequential(CONV[dims](3, 16, 1), nn.ReLU()).eval()
        x = torch.randn(2, 3, *size)
        want = host(x)
        if name == "criss_cross" and dims == 1:
            with pytest.raises(ValueError, match=r"position_attention\(dims=1\)"):
                insert(host, name, at="0", example=x)
        elif name in OF_ALL:
            insert(host, name, at="0", example=x)
            assert torch.equal(host(x), want)
        else:
            with pytest.raises(ValueError, match=rf"{name} takes maps \(B, C, H, W\), .* the option dims take"):
                insert(host, name, at="0", example=x)
