"""IGC against plain loops, and the layers that it contains as special cases."""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise, with_gradients
from torch import Tensor, nn

from lookfar.blocks import create_block


def by_loops(x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """The paper's equations, an output number at a time. primary (C, M, k, k), secondary (O, L, 1, 1)."""
    B, C, H, W = x.shape
    M, k = primary.shape[1:3]
    L, O = C // M, secondary.shape[0]
    centre = dilation * (k // 2)
    rows, columns = -(-H // stride), -(-W // stride)
    first = x.new_zeros(B, L, M, rows, columns)  # channel m of partition l
    for partition in range(L):
        for m in range(M):
            for i in range(rows):
                for j in range(columns):
                    for a in range(k):
                        for b in range(k):
                            y, z = i * stride + a * dilation - centre, j * stride + b * dilation - centre
                            if 0 <= y < H and 0 <= z < W:
                                for n in range(M):
                                    weight = primary[partition * M + m, n, a, b]
                                    first[:, partition, m, i, j] += weight * x[:, partition * M + n, y, z]
    second = x.new_zeros(B, O, rows, columns)
    for m in range(M):  # secondary partition m: the m-th channels of all primary partitions
        for o in range(O // M):
            for partition in range(L):
                second[:, o * M + m] += secondary[m * (O // M) + o, partition, 0, 0] * first[:, partition, m]
            if bias is not None:
                second[:, o * M + m] += bias[m * (O // M) + o]
    return second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2, "bias": True},
        {"groups": 3, "out_channels": 8, "kernel_size": 1},
        {"groups": 2, "stride": 2, "out_channels": 3},
        {"groups": 6, "dilation": 2},
        {"groups": 1, "stride": 3},
    ],
    ids=str,
)
def test_equals_the_loops(options: dict) -> None:
    m = randomise(create_block("igc", 6, **options)).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    found = with_gradients(m, (x,))

    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spatial, self.pointwise = m.spatial, m.pointwise

        def forward(self, x: Tensor) -> Tensor:
            steps = options.get("stride", 1), options.get("dilation", 1)
            return by_loops(x, self.spatial.weight, self.pointwise.weight, self.pointwise.bias, *steps)

    want = with_gradients(Loops(), (x,))
    assert found.keys() == want.keys()
    for key, value in want.items():
        assert_same(key, found[key], value, 1e-12)


def test_every_output_sees_every_input_once() -> None:
    """The two together are one dense convolution, of rank one between partitions: the paper's point."""
    m = create_block("igc", 12, groups=4, kernel_size=1).double()
    eye = torch.eye(12, dtype=torch.float64)[:, :, None, None]
    assert (m(eye) != 0).all()


def test_one_channel_a_group_is_xception() -> None:
    m = create_block("igc", 6, groups=6).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    want = F.conv2d(F.conv2d(x, m.spatial.weight, padding=1, groups=6), m.pointwise.weight)
    assert_same("y", m(x), want)


def test_one_group_is_a_convolution_and_a_factor_a_channel() -> None:
    m = create_block("igc", 6, groups=1).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    assert_same("y", m(x), F.conv2d(x, m.spatial.weight * m.pointwise.weight, padding=1))


def test_norm_and_activation_follow_as_in_the_papers_networks() -> None:
    m = create_block("igc", 6, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU)
    assert [name for name, _ in m.named_children()] == ["spatial", "pointwise", "norm", "act"]
    assert (m(torch.randn(2, 6, 5, 4)) >= 0).all()


@pytest.mark.parametrize("channels", [1, 2, 7, 16, 30, 64, 97, 256])
def test_the_default_groups_fit_any_width(channels: int) -> None:
    m = create_block("igc", channels)
    assert channels % m.groups == 0
    assert m(torch.randn(1, channels, 3, 2)).shape == (1, channels, 3, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 4}, "groups must divide channels=6, got 4: 3 does"),
        ({"groups": 2, "out_channels": 8}, "multiple of channels / groups = 3, got 8"),
    ],
)
def test_what_does_not_fit_is_told(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_block("igc", 6, **options)
