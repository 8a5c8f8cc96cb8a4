"""Moved samples against their definition, torchvision's deformable convolution, and what memory they may take."""

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads
from torch import Tensor
from torchvision.ops import deform_conv2d

from lookfar.cost import peak_memory
from lookfar.ops import (
    _bilinear,
    deformable,
    deformable_convolution,
    deformable_convolution_reference,
    deformable_rows,
    deformable_sum,
    deformable_sum_reference,
)

# B, C, G, H, W, k, dilation, size of the offsets
CASES = {
    "odd map": (2, 6, 3, 5, 7, 3, 1, 1.0),
    "far outside": (1, 4, 2, 6, 4, 3, 4, 6.0),
    "dilation beyond the map": (2, 4, 4, 3, 5, 3, 12, 9.0),
    "one position": (3, 2, 1, 1, 1, 3, 1, 1.0),
    "one row": (1, 4, 1, 1, 8, 3, 2, 1.5),
    "wide kernel": (1, 2, 2, 4, 6, 5, 1, 1.0),
    "one sample": (2, 2, 1, 4, 3, 1, 1, 2.0),
    "whole numbers": (2, 4, 2, 5, 6, 3, 2, 0.0),
    "no image": (0, 4, 2, 3, 4, 3, 1, 1.0),
    "no position": (2, 4, 2, 0, 4, 3, 1, 1.0),
}


def draw(case: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """x, weights of the sum, kernel, offsets, dilation."""
    B, C, G, H, W, k, dilation, size = CASES[case]
    x, weights = torch.randn(B, C, H, W), torch.randn(B, G, k * k, H, W)
    kernel, offsets = torch.randn(5, C, k, k), size * torch.randn(B, 2 * k * k, H, W)
    if case == "whole numbers":
        offsets = offsets.round() + torch.randint(-2, 3, offsets.shape)
    return x.to(dtype), weights.to(dtype), kernel.to(dtype), offsets.to(dtype), dilation


@pytest.fixture(params=["all samples at a time", "some positions at a time", "another device", "graph"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param in ("some positions at a time", "another device"):
        monkeypatch.setitem(_bilinear.LIMIT, "cpu", 100)
    if request.param == "another device":
        monkeypatch.setattr(_bilinear, "BAGS", ())
    if request.param == "graph":
        monkeypatch.setattr(deformable, "for_graphs", lambda: True)
    return request.param


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_definition(case, dtype, path):
    x, weights, kernel, offsets, d = draw(case, dtype)

    def run(op):
        return lambda *inputs: op(*inputs, dilation=d)

    names = "weights x offsets"
    assert_same_with_grads(run(deformable_sum), run(deformable_sum_reference), weights, x, offsets, names=names)
    names = "x kernel offsets"
    assert_same_with_grads(
        run(deformable_convolution), run(deformable_convolution_reference), x, kernel, offsets, names=names
    )


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("no ")])
def test_without_moves(case):
    x, weights, _, offsets, d = draw(case)
    got = deformable_sum(weights, x, dilation=d)
    assert_same("none", got, deformable_sum_reference(weights, x, dilation=d))
    assert_same("zero", got, deformable_sum(weights, x, torch.zeros_like(offsets), dilation=d))


@pytest.mark.parametrize("case", ["odd map", "far outside", "dilation beyond the map", "one row", "whole numbers"])
def test_equals_torchvision(case):
    """Its gradient at whole numbers is the right-hand one too."""
    x, _, kernel, offsets, d = draw(case)

    def theirs(x: Tensor, kernel: Tensor, offsets: Tensor) -> Tensor:
        return deform_conv2d(x, offsets, kernel, padding=d * (kernel.shape[2] // 2), dilation=d)

    assert_same_with_grads(
        lambda *inputs: deformable_convolution(*inputs, dilation=d),
        theirs,
        x,
        kernel,
        offsets,
        names="x kernel offsets",
    )


def test_derivative_at_whole_numbers_is_the_right_hand_one():
    x = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64).view(1, 1, 1, 3)
    offsets = torch.zeros(1, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    y = deformable_sum(torch.ones(1, 1, 1, 1, 3, dtype=torch.float64), x, offsets)
    (slope,) = torch.autograd.grad(y.sum(), offsets)
    assert slope[0, 1, 0].tolist() == [3.0, 5.0, -9.0]
    assert slope[0, 0, 0].tolist() == [-1.0, -4.0, -9.0]


@pytest.mark.parametrize("op", ["sum", "convolution"])
def test_second_derivatives(op):
    x, weights, kernel, offsets, d = draw("one row")
    function, first = (deformable_sum, weights) if op == "sum" else (deformable_convolution, x)
    second = x if op == "sum" else kernel
    inputs = [t.requires_grad_() for t in (first, second, offsets)]
    assert torch.autograd.gradcheck(lambda *t: function(*t, dilation=d), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t, dilation=d), inputs, fast_mode=True)


@pytest.mark.parametrize("moved", [True, False])
def test_rows(moved):
    x, weights, _, offsets, d = draw("odd map")
    offsets = offsets if moved else None
    rows = deformable_rows(weights, offsets, dilation=d)
    values = x.flatten(2).unflatten(1, (3, 2)).transpose(2, 3)
    got = (rows @ values).transpose(2, 3).reshape(x.shape)
    assert_same("rows", got, deformable_sum(weights, x, offsets, dilation=d))
    some = torch.tensor([34, 0])
    assert torch.equal(deformable_rows(weights, offsets, dilation=d, queries=some), rows[:, :, some])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_places(dtype):
    """Beyond 1024 a half-precision number has no fraction: places must not be computed in it."""
    x = torch.linspace(0, 1, 1500).view(1, 1, 1, -1).to(dtype)
    offsets = torch.full((1, 2, 1, 1500), 0.5, dtype=dtype)
    offsets[:, 0] = 0
    y = deformable_sum(torch.ones(1, 1, 1, 1, 1500, dtype=dtype), x, offsets)
    assert y.dtype == dtype
    want = (x.float()[..., 1:] + x.float()[..., :-1]) / 2
    assert_same("half", y[..., :-1].float(), want.to(dtype).float(), 1e-6)


def test_memory_format_is_kept():
    x, weights, kernel, offsets, d = draw("odd map")
    x = x.contiguous(memory_format=torch.channels_last)
    for y in (
        deformable_sum(weights, x, offsets),
        deformable_sum(weights, x),
        deformable_convolution(x, kernel, offsets),
    ):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_samples_are_never_held():
    """Nine of them would be 9 maps, held twice where the original unfolds them; here it is a few, backward too."""
    B, C, G, H, W = 1, 64, 4, 128, 128
    x, weights = torch.randn(B, C, H, W), torch.randn(B, G, 9, H, W)
    kernel, offsets = torch.randn(9 * G + 9, C, 3, 3), torch.randn(B, 18, H, W)
    x = x.contiguous(memory_format=torch.channels_last)
    inputs = [t.requires_grad_() for t in (x, weights, kernel, offsets)]

    def run():
        y = deformable_sum(weights, x, offsets).sum() + deformable_convolution(x, kernel, offsets).sum()
        torch.autograd.grad(y, inputs)

    maps = peak_memory(run) / (B * (C + 9 * G) * H * W * 4)
    assert maps < 6, f"the peak is that of {maps:.1f} maps of features and weights"


def test_wrong_arguments_are_named():
    x, weights, kernel, offsets, _ = draw("odd map")
    for call, words in [
        (lambda: deformable_sum(weights[:, :, :8], x, offsets), "k odd; got 8"),
        (lambda: deformable_sum(weights[..., 1:], x, offsets), r"want weights \(B, G, k\^2, H, W\)"),
        (lambda: deformable_sum(weights, x[:, :5], offsets), "G divides C"),
        (lambda: deformable_sum(weights, x, offsets[:, :9]), "two for each of 9 samples"),
        (lambda: deformable_sum(weights, x, offsets, dilation=0), "dilation must be a positive integer, got 0"),
        (lambda: deformable_convolution(x, kernel[:, 1:], offsets), r"weight \(O, C, k, k\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
