"""Blocks of maps as mixers of a stage of tokens: laid on the grid, without a sum of their own; what cannot be one."""

import pytest
import torch
from samples import assert_same, randomise

from lookfar import create_block
from lookfar.blocks import list_blocks


@pytest.mark.parametrize("size", [(4, 4), (3, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["hamburger", "criss_cross", "ocr", "cbam", "stand_alone"])
def test_a_stage_adds_what_the_block_finds_on_the_grid(name: str, size: tuple[int, int]) -> None:
    m = randomise(create_block("token_stage", 16, mixer=name)).double().eval()
    x = torch.randn(2, size[0] * size[1], 16, dtype=torch.float64)
    grid = m.norm1(x).transpose(1, 2).reshape(2, 16, *size)
    u = x + m.mixer(grid).flatten(2).transpose(1, 2)
    want = u + m.mlp(m.norm2(u))
    assert_same("y", m(x, size=size), want)
    if size[0] == size[1]:
        assert_same("a square", m(x), want)


def test_every_block_that_keeps_the_shape_is_a_mixer() -> None:
    x = torch.randn(2, 16, 32)
    for name in list_blocks(kind="context"):
        m = create_block("token_stage", 32, mixer=name).eval()
        assert m(x).shape == x.shape
        assert getattr(m.mixer, "residual", False) is False, name
    none = create_block("token_stage", 32, mixer="none")
    assert_same("no mixer", none(x), x + none.mlp(none.norm2(x)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "hamburgr"}, "hamburger"),
        ({"mixer": "carafe"}, "of kind upsampler: a mixer keeps the shape"),
        ({"mixer": "channel_attention", "heads": 2}, "channel_attention has no option 'heads'"),
        ({"mixer": "hamburger", "out_channels": 8}, "keeps the width: out_channels is for self"),
        ({"mixer": "none", "heads": 2}, "mixes nothing and has no heads"),
        ({"attention": "external"}, "has no option 'attention'. Here it is called mixer"),
    ],
)
def test_what_cannot_be_a_mixer_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        create_block("token_stage", 16, **options)


def test_tokens_that_fill_no_grid_are_refused() -> None:
    m, x = create_block("token_stage", 16, mixer="hamburger"), torch.randn(2, 17, 16)
    with pytest.raises(ValueError, match="17 tokens fill no square grid"):
        m(x)
    with pytest.raises(ValueError, match="17 tokens fill no grid of 4x4"):
        m(x, size=(4, 4))
    with pytest.raises(ValueError, match="Hamburger has no weights over tokens: ask maps"):
        m.attention(x[:, :16])


@pytest.mark.parametrize(("mixer", "gives"), [("glimpse", r"\(2, 256\)"), ("hard_attention", "Selection")])
def test_layers_that_give_no_map_are_refused(mixer: str, gives: str) -> None:
    m = create_block("token_stage", 16, mixer=mixer)
    with pytest.raises(ValueError, match=rf"keeps the shape of a map: \w+ gives {gives} for \(2, 16, 4, 4\)"):
        m(torch.randn(2, 16, 16))
