"""Criss-cross attention against its dense definition: every path, lines of one, several blocks, second derivatives."""

import importlib
from functools import partial

import pytest
import torch
from ops._compare import assert_same, assert_same_with_grads
from torch import Tensor

from lookfar.ops import criss_cross, criss_cross_reference, criss_cross_weights
from lookfar.ops._blockwise import BUDGET

module = importlib.import_module("lookfar.ops.criss_cross")

# B, h, *S, D, E
SIZES = {
    "one": (1, 1, 1, 1, 1, 1),
    "a row": (2, 1, 1, 9, 3, 4),
    "a column": (2, 1, 9, 1, 3, 4),
    "D<E": (2, 1, 7, 10, 3, 8),
    "D>E, heads": (3, 2, 6, 5, 9, 2),
    "a video": (2, 1, 3, 4, 5, 2, 3),
    "a video, heads": (1, 2, 5, 2, 3, 4, 1),
    "one frame": (1, 1, 1, 3, 4, 2, 2),
    "one row of each frame": (1, 1, 3, 1, 4, 2, 2),
    "time alone": (1, 1, 6, 1, 1, 2, 2),
    "one position of one frame": (1, 1, 1, 1, 1, 1, 1),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def lines(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    *shape, D, E = size
    return [torch.randn(*shape, d, dtype=dtype) for d in (D, D, E)]


@each_size
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("limit", [1, 150, 1 << 20], ids=["line by line", "some lines", "all lines"])
def test_line_blocks(size, dtype, limit, monkeypatch):
    monkeypatch.setattr(module, "_limit", lambda t: limit)
    assert_same_with_grads(module.PATHS["line_blocks"], criss_cross_reference, *lines(size, dtype), names="q k v")


@each_size
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_merged(size, dtype):
    assert_same_with_grads(module.PATHS["merged"], criss_cross_reference, *lines(size, dtype), names="q k v")


@each_size
@pytest.mark.parametrize("normalization", ["l1", "sigmoid", "none"])
def test_normalisations(size, normalization, monkeypatch):
    fast, slow = (partial(op, normalization=normalization) for op in (criss_cross, criss_cross_reference))
    monkeypatch.setitem(BUDGET, "cpu", 150)
    assert_same_with_grads(fast, slow, *lines(size), names="q k v")


def test_the_definition_is_the_papers():
    """Position by position: the own row, and the own column without the own position."""
    q, k, v = lines((1, 1, 4, 5, 3, 2))
    want = torch.empty_like(v)
    for y in range(4):
        for x in range(5):
            on_cross = [(y, i) for i in range(5)] + [(i, x) for i in range(4) if i != y]
            logits = torch.stack([q[0, 0, y, x] @ k[0, 0, i, j] for i, j in on_cross])
            values = torch.stack([v[0, 0, i, j] for i, j in on_cross])
            want[0, 0, y, x] = logits.softmax(0) @ values
    assert_same("reference", criss_cross_reference(q, k, v), want)


def test_the_definition_on_a_video_is_the_papers():
    """T + H + W - 2 positions: those that differ from the own one along one axis at most."""
    q, k, v = lines((1, 1, 2, 3, 4, 3, 2))
    flat_k, flat_v = k[0, 0].flatten(0, 2), v[0, 0].flatten(0, 2)
    places = [(t, y, x) for t in range(2) for y in range(3) for x in range(4)]
    want = torch.empty_like(v)
    for at in places:
        cross = [n for n, other in enumerate(places) if sum(a != b for a, b in zip(at, other)) <= 1]
        assert len(cross) == 2 + 3 + 4 - 2
        want[0, 0][at] = (flat_k[cross] @ q[0, 0][at]).softmax(0) @ flat_v[cross]
    assert_same("reference", criss_cross_reference(q, k, v), want)
    weights = criss_cross_weights(q, k)
    assert_same("weights", (weights @ v.flatten(2, 4)).view_as(v), want)
    assert_same("some", criss_cross_weights(q, k, torch.tensor([17, 3])), weights[:, :, [17, 3]])


def test_one_frame_is_an_image():
    q, k, v = lines((2, 1, 1, 4, 5, 3, 2))
    assert_same("y", criss_cross(q, k, v)[:, :, 0], criss_cross(q[:, :, 0], k[:, :, 0], v[:, :, 0]))


def test_weights_are_zero_off_the_cross():
    q, k, _ = lines((1, 2, 4, 5, 3, 2))
    weights = criss_cross_weights(q, k, torch.tensor([13]))  # row 2, column 3
    on_cross = {j for j in range(20) if j // 5 == 2 or j % 5 == 3}
    assert set(weights[0, 1, 0].nonzero().flatten().tolist()) == on_cross
    assert_same("sums", weights.sum(-1), torch.ones(1, 2, 1, dtype=torch.float64))


@pytest.mark.parametrize("size", [(0, 1, 4, 5, 3, 2), (0, 2, 2, 4, 5, 3, 2)], ids=["maps", "videos"])
def test_empty_batch(size):
    q, k, v = (t.requires_grad_() for t in lines(size))
    y = criss_cross(q, k, v)
    assert y.shape == v.shape
    y.sum().backward()


@pytest.mark.parametrize("size", [(2, 2, 6, 5, 3, 4), (2, 2, 3, 6, 5, 3, 4)], ids=["maps", "videos"])
def test_strides_do_not_matter(size):
    q, k, v = lines(size)
    strided = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in (q, k, v)]
    assert_same("y", criss_cross(*strided), criss_cross(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", module.PATHS)
def test_half_precision_logits_do_not_overflow(path, dtype):
    """Logits of 10^6, sums in float32: as near to the definition in float64 as the rounded output allows."""
    q, k, v = (t.to(dtype) for t in lines((1, 1, 6, 7, 64, 8)))
    q, k = 100 * q, 100 * k
    inputs = [t.requires_grad_() for t in (q, k, v)]
    with torch.autocast("cpu", dtype=dtype):
        y = module.PATHS[path](*inputs)
    assert y.dtype == dtype
    want = criss_cross_reference(*(t.detach().double() for t in inputs))
    assert_same("y", y.double(), want, 1e-2)
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("size", [(1, 1, 3, 4, 2, 2), (1, 1, 2, 2, 3, 1, 1)], ids=["maps", "videos"])
def test_second_derivatives(size):
    inputs = [t.requires_grad_() for t in lines(size)]
    assert torch.autograd.gradcheck(module.PATHS["line_blocks"], inputs)
    assert torch.autograd.gradgradcheck(module.PATHS["line_blocks"], inputs)


def test_one_tensor_as_query_and_key():
    q, _, v = lines((1, 1, 3, 4, 2, 2))
    inputs = [q.requires_grad_(), v.requires_grad_()]
    for path in module.PATHS.values():
        assert torch.autograd.gradcheck(lambda q, v, path=path: path(q, q, v), inputs)
        assert torch.autograd.gradgradcheck(lambda q, v, path=path: path(q, q, v), inputs)


def test_only_some_inputs_learn():
    q, k, v = lines((1, 1, 3, 4, 2, 2))
    (g,) = torch.autograd.grad(criss_cross(q, k, v.requires_grad_()).square().sum(), v, create_graph=True)
    g.square().sum().backward()
    assert v.grad is not None


def test_function_transforms():
    q, k, v = lines((1, 1, 3, 4, 2, 2))
    got = torch.func.grad(lambda q: criss_cross(q, k, v).square().sum())(q)
    q.requires_grad_()
    criss_cross_reference(q, k, v).square().sum().backward()
    assert_same("dq", got, q.grad)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_grows_with_positions_alone(backward):
    from lookfar.cost import peak_memory

    peaks = []
    for side in (64, 256):
        q, k, v = (torch.randn(1, 1, side, side, d, requires_grad=backward) for d in (2, 2, 8))

        def call(q=q, k=k, v=v):
            y = criss_cross(q, k, v)
            if backward:
                y.sum().backward()

        peaks.append(peak_memory(call))
    assert peaks[1] <= 16**1.1 * peaks[0]
    assert peaks[1] < 256**2 * 512 * 4 / 3, "far below the N (H + W) logits"


def test_wrong_arguments_are_named():
    q, k, v = lines((1, 1, 3, 4, 2, 2))
    with pytest.raises(ValueError, match="off its row and column"):
        criss_cross(q, k, v, normalization="double")
    with pytest.raises(ValueError, match=r"q.shape=torch.Size\(\[1, 3, 4, 2\]\)"):
        criss_cross(q[0], k[0], v[0])
