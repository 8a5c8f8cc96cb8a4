"""Layers that replace a convolution or an upsampling: strides, tables for other sizes, what a size cannot be."""

import pytest
import torch
from samples import assert_same, randomise

from lookfar.blocks import create_block


@pytest.mark.parametrize("name", ["local_relation", "stand_alone", "attention_augmented"])
def test_stride_is_that_of_a_padded_convolution(name):
    m = randomise(
        create_block(name, 8, heads=2, stride=2) if name != "local_relation" else create_block(name, 8, stride=2)
    )
    m = m.double().eval()
    for size in [(7, 5), (6, 8), (1, 1)]:
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        y = m(x)
        assert y.shape == torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)(x.float()).shape
        assert_same(name, m.finish(x, m.attention(x) @ m.values(x)), y)


def test_tables_are_their_own_interpolation():
    from lookfar.blocks.attention_augmented import _resized

    table = torch.randn(13, 3)
    assert torch.equal(_resized(table, 7), table)
    line = torch.linspace(-6, 6, 13)[:, None]
    assert_same("stretched", _resized(line, 13), torch.linspace(-6, 6, 25)[:, None], 1e-6)
    assert torch.equal(_resized(table, 1), table[6:7])


def test_augmented_without_one_of_its_halves():
    x = torch.randn(2, 8, 5, 4)
    alone = create_block("attention_augmented", 8, value_channels=0, heads=2)
    assert [name for name, _ in alone.named_parameters()] == ["conv.weight", "conv.bias"]
    assert torch.equal(alone(x), alone.conv(x))
    attended = create_block("attention_augmented", 8, value_channels=8, heads=2)
    assert attended.conv is None
    assert attended(x).shape == x.shape


def test_a_fresh_carafe_enlarges_a_box_mean():
    x = torch.randn(1, 4, 6, 5)
    want = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 5, 1, 2), scale_factor=2)
    assert_same("carafe", create_block("carafe", 4)(x), want, 0.05)


def test_the_stem_refuses_sizes_that_its_blocks_do_not_divide():
    with pytest.raises(ValueError, match="multiples of 4, got 8 x 6"):
        create_block("stand_alone_stem", 8)(torch.randn(1, 8, 8, 6))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("stand_alone", {"heads": 3}, "heads must divide out_channels=8, got 3: 2 does"),
        ("local_relation", {"similarity": "cosine"}, "squared, got 'cosine'"),
        ("local_relation", {"groups": 3}, "groups must divide channels=8, got 3"),
        ("attention_augmented", {"heads": 3, "value_channels": 9}, "part of 8 out_channels, got 9"),
        ("carafe", {"encoder_kernel": 2}, "got 2"),
        ("local_attention", {"kernel_size": 4}, "kernel_size must be an odd positive integer, got 4"),
        ("atrous_attention", {"dilation": 0}, "got 0"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        create_block(name, 8, **options)


def test_attention_may_see_a_pooled_map_and_is_enlarged():
    pooled = randomise(create_block("attention_augmented", 8, heads=2, value_channels=4, size=(7, 9), pool=2)).double()
    plain = randomise(create_block("attention_augmented", 8, heads=2, value_channels=4, size=(4, 5))).double()
    plain.load_state_dict(pooled.state_dict())
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    rows, columns = torch.arange(7)[:, None], torch.arange(9)
    seen = torch.zeros(2, 8, 4, 5, dtype=torch.float64)
    for i in range(4):
        for j in range(5):
            near = ((rows - 2 * i).abs() <= 1) & ((columns - 2 * j).abs() <= 1)
            seen[:, :, i, j] = x[:, :, near].mean(-1)
    small = plain.finish(seen, plain.attention(seen) @ plain.values(seen))[:, 4:]
    want = torch.nn.functional.interpolate(small, (7, 9), mode="bilinear", align_corners=False)
    assert_same("attention", pooled(x)[:, 4:], want)
    assert_same("convolution", pooled(x)[:, :4], pooled.conv(x))
