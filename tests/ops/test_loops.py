"""Loops over blocks in compiled programs, which call each as one operation."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lookfar.blocks.relation import Relation
from lookfar.cost import peak_memory
from lookfar.ops import (
    _bilinear,
    _blockwise,
    attention,
    carafe,
    deformable_convolution,
    deformable_sum,
    pointwise_spatial,
    relative_attention,
    sample_at,
)
from lookfar.ops._blockwise import log_sum_exp, over_queries
from lookfar.ops._normalization import summed
from lookfar.ops._window import Window, similarities, weighted_sum
from tests.ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph
from tests.ops._every import PREDICTED, RELATIVE, TOKENS

pytestmark = pytest.mark.skipif(not TELLS_COMPILED, reason="torch 2.8 takes what is compiled for being exported")

LOOPS = {
    "l1": (partial(attention, normalization="l1", scale=0.7), TOKENS),
    "double": (partial(attention, normalization="double", scale=0.7), TOKENS),
    "numerator and divisor": (partial(summed, normalization="l1", scale=0.7), TOKENS),
    "relative": (partial(relative_attention, size=(2, 3)), RELATIVE),
    "relative, sigmoid": (partial(relative_attention, size=(2, 3), normalization="sigmoid"), RELATIVE),
    "collect": (partial(pointwise_spatial, direction="collect"), PREDICTED),
    "distribute": (partial(pointwise_spatial, direction="distribute", normalization="none"), PREDICTED),
    "window's products": (partial(similarities, window=Window((3, 3))), {"q": (2, 3, 4), "k": (2, 3, 4)}),
    "window's sums": (partial(weighted_sum, window=Window((3, 3))), {"w": (1, 9, 3, 4), "v": (2, 2, 3, 4)}),
    "strided": (partial(weighted_sum, window=Window((3, 1), (2, 1), (1, 2))), {"w": (3, 2, 4), "v": (2, 4, 4)}),
    "clamped": (partial(similarities, window=Window((3, 3), border="clamped")), {"q": (2, 3, 4), "k": (2, 3, 4)}),
    "reassembly": (partial(carafe, kernel_size=3, groups=2), {"x": (4, 2, 3), "masks": (18, 4, 6)}),
    "places": (sample_at, {"x": (2, 3, 4), "points": (2, 5, 2)}),
    "deformable sum": (deformable_sum, {"w": (2, 9, 2, 3), "x": (4, 2, 3), "offsets": (18, 2, 3)}),
    "deformable convolution": (deformable_convolution, {"x": (4, 2, 3), "kernel": (2, 4, 3, 3), "offsets": (18, 2, 3)}),
}
TILED = ("relative", "collect")  # what their forward pass finds their backward pass reads
loops = pytest.mark.parametrize("name", LOOPS)


def case(name: str, batch: int = 2) -> tuple:
    """The op and its inputs."""
    f, shapes = LOOPS[name]
    shared = ("m", "rows", "columns", "kernel")
    shapes = [shape if key in shared else (batch, *shape) for key, shape in shapes.items()]
    return f, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 40)
    monkeypatch.setitem(_bilinear.LIMIT, "cpu", 40)
    torch._dynamo.reset()


@loops
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_loop_is_one_operation_of_a_compiled_program(name, backend, dynamic):
    if dynamic and "deformable" in name:
        pytest.skip("the side of a grid is a plain number")
    f, inputs = case(name)
    asked = [t.clone().requires_grad_() for t in inputs]
    assert f"lookfar.{'tiled' if name in TILED else 'loop'}" in compiled_graph(f, *asked, dynamic=dynamic)
    fast = torch.compile(f, fullgraph=True, dynamic=dynamic, backend=backend)
    names = " ".join(LOOPS[name][1])
    assert_same_with_grads(fast, f, *inputs, names=names)
    last = inputs[-1].requires_grad_()  # gradients of some
    (got,) = torch.autograd.grad(fast(*inputs).square().sum(), last)
    assert_same("last", got, torch.autograd.grad(f(*inputs).square().sum(), last)[0])


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "double"])  # torch's fused kernel, once alone
def test_the_loop_is_differentiated_twice(name):
    f, inputs = case(name, batch=1)
    fast = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.autograd.gradgradcheck(fast, [t.requires_grad_() for t in inputs], fast_mode=True)


@loops
def test_the_loop_of_an_empty_batch(name):
    f, inputs = case(name, batch=0)
    fast = torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_same_with_grads(fast, f, *inputs, names=" ".join(LOOPS[name][1]))


@pytest.mark.parametrize("name", ["l1", "relative", "relative, sigmoid", "collect", "deformable convolution"])
def test_the_loop_computes_in_float32_under_autocast(name):
    f, inputs = case(name)
    inputs = [t.float() for t in inputs]
    fast = torch.compile(f, fullgraph=True, backend="aot_eager")
    want = f(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same("under autocast", fast(*inputs), want)


def test_log_sum_exps_in_a_compiled_program():
    q, k = (torch.randn(2, 2, n, 3, dtype=torch.float64) for n in (6, 17))
    fast = torch.compile(log_sum_exp, fullgraph=True, backend="aot_eager")
    assert_same_with_grads(fast, lambda q, k: (q @ k.transpose(2, 3)).logsumexp(3, keepdim=True), q, k, names="q k")


@pytest.mark.parametrize("gated", [True, False])
def test_a_compiled_relation_has_the_gradients_of_its_gate(gated):
    block = Relation(8, heads=2, gated=gated, zero_init=False).double()
    x, boxes = (t.double() for t in block.sample_inputs((3, 3)))
    images = torch.tensor([[0] * 4 + [1] * 5] * 2)
    weights = [p for name, p in block.named_parameters() if name not in block.inert_parameters]

    def both(f):
        y = f(x, boxes, 7, images)
        return y.detach(), *torch.autograd.grad(y.square().sum(), weights)

    for n, (got, want) in enumerate(zip(both(torch.compile(block, fullgraph=True, backend="aot_eager")), both(block))):
        assert_same(str(n), got, want)


def test_a_compiled_program_holds_no_more_than_one_block():
    H = W = 24
    q, k, v = torch.randn(3, 1, 1, H * W, 4)
    rows, columns = torch.randn(2 * H - 1, 4), torch.randn(2 * W - 1, 4)
    op = partial(relative_attention, size=(H, W), normalization="sigmoid")
    fast = torch.compile(op, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        fast(q, k, v, rows, columns)
        assert peak_memory(lambda: fast(q, k, v, rows, columns)) < 4 * (H * W) ** 2 / 10


def test_functions_of_other_modules_are_called_once_in_a_compiled_program():
    def twice(q: Tensor, k: Tensor) -> Tensor:
        return 2 * q @ k.transpose(-2, -1)

    q, k = torch.randn(2, 1, 1, 50, 3)
    fast = torch.compile(lambda q, k: over_queries(twice, q, k, keys=50), fullgraph=True, backend="eager")
    assert_same("once", fast(q, k), twice(q, k))
