"""Neighbourhood attention against its unfolded definition: borders, strides, similarities, graphs, memory."""

import importlib
from functools import partial
from itertools import product

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads
from torch import Tensor

from lookfar.cost import peak_memory
from lookfar.ops import neighborhood, neighborhood_reference, neighborhood_rows, neighborhood_weights, relative_logits

windows = importlib.import_module("lookfar.ops._window")

# H, W and what the window is
WINDOWS = {
    "mask": (7, 5, {"kernel_size": 3}),
    "mask, wider than the map": (3, 4, {"kernel_size": 7}),
    "mask, dilated": (6, 8, {"kernel_size": 3, "dilation": (2, 3)}),
    "mask, strided": (7, 6, {"kernel_size": (3, 5), "stride": (2, 3)}),
    "zeros": (5, 6, {"kernel_size": 5, "border": "zeros"}),
    "zeros, stride and dilation": (9, 8, {"kernel_size": 3, "border": "zeros", "stride": 2, "dilation": 2}),
    "zeros, outside": (4, 5, {"kernel_size": 3, "border": "zeros", "outside": -1.5}),
    "clamped": (7, 6, {"kernel_size": 3, "border": "clamped"}),
    "clamped, as wide as the map": (5, 8, {"kernel_size": 5, "border": "clamped"}),
    "clamped, wider than the map": (2, 9, {"kernel_size": 5, "border": "clamped"}),
    "one position": (1, 1, {"kernel_size": 3}),
}


def draw(H: int, W: int, options: dict, D: int = 3, E: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    h, w = windows.window_of(*(options.get(n, d) for n, d in DEFAULTS.items())).grid(H, W)
    kk = torch.zeros(
        options["kernel_size"] if isinstance(options["kernel_size"], tuple) else (options["kernel_size"],) * 2
    )
    return [
        torch.randn(2, 2, D, h, w, dtype=dtype),
        torch.randn(2, 2, D, H, W, dtype=dtype),
        torch.randn(2, 2, E, H, W, dtype=dtype),
        torch.randn(2, kk.numel(), 1, 1, dtype=dtype),
    ]


DEFAULTS = {"kernel_size": 3, "stride": 1, "dilation": 1, "border": "mask"}


def call(op, q, k, v, bias, **options):
    return op(q, k, v, bias=bias, scale=0.7, **options)


@pytest.mark.parametrize(
    ("window", "normalization"),
    [
        *((window, "softmax") for window in WINDOWS),
        *product(["mask, strided", "zeros, outside", "clamped, wider than the map"], ["l1", "sigmoid", "none"]),
    ],
)
def test_equals_the_definition(window, normalization):
    H, W, options = WINDOWS[window]
    fast, slow = (
        partial(call, op, normalization=normalization, **options) for op in (neighborhood, neighborhood_reference)
    )
    assert_same_with_grads(fast, slow, *draw(H, W, options), names="q k v bias")


@pytest.mark.parametrize("similarity", windows.SIMILARITIES)
@pytest.mark.parametrize("window", ["mask, strided", "zeros, outside", "clamped"])
def test_similarities(similarity, window):
    H, W, options = WINDOWS[window]
    fast, slow = (partial(call, op, similarity=similarity, **options) for op in (neighborhood, neighborhood_reference))
    assert_same_with_grads(fast, slow, *draw(H, W, options), names="q k v bias")


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_form_for_graphs(window, monkeypatch):
    H, W, options = window
    inputs = draw(H, W, options, dtype=torch.float32)
    want = call(neighborhood, *inputs, **options)
    monkeypatch.setattr(windows, "for_graphs", lambda: True)
    assert_same("graph", call(neighborhood, *inputs, **options), want)


@pytest.mark.parametrize("similarity", ["product", "squared"])
def test_second_derivatives(similarity):
    H, W, options = WINDOWS["mask"]
    inputs = [t.requires_grad_() for t in draw(3, 4, options, D=2, E=1)]
    op = partial(call, neighborhood, similarity=similarity, **options)
    assert torch.autograd.gradcheck(op, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, inputs, fast_mode=True)


@pytest.mark.parametrize("border", ["mask", "clamped"])
def test_window_by_window(border):
    """The definition with loops: which keys a query has, at every position."""
    (H, W), k, r = (6, 7), 5, 2
    q, key, v, _ = draw(H, W, {"kernel_size": k})
    got = neighborhood(q, key, v, kernel_size=k, border=border, scale=0.5)
    for y, x in product(range(H), range(W)):
        if border == "clamped":
            top, left = min(max(y - r, 0), H - k), min(max(x - r, 0), W - k)
            seen = [(a, b) for a in range(top, top + k) for b in range(left, left + k)]
        else:
            seen = [(a, b) for a in range(H) for b in range(W) if abs(a - y) <= r and abs(b - x) <= r]
        keys = torch.stack([key[..., a, b] for a, b in seen], -1)
        values = torch.stack([v[..., a, b] for a, b in seen], -1)
        weights = (0.5 * q[..., y, x, None] * keys).sum(2, keepdim=True).softmax(-1)
        assert_same(f"{y}, {x}", got[..., y, x], (weights * values).sum(-1))


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_rows(window):
    H, W, options = window
    q, k, v, bias = draw(H, W, options)
    shape = {n: o for n, o in options.items() if n != "outside"}
    rows = neighborhood_rows(neighborhood_weights(q, k, bias=bias, **options), (H, W), **shape)
    want = neighborhood(q, k, v, bias=bias, **options)
    assert_same("rows", (rows @ v.flatten(3).transpose(2, 3)).transpose(2, 3), want.flatten(3))
    if options.get("border") != "zeros":
        assert_same("sums", rows.sum(-1), torch.ones_like(rows[..., 0]))
    some = torch.tensor([rows.shape[2] - 1, 0])
    chosen = neighborhood_rows(neighborhood_weights(q, k, bias=bias, **options), (H, W), queries=some, **shape)
    assert torch.equal(chosen, rows[:, :, some])


def test_borders_are_equal_inside_alone():
    q, k, v, _ = draw(9, 8, {"kernel_size": 3})
    mask, zeros, clamped = (neighborhood(q, k, v, kernel_size=3, border=b) for b in ("mask", "zeros", "clamped"))
    for other in (zeros, clamped):
        assert_same("inside", other[..., 1:-1, 1:-1], mask[..., 1:-1, 1:-1])
        assert (other - mask).abs().mean((0, 1, 2))[0].min() > 1e-3


def test_relative_logits():
    q, rows, columns = torch.randn(2, 3, 6, 4, 5), torch.randn(3, 3, 5), torch.randn(1, 3, 5)
    got = relative_logits(q, rows, columns)
    for a, b in product(range(5), range(5)):
        want = (q[:, :, :3] * rows[None, :, :, a, None, None]).sum(2)
        want = want + (q[:, :, 3:] * columns[None, :, :, b, None, None]).sum(2)
        assert_same(f"{a}, {b}", got[:, :, 5 * a + b], want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v, bias = (t.to(dtype) for t in draw(6, 7, {"kernel_size": 3}))
    y = call(neighborhood, 60 * q, 60 * k, v, bias, kernel_size=3)
    assert y.dtype == dtype
    want = call(neighborhood_reference, 60 * q.float(), 60 * k.float(), v.float(), bias.float(), kernel_size=3)
    assert_same("half", y, want.to(dtype), 2e-2)


def test_never_unfolds():
    """k^2 C numbers a position would be 49 maps of keys and 49 of values."""
    H = W = 16
    q, k, v, bias = (t.requires_grad_() for t in draw(H, W, {"kernel_size": 7}, D=64, E=64, dtype=torch.float32))

    def run():
        call(neighborhood, q, k, v, bias, kernel_size=7).sum().backward()

    maps = peak_memory(run) / (2 * 2 * 64 * H * W * 4)
    assert maps < 16, f"the peak is that of {maps:.0f} maps"


def test_wrong_arguments_are_named():
    q, k, v, _ = draw(4, 4, {"kernel_size": 3})
    for options, words in [
        ({"kernel_size": 4}, "odd .*, got 4: a window has a centre"),
        ({"kernel_size": 3, "border": "wrap"}, "zeros or clamped, got 'wrap'"),
        ({"kernel_size": 3, "border": "clamped", "dilation": 2}, "dilation=2"),
        ({"kernel_size": 3, "similarity": "cosine"}, "got 'cosine'"),
        ({"kernel_size": 3, "normalization": "double"}, "got 'double'"),
        ({"kernel_size": 3, "stride": 2}, "ceil"),
    ]:
        with pytest.raises(ValueError, match=words):
            neighborhood(q, k, v, **options)
    with pytest.raises(ValueError, match="want k"):
        neighborhood(q, k, v[..., 1:], kernel_size=3)
