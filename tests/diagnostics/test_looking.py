"""Where blocks look from a pixel: the right rows of their maps, a picture, and networks left as they were."""

import numpy as np
import pytest
import torch
from torch import nn

import lookfar
from lookfar import create_block, insert, look
from lookfar._drawing import randomise
from lookfar.diagnostics import ablations, blocks_of, statistics
from lookfar.diagnostics._undisturbed import inputs_of


def network_with(*texts: str) -> nn.Module:
    """Blocks on maps of a quarter of the image's side, each behind a layer of its own."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), *[nn.Conv2d(8, 8, 1) for _ in texts])
    for place, text in enumerate(texts):
        (name,) = insert(network, text, at=str(place + 1), example=torch.rand(1, 3, 20, 24))
        randomise(network.get_submodule(name))
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("weights", [2**21, 1])
def test_the_maps_are_rows_of_the_blocks_own(weights, monkeypatch):
    monkeypatch.setattr("lookfar.diagnostics.seeing.WEIGHTS", weights)
    network, image = network_with("nonlocal(heads=2,subsample=2)", "criss_cross"), torch.rand(3, 20, 24)
    looks = look(network, image, (13, 22))  # of 20 x 24; the map is 5 x 6
    assert [one.block for one in looks] == ["nonlocal", "criss_cross"]
    with inputs_of(network, [one.name for one in looks]) as seen:
        network(image[None])
    for one, keys in zip(looks, ((2, 3), (5, 6))):
        block = network.get_submodule(one.name)
        maps = getattr(block, "block", block).attention(seen[one.name][0])[0]
        assert (one.query, one.size) == ((3, 5), (5, 6))
        torch.testing.assert_close(one.maps, maps[:, 3 * 6 + 5].view(-1, *keys).double())
        torch.testing.assert_close(one.mean, maps.double().mean(1).view(-1, *keys))


@pytest.mark.parametrize(
    ("block", "kinds", "names"),
    [
        ("disentangled_nonlocal", "; maps: pairwise, unary", ("pairwise", "unary")),
        (
            "disentangled_nonlocal(heads=2,unary=both)",
            ", 2 heads; maps: pairwise, unary of key, unary of mask",
            tuple(f"{kind}, head {k}" for kind in ("pairwise", "unary of key", "unary of mask") for k in range(2)),
        ),
        ("disentangled_nonlocal(combine=multiply)", "", ("",)),
        ("disentangled_nonlocal(terms=unary)", "", ("",)),
        ("pointwise_spatial_attention(shrink_factor=1)", "; maps: collect, distribute", ("collect", "distribute")),
        ("pointwise_spatial_attention(shrink_factor=1,mode=collect)", "", ("",)),
        (
            "dynamic_message_passing(dilation=(1,2),groups=1)",
            "; maps: dilation 1, dilation 2",
            ("dilation 1", "dilation 2"),
        ),
        ("nonlocal(heads=2)", ", 2 heads", ("head 0", "head 1")),
    ],
)
def test_maps_that_are_not_heads_of_one_have_names(block, kinds, names):
    network, image = network_with(block), torch.rand(3, 20, 24)
    (one,) = look(network, image, (13, 22))
    assert one.map_names == names
    assert str(one).endswith(f"keys{kinds}")
    assert len(one.maps) == len(names)
    numbers = statistics(network, image[None])
    assert numbers.map_names == names
    labels = {line.split("  ")[0] for line in str(numbers).splitlines()}
    assert {f"similarity, {name}" if name else "similarity" for name in names} <= labels


def test_corners_of_the_image_are_corners_of_the_map():
    network, image = network_with("nonlocal"), torch.rand(1, 3, 20, 24)
    corners = {at: look(network, image, at)[0].query for at in ((0, 0), (19, 23), (0, 23), (4, 3))}
    assert corners == {(0, 0): (0, 0), (19, 23): (4, 5), (0, 23): (0, 5), (4, 3): (1, 0)}


@pytest.mark.parametrize("block", ["local_relation", "attention_augmented"])
def test_corners_of_the_image_are_corners_of_a_strided_grid(block):
    torch.manual_seed(0)
    layer = create_block(block, 16, stride=2)
    network, image = nn.Sequential(nn.Conv2d(3, 16, 1), layer).eval(), torch.rand(1, 3, 9, 6)
    looks = [look(network, image, at)[0] for at in ((0, 0), (8, 5))]
    assert [(one.query, one.size) for one in looks] == [((0, 0), (5, 3)), ((4, 2), (5, 3))]
    with torch.no_grad():
        whole = layer.attention(network[0](image))[0].double()
    for one, position in zip(looks, (0, 14)):
        torch.testing.assert_close(one.maps.flatten(1), whole[:, position])
        torch.testing.assert_close(one.mean.flatten(1), whole.mean(1))


def test_blocks_without_maps_say_why():
    network = network_with("squeeze_excitation", "asymmetric_nonlocal", "nonlocal")
    looks = look(network, torch.rand(3, 80, 80), (5, 5))
    assert [one.maps is None for one in looks] == [True, True, False]
    assert looks[0].reason == "squeeze_excitation has no weights over positions"
    assert looks[1].reason == "its 110 keys form no grid"
    assert "no maps, its 110 keys form no grid" in str(looks)
    assert look(Idle(), torch.rand(3, 4, 4), (0, 0))[1].reason == "the network did not call it"


class Pyramid(nn.Module):
    """Has one block for two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.block = create_block("nonlocal", 3, zero_init=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x)[..., ::2, ::2])


def test_every_call_of_a_block_is_shown():
    network, image = Pyramid().eval(), torch.rand(3, 8, 6)
    looks = look(network, image, (5, 2))
    assert [(one.name, one.call, one.calls, one.size) for one in looks] == [
        ("block", 1, 2, (8, 6)),
        ("block", 2, 2, (4, 3)),
    ]
    assert str(looks).splitlines()[1].startswith("block (nonlocal), call 2 of 2: query (2, 1) of 4×3")
    with torch.no_grad():
        below = network.block(image[None])[..., ::2, ::2]
        torch.testing.assert_close(looks[0].maps.flatten(), network.block.attention(image[None])[0, 0, 32].double())
        torch.testing.assert_close(looks[1].maps.flatten(), network.block.attention(below)[0, 0, 7].double())


class Windows(nn.Module):
    """Shows its block four parts of an image as four images."""

    def __init__(self) -> None:
        super().__init__()
        self.block = create_block("nonlocal", 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cat([part for half in x.chunk(2, 2) for part in half.chunk(2, 3)]))


def test_a_window_of_an_image_is_not_taken_for_it():
    (seen,) = look(Windows().eval(), torch.rand(3, 8, 6), (7, 5))
    assert (seen.maps, seen.reason) == (None, "it sees 4 windows of the image, each by itself")


class Idle(nn.Module):
    """Has a block that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = create_block("nonlocal", 3), create_block("nonlocal", 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_blocks_of_any_network_are_found_once():
    network = network_with("dual_attention", "squeeze_excitation")
    assert blocks_of(network) == ["1.dual_attention", "2.squeeze_excitation"]
    assert blocks_of(nn.Sequential(create_block("position_attention", 8))) == ["0"]
    assert blocks_of(nn.Conv2d(3, 3, 1)) == []


def test_the_picture_shows_weight_where_it_is():
    """All weight of the query on one key: its cell glows beside a dark rest; weights below zero are blue."""
    maps = torch.zeros(1, 2, 2, dtype=torch.float64)
    maps[0, 1, 0] = 1.0
    mean = torch.full((1, 2, 2), 0.25, dtype=torch.float64)
    mean[0, 0, 0] = -0.25
    of = lookfar.diagnostics.Look("a", "nonlocal", (0, 0), (2, 2), maps, mean)
    picture = lookfar.diagnostics.Looks(torch.zeros(3, 240, 240), (0, 0), (of,)).picture()
    pixels = np.asarray(picture).astype(int)
    top, left = 14, 244  # below the line of text, right of the image
    assert pixels[top + 180, left + 60, 0] > 200  # the key with all the weight
    assert pixels[top + 60, left + 180].max() == 0  # one without any
    red, _, blue = pixels[top + 60, 2 * left + 60]
    assert blue > 90 > red  # below zero, of the mean map
    assert pixels[top + 60, 2 * left + 180, 0] > 90


def test_it_is_a_file_and_a_notebooks_picture(tmp_path):
    looks = look(network_with("nonlocal(heads=2)"), torch.rand(3, 20, 24), (3, 4))
    looks.save(tmp_path / "look.png")
    assert (tmp_path / "look.png").read_bytes()[:4] == looks._repr_png_()[:4] == b"\x89PNG"
    assert looks.picture().size[1] > 2 * 200  # a row a head


def test_a_network_is_left_as_it_was():
    network, image = network_with("nonlocal", "criss_cross"), torch.rand(3, 20, 24)
    network.train()
    network[1].eval()
    random, state = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()}
    look(network, image, (3, 4))
    assert torch.get_rng_state().equal(random)
    assert (network.training, network[1].training) == (True, False)
    assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in network.named_modules()} == hooks
    assert all(network.state_dict()[key].equal(value) for key, value in state.items())


def test_refused():
    network = network_with("nonlocal")
    with pytest.raises(ValueError, match=r"want an image \(C, H, W\) as the network takes it, got \(2, 3, 20, 24\)"):
        look(network, torch.rand(2, 3, 20, 24), (0, 0))
    with pytest.raises(ValueError, match=r"want a tensor \(C, H, W\) as the network takes it, got ndarray"):
        look(network, torch.rand(3, 20, 24).numpy(), (0, 0))
    for at in ((20, 0), (0, -1), (3,)):
        with pytest.raises(ValueError, match=r"want a pixel \(y, x\) of the 20×24 image, got"):
            look(network, torch.rand(3, 20, 24), at)
    with pytest.raises(ValueError, match="the network has no block of the registry to look from"):
        look(nn.Conv2d(3, 3, 1), torch.rand(3, 20, 24), (0, 0))


def compiled_around(network):
    return torch.compile(network, backend="eager")


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("compiled", [compiled_around, compiled_in_place])
def test_a_compiled_network_that_has_run_is_looked_into(compiled):
    """Its program was made without the hooks: run again, it would leave them out."""
    torch._dynamo.reset()
    image = torch.rand(1, 3, 20, 24)
    network = network_with("nonlocal")
    want = look(network, image[0], (13, 22))[0].maps
    ablated = ablations(network, None, image.expand(2, -1, -1, -1), kinds=("full", "off"))
    network = compiled(network)
    with torch.no_grad():
        network(image)
        network(image.expand(2, -1, -1, -1))
    assert torch.equal(look(network, image[0], (13, 22))[0].maps, want)
    again = ablations(network, None, image.expand(2, -1, -1, -1), kinds=("full", "off"))
    assert again.changed("off").tolist() == ablated.changed("off").tolist()
    assert statistics(network, image)["similarity"].plain.shape == (1, 1)


class ByName(nn.Module):
    """Hands its block the map by the name of the argument."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 1), create_block("nonlocal", 8), nn.Conv2d(8, 4, 1)
        randomise(self)

    def forward(self, x):
        return self.head(self.block(x=self.stem(x)))


def test_a_block_that_is_called_by_name_is_looked_into():
    network, images = ByName().eval(), torch.rand(3, 3, 6, 5)
    plain = nn.Sequential(network.stem, network.block, network.head)
    assert torch.equal(look(network, images[0], (2, 3))[0].maps, look(plain, images[0], (2, 3))[0].maps)
    one, other = (ablations(any_, None, images, training=images) for any_ in (network, plain))
    assert {kind: counts.tolist() for kind, counts in one.counts.items()} == {
        kind: counts.tolist() for kind, counts in other.counts.items()
    }
    assert set(one.counts) >= {"mean", "constant", "off"}
