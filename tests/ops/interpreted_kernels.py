"""Kernels in Triton's interpreter, on the CPU, against the definitions in float64; test_fused_kernels.py starts this.

Every cell of every block costs the interpreter milliseconds: maps are of one block, but where it says otherwise.
"""

import importlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from ops._compare import assert_same, with_grads
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lookfar.ops import neighborhood, neighborhood_reference, relative_logits, use_fused_kernels
from lookfar.ops._window import window_of

NAMES = ["y", "dq", "dk", "dv", "dbias"]
# images, heads, H, W and what the window is
WINDOWS = {
    "mask": (1, 1, 3, 7, {"kernel_size": 3}),
    "mask, two blocks; images and heads": (2, 2, 7, 5, {"kernel_size": 3}),
    "mask, wider than the map": (1, 1, 2, 3, {"kernel_size": 5}),
    "mask, strided": (1, 1, 7, 4, {"kernel_size": (3, 5), "stride": (2, 3)}),
    "mask, stride and dilation": (1, 1, 5, 6, {"kernel_size": 3, "stride": 2, "dilation": (2, 3)}),
    "zeros": (1, 1, 5, 4, {"kernel_size": 3, "border": "zeros"}),
    "zeros, outside": (2, 1, 4, 5, {"kernel_size": 3, "border": "zeros", "outside": -1.5, "stride": 2, "dilation": 2}),
    "clamped": (1, 1, 5, 6, {"kernel_size": 3, "border": "clamped"}),
    "clamped, wider than the map": (1, 1, 2, 4, {"kernel_size": (3, 5), "border": "clamped"}),
    "one position": (1, 1, 1, 1, {"kernel_size": 3}),
}


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    use_fused_kernels()
    yield
    use_fused_kernels(False)


def draw(images: int, heads: int, H: int, W: int, options: dict, D: int = 3, E: int = 5) -> list[Tensor]:
    """q, k, v and a bias for each cell, in float32."""
    window = window_of(options["kernel_size"], options.get("stride", 1), options.get("dilation", 1), "mask")
    q, bias = torch.randn(images, heads, D, *window.grid(H, W)), torch.randn(heads, window.cells, 1, 1)
    return [q, torch.randn(images, heads, D, H, W), torch.randn(images, heads, E, H, W), bias]


def call(op, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **options) -> Tensor:
    y = op(q, k, v, bias=bias, scale=0.7, **options)
    if op is neighborhood and y.requires_grad:
        assert "lookfar_neighborhood" in type(y.grad_fn).__name__, "the loop over cells has run"
    return y


def assert_as_defined(inputs: list[Tensor], tolerance: float = 1e-5, **options) -> None:
    """Output and gradients, from inputs of any precision, as the definition gives them in float64."""
    got = with_grads(partial(call, neighborhood, **options), *inputs)
    want = with_grads(partial(call, neighborhood_reference, **options), *(t.double() for t in inputs))
    assert [t.dtype for t in got] == [inputs[2].dtype, *(t.dtype for t in inputs)]
    for what, g, w in zip(NAMES, got, want):
        assert_same(what, g, w, tolerance)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_equals_the_definition(window):
    assert_as_defined(draw(*window), **window[-1])


@pytest.mark.parametrize("border", ["mask", "zeros", "clamped"])
def test_bias_of_every_query(border):
    """As relative embeddings give it, here with cells that are taken out."""
    options = {"kernel_size": 3, "border": border}
    q, k, v, _ = draw(1, 2, 2, 4, options)
    bias = torch.randn(1, 2, 9, 2, 4)
    bias[:, :, 3] = -torch.inf  # first for the queries of the left column, which have none before it
    assert_as_defined([q, k, v, bias], **options)


def test_relative_embeddings_learn():
    q, k, v, _ = draw(1, 2, 3, 4, {"kernel_size": 3}, D=4)

    def op(f, q, rows, columns):
        return f(q, k.to(q), v.to(q), bias=relative_logits(q, rows, columns), kernel_size=3)

    inputs = [q, torch.randn(2, 2, 3), torch.randn(1, 2, 3)]
    got = with_grads(partial(op, neighborhood), *inputs)
    want = with_grads(partial(op, neighborhood_reference), *(t.double() for t in inputs))
    for what, g, w in zip(["y", "dq", "drows", "dcolumns"], got, want):
        assert_same(what, g, w, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision(dtype, tolerance):
    q, k, v, bias = draw(1, 1, 3, 4, {"kernel_size": 3})
    assert_as_defined([(4 * q).to(dtype), k.to(dtype), v.to(dtype), bias], tolerance, kernel_size=3)


def test_any_of_the_inputs_and_any_layout():
    q, k, v, bias = draw(1, 2, 3, 5, {"kernel_size": 3})
    q, v = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (q, v))
    want = call(neighborhood_reference, *(t.double() for t in (q, k, v, bias)), kernel_size=3)
    assert_same("no gradient", call(neighborhood, q, k, v, bias, kernel_size=3), want, 1e-5)
    assert_as_defined([q, k, v], kernel_size=3)
    k.requires_grad_()
    got = torch.autograd.grad(call(neighborhood, q, k, v, bias, kernel_size=3).square().sum(), k)[0]
    want = torch.autograd.grad(call(neighborhood_reference, q, k, v, bias, kernel_size=3).square().sum(), k)[0]
    assert_same("dk alone", got, want)


def test_no_images():
    inputs = [t.requires_grad_() for t in draw(0, 2, 3, 4, {"kernel_size": 3})]
    y = call(neighborhood, *inputs, kernel_size=3)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert y.shape == (0, 2, 5, 3, 4)
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert not grads[3].any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
def test_nan_where_the_definition_has_it():
    q, k, v, _ = draw(1, 1, 2, 4, {"kernel_size": 3})
    bias = torch.zeros(1, 1, 9, 2, 4)
    bias[..., 0, 0] = -torch.inf  # no cell is left
    k[0, 0, 0, 1, 3] = torch.nan
    got, want = (call(op, q, k, v, bias, kernel_size=3) for op in (neighborhood, neighborhood_reference))
    assert want[..., 0].isnan().any()
    assert not want.isnan().all()
    assert torch.equal(got.isnan(), want.isnan())


def test_the_output_may_be_changed_in_place():
    inputs = draw(1, 1, 2, 3, {"kernel_size": 3})
    got = with_grads(lambda *t: call(neighborhood, *t, kernel_size=3).mul_(2), *inputs)
    want = with_grads(lambda *t: 2 * call(neighborhood_reference, *t, kernel_size=3), *inputs)
    for what, g, w in zip(NAMES, got, want):
        assert_same(what, g, w)


@pytest.mark.parametrize("biased", [True, False])
def test_second_derivatives(biased):
    def twice(op, *inputs):
        found = torch.autograd.grad(call(op, *inputs, kernel_size=3).sin().sum(), inputs, create_graph=True)
        return torch.stack([g.square().sum() for g in found])

    inputs = draw(1, 1, 2, 3, {"kernel_size": 3})[: 4 if biased else 3]
    for what, g, w in zip(NAMES, with_grads(partial(twice, neighborhood), *inputs),
                          with_grads(partial(twice, neighborhood_reference), *inputs)):  # fmt: skip
        assert_same(what, g, w)


def test_transforms_take_the_loop():
    inputs = [torch.stack([t, t + 1]) for t in draw(1, 1, 2, 3, {"kernel_size": 3})]

    def one(op, *t):
        return torch.func.grad(lambda *t: op(*t[:3], bias=t[3], kernel_size=3).sin().sum(), argnums=(0, 1, 2, 3))(*t)

    for what, g, w in zip(NAMES[1:], torch.vmap(partial(one, neighborhood))(*inputs),
                          torch.vmap(partial(one, neighborhood_reference))(*inputs)):  # fmt: skip
        assert_same(what, g, w)
    moved = torch.func.jvp(lambda q: neighborhood(q, *(t[0] for t in inputs[1:3]), kernel_size=3),
                           (inputs[0][0],), (inputs[0][1],))[1]  # fmt: skip
    assert moved.isfinite().all()


def test_what_it_cannot_do_takes_the_loop():
    q, k, v, _ = draw(1, 1, 2, 3, {"kernel_size": 3})
    q.requires_grad_()
    for options in ({"similarity": "squared"}, {"normalization": "sigmoid"}):
        y = neighborhood(q, k, v, kernel_size=3, **options)
        assert "lookfar_neighborhood" not in type(y.grad_fn).__name__
    assert neighborhood(q.double(), k.double(), v.double(), kernel_size=3).dtype == torch.float64
    use_fused_kernels(False)
    assert "lookfar_neighborhood" not in type(neighborhood(q, k, v, kernel_size=3).grad_fn).__name__


def test_compiled():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    inputs = draw(1, 1, 2, 3, {"kernel_size": 3})
    op = partial(neighborhood, kernel_size=3)
    program = torch.compile(
        lambda q, k, v, bias: op(q, k, v, bias=bias), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    want = with_grads(lambda q, k, v, bias: neighborhood_reference(q, k, v, bias=bias, kernel_size=3), *inputs)
    for what, g, w in zip(NAMES, with_grads(program, *inputs), want):
        assert_same(what, g, w)
    torch.compile(lambda q, k, v: op(q, k, v), fullgraph=True, backend=keep)(*inputs[:3])
    fused = any("lookfar.neighborhood" in str(node.target) for node in graphs[0].graph.nodes)
    assert fused == (tuple(map(int, torch.__version__.split(".")[:2])) > (2, 8))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
def test_registered_as_torch_wants_it():
    inputs = [t.requires_grad_() for t in draw(1, 1, 2, 2, {"kernel_size": 3})]
    torch.library.opcheck(torch.ops.lookfar.neighborhood.default, (*inputs, [3, 3, 1, 1, 1, 1], "mask", 0.0, 1.0))


def test_exports_hold_no_kernel():
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return neighborhood(q, k, v, kernel_size=3)

    inputs = tuple(draw(1, 1, 2, 3, {"kernel_size": 3})[:3])
    program = torch.export.export(Layer(), inputs)
    assert "lookfar" not in str(program.graph)
    assert_same("exported", program.module()(*inputs), neighborhood_reference(*inputs, kernel_size=3))


def test_flops():
    """2 N k^2 (D + E) forward, 2 N k^2 (5 D + 4 E) backward."""
    inputs = [t.requires_grad_() for t in draw(1, 2, 2, 3, {"kernel_size": 3})]
    with FlopCounterMode(display=False) as counter:
        y = call(neighborhood, *inputs, kernel_size=3)
        assert counter.get_total_flops() == 2 * 2 * 6 * 9 * (3 + 5)
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 6 * 9 * (6 * 3 + 5 * 5)


def test_it_is_interpreted():
    assert importlib.import_module("lookfar.ops._triton").INTERPRETED
