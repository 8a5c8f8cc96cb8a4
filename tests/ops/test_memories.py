"""Ops of low rank against their definitions: channels, external memories and their double normalisation, EM."""

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads
from torch import Tensor

from lookfar.ops import (
    channel_attention,
    channel_attention_reference,
    double_normalization,
    double_normalization_reference,
    expectation_maximization,
    expectation_maximization_reference,
    expectation_maximization_weights,
    external_attention,
    external_attention_reference,
    random_features,
    random_features_reference,
    random_features_weights,
)
from lookfar.ops.external_attention import NORMALIZATIONS

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@each_dtype
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 33), (3, 9, 4)])
def test_channel_attention(size, dtype):
    x = 0.3 * torch.randn(size, dtype=dtype)
    assert_same_with_grads(channel_attention, channel_attention_reference, x, names="x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_attention_in_half_precision_chooses_the_same_channels(dtype):
    """Energies of 10^5: half precision overflows or is off by tens, enough for another channel to win."""
    x = (5 * torch.randn(2, 16, 4096)).relu().to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = channel_attention(x)
    assert y.dtype == dtype
    assert_same("y", y.double(), channel_attention_reference(x.double()), 0.01)


@each_dtype
@pytest.mark.parametrize("size", [(1, 1), (2, 33, 7), (2, 3, 5, 8)])
def test_double_normalization(size, dtype):
    l = 3 * torch.randn(size, dtype=dtype)
    assert_same_with_grads(double_normalization, double_normalization_reference, l, names="l")
    flipped = double_normalization(l.transpose(-2, -1), positions=-1, slots=-2).transpose(-2, -1)
    assert_same("axes", flipped, double_normalization_reference(l))


def test_double_normalization_where_every_slot_rejects_a_position():
    """There 1e-9 is of the size of the sum, and the weights shrink instead of summing to one."""
    l = torch.randn(1, 40, 4, dtype=torch.float64)
    l[0, 5] = -17
    l[0, 6] = -60
    a = double_normalization(l)
    assert 0.1 < float(a[0, 5].sum()) < 0.95
    assert float(a[0, 6].sum()) < 1e-12
    assert_same_with_grads(double_normalization, double_normalization_reference, l, names="l")


def test_double_normalization_does_not_underflow_in_half_precision():
    l = torch.zeros(1, 70_000, 3, dtype=torch.float16)  # softmax over the positions is 1.4e-5, sums to 4e-5
    assert_same("a", double_normalization(l).double(), torch.full(l.shape, 1 / 3, dtype=torch.float64), 1e-3)


def test_double_normalization_wants_two_axes():
    with pytest.raises(ValueError, match="two axes"):
        double_normalization(torch.zeros(2, 3), positions=-1, slots=1)


@each_dtype
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_external_attention(normalization, dtype):
    inputs = [torch.randn(s, dtype=dtype) for s in [(2, 3, 35, 6), (5, 6), (5, 4), (5,)]]

    def run(op):
        return lambda x, key, value, bias: op(x, key, value, bias=bias, normalization=normalization)

    assert_same_with_grads(run(external_attention), run(external_attention_reference), *inputs, names="x k v b")


def test_external_attention_says_what_it_wants():
    x, key, value = torch.randn(1, 1, 5, 4), torch.randn(3, 4), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"value.shape=torch.Size\(\[2, 4\]\)"):
        external_attention(x, key, value)
    with pytest.raises(ValueError, match=r"double, softmax, l1, sigmoid or none, got 'twice'"):
        external_attention(x, key, value, normalization="twice")  # type: ignore[arg-type]


def em_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(s, dtype=dtype) for s in [(2, 1, 35, 6), (1, 4, 5), (4, 6), (4,)])


@each_dtype
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("gradient", ["last", "full"])
@pytest.mark.parametrize("variant", ["authors", "mmseg"])
def test_expectation_maximization(variant, gradient, iterations, dtype):
    x, bases, weight, bias = em_inputs(dtype)
    settings = {"variant": variant, "gradient": gradient, "iterations": iterations}

    def run(op, which):
        return lambda x, weight, bias: op(x, bases, weight=weight, bias=bias, **settings)[which]

    for which in (0, 1):
        fast, reference = (run(op, which) for op in (expectation_maximization, expectation_maximization_reference))
        assert_same_with_grads(fast, reference, x, weight, bias, names="x w b")


def test_expectation_maximization_with_heads():
    x, bases = torch.randn(2, 3, 35, 6), torch.randn(3, 6, 5)
    got, want = (op(x, bases) for op in (expectation_maximization, expectation_maximization_reference))
    assert_same("r", got[0], want[0])
    assert_same("bases", got[1], want[1])


def test_expectation_maximization_is_a_constant_as_published():
    x, bases, weight, bias = em_inputs()
    weight.requires_grad_()
    r, fitted = expectation_maximization(x.requires_grad_(), bases, weight=weight, bias=bias)
    assert not r.requires_grad
    assert not fitted.requires_grad


@pytest.mark.parametrize("variant", ["authors", "mmseg"])
def test_expectation_maximization_weights(variant):
    x, bases, weight, bias = em_inputs()
    options = {"variant": variant, "weight": weight, "bias": bias}
    weights = expectation_maximization_weights(x, bases, torch.tensor([34, 0]), **options)
    h = torch.nn.functional.linear(x, weight, bias)
    assert_same("r", weights @ h, expectation_maximization(x, bases, **options)[0][:, :, [34, 0]])
    assert torch.linalg.matrix_rank(expectation_maximization_weights(x, bases, **options)[0, 0]) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be an integer from 1 to 1000, got 0"),
        ({"variant": "paper"}, "authors or mmseg, got 'paper'"),
        ({"gradient": "some"}, "none, last or full, got 'some'"),
    ],
)
def test_expectation_maximization_says_what_it_wants(options, message):
    x, bases, weight, bias = em_inputs()
    with pytest.raises(ValueError, match=message):
        expectation_maximization(x, bases, weight=weight, bias=bias, **options)
    with pytest.raises(ValueError, match="bases"):
        expectation_maximization(x, bases)


@each_dtype
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 17, 5)])
def test_random_features(size, dtype):
    B, h, N, D = size
    w = torch.randn(4, D, dtype=dtype)
    q, k, v = torch.randn(size, dtype=dtype), torch.randn(B, h, N + 2, D, dtype=dtype), torch.randn(B, h, N + 2, 3)
    v = v.to(dtype)
    assert_same_with_grads(random_features, random_features_reference, q, k, v, w, names="q k v w")
    weights = random_features_weights(q, k, w)
    assert_same("weights", weights @ v, random_features_reference(q, k, v, w))


def test_random_features_of_long_vectors():
    """Where 1e-8 is of the size of the sums, these shrink; where the features underflow or overflow, nothing is NaN."""
    w = torch.eye(4, dtype=torch.float64)
    k, v = torch.full((1, 1, 3, 4), 2.3, dtype=torch.float64), torch.ones(1, 1, 3, 2, dtype=torch.float64)
    q = k * torch.tensor([0.5, 1.0, 1.2])[:, None]
    sums = random_features(q, k, v, w)[0, 0, :, 0].tolist()
    assert 0.1 < sums[2] < 0.5 < sums[1] < 0.99 < sums[0]
    assert_same_with_grads(random_features, random_features_reference, q, k, v, w, names="q k v w")
    far = (100 * torch.randn(1, 1, 3, 4)).requires_grad_()
    y = random_features(far, far, torch.ones(1, 1, 3, 2), 100 * torch.randn(5, 4))
    assert y.isfinite().all()
    y.sum().backward()
    assert far.grad is not None
    assert far.grad.isfinite().all()
