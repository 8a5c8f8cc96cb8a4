"""The pairwise ops against their definitions: every path, odd sizes, half precision, second derivatives, graphs."""

import importlib
import math
from functools import partial

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph, with_grads
from torch import Tensor

from lookfar.ops import (
    attention,
    attention_reference,
    attention_weights,
    concatenation,
    concatenation_reference,
    concatenation_weights,
    dot_product,
    dot_product_reference,
    embedded_gaussian,
    embedded_gaussian_reference,
    multiplied_attention,
    multiplied_attention_reference,
    pairwise_attention,
    pairwise_attention_reference,
    unary_attention,
)
from lookfar.ops._blockwise import attention_with_lse, merge, over_queries

blockwise = importlib.import_module("lookfar.ops._blockwise")
tiles = importlib.import_module("lookfar.ops._tiles")
concatenation_paths = importlib.import_module("lookfar.ops.concatenation").PATHS
gaussian_module = importlib.import_module("lookfar.ops.embedded_gaussian")
dot_module = importlib.import_module("lookfar.ops.dot_product")

# B, h, N, M, D, E
SIZES = {
    "one": (1, 1, 1, 1, 1, 1),
    "D<E": (2, 1, 63, 63, 4, 24),
    "D>E, M<N": (1, 3, 130, 49, 9, 7),
    "D=E, N<M": (2, 2, 17, 35, 8, 8),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def tokens(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    B, h, N, M, D, E = size
    return [torch.randn(B, h, n, d, dtype=dtype) for n, d in [(N, D), (M, D), (M, E)]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few queries, tiles of some keys at the sizes of the tests."""
    monkeypatch.setitem(blockwise.BUDGET, "cpu", 1000)
    monkeypatch.setitem(tiles.LIMITS, "rows", 9)
    monkeypatch.setitem(tiles.LIMITS, "keys", 20)


@each_dtype
@each_size
@pytest.mark.parametrize("path", gaussian_module.PATHS)
def test_embedded_gaussian(path, size, dtype, small_blocks):
    def fast(q, k, v):
        return gaussian_module.PATHS[path](q, k, v, 0.7)

    assert_same_with_grads(fast, partial(embedded_gaussian_reference, scale=0.7), *tokens(size, dtype), names="q k v")


@each_dtype
@pytest.mark.parametrize("N", [1, 8, 9, 43])
@pytest.mark.parametrize("path", gaussian_module.PATHS)
def test_queries_that_are_the_keys(path, N, dtype, small_blocks):
    """Tiles then serve the queries of their rows and of their columns, and gradients go to one tensor."""
    scale = 20.0 if dtype == torch.float64 else 0.7  # e^1000 overflows

    def fast(q, v):
        return gaussian_module.PATHS[path](q, q, v, scale)

    def definition(q, v):
        return embedded_gaussian_reference(q, q, v, scale=scale)

    q, _, v = tokens((2, 2, N, N, 5, 8), dtype)
    assert_same_with_grads(fast, definition, q, v, names="q v")
    x = tokens((1, 2, 43, 43, 5, 5), dtype)[0]  # queries, keys and values at once
    assert_same_with_grads(lambda x: fast(x, x), lambda x: definition(x, x), x, names="x")


def test_second_derivatives_where_queries_are_the_keys(small_blocks):
    q, _, v = (t.requires_grad_() for t in tokens((1, 1, 23, 23, 2, 3)))
    assert torch.autograd.gradgradcheck(lambda q, v: gaussian_module.PATHS["tiles"](q, q, v, 1.0), (q, v))


@pytest.mark.parametrize("where", ["first", "last", "all"])
def test_tiles_of_keys_that_are_masked(where, small_blocks):
    """Logits of minus infinity: in the first tile, which then has no largest, in the last, in all."""
    q, k, v = tokens((1, 2, 11, 50, 1, 30))
    q = q.abs()
    k[:, :, {"first": slice(0, 25), "last": slice(40, None), "all": slice(None)}[where]] = -torch.inf
    got, want = gaussian_module.PATHS["tiles"](q, k, v, 1.0), embedded_gaussian_reference(q, k, v)
    assert torch.equal(got.isnan(), want.isnan())
    assert_same("y", got.nan_to_num(), want.nan_to_num())


def test_a_tile_with_larger_logits_than_those_before(small_blocks):
    q, k, v = tokens((1, 1, 20, 60, 2, 30))
    k = k * torch.linspace(1, 200, 60, dtype=k.dtype)[:, None]  # e^1000 overflows
    fast = partial(gaussian_module.PATHS["tiles"], scale=1.0)
    assert_same_with_grads(fast, embedded_gaussian_reference, q, k, v, names="q k v")


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_logits_at_the_limit_of_what_needs_no_shift(share, small_blocks, monkeypatch):
    """As small and as large as they may be, in float32 and of either sign; the first queries have none."""
    q, k, v = tokens((1, 2, 20, 50, 1, 30))
    q, k = q.sign() * math.log(2) * share * tiles.SMALL, k.sign()
    q[:, :, :9] = 0
    add, shifted = tiles._add, []
    monkeypatch.setattr(tiles, "_add", lambda *args: (shifted.append(1), add(*args)))
    y = gaussian_module.PATHS["tiles"](q.float(), k.float(), 1e15 * v.float(), 1.0)
    assert bool(shifted) == (share > 1)
    assert_same("y", y.double() / 1e15, embedded_gaussian_reference(q, k, v), 2e-5)


@pytest.mark.parametrize(
    ("widths", "path"), [((32, 256), "tiles"), ((64, 512), "tiles"), ((256, 128), "tiles"), ((128, 128), "fused")]
)
def test_tiles_are_for_widths_that_differ(widths, path, monkeypatch):
    q, k, v = tokens((1, 1, 5, 6, *widths), torch.float32)
    called = []
    for name in gaussian_module.PATHS:
        monkeypatch.setitem(gaussian_module.PATHS, name, lambda *_, name=name: called.append(name))
    embedded_gaussian(q, k, v)
    assert called == ["direct"]  # few weights
    called.clear()
    monkeypatch.setitem(tiles.LIMITS, "rows", 4)
    monkeypatch.setitem(tiles.LIMITS, "keys", 5)
    embedded_gaussian(q, k, v)
    assert called == [path]
    embedded_gaussian(q, q, v[:, :, :5])
    assert called == [path, "tiles"]


CALLED = (2, 2, 35, 50, 3, 60)  # widths that differ as much as tiles are for


class Tiles(torch.nn.Module):
    def forward(self, q, k, v):
        return embedded_gaussian(q, k, v, scale=0.7).relu_()  # in place, where the gradient needs what was there


calls_tiles = pytest.mark.skipif(not TELLS_COMPILED, reason="torch 2.8 takes what is compiled for being exported")


@calls_tiles
def test_compiled_programs_call_the_tiles(small_blocks):
    def fast(backend):
        return torch.compile(Tiles(), fullgraph=True, dynamic=True, backend=backend)

    def want(q, k, v):
        return embedded_gaussian_reference(q, k, v, scale=0.7).relu()

    inputs = tokens(CALLED)
    assert "lookfar.tiles" in compiled_graph(Tiles(), *inputs)
    for backend in ("eager", "aot_eager"):
        assert_same_with_grads(fast(backend), want, *inputs, names="q k v")
        torch._dynamo.reset()
    q, k, v = inputs  # gradients of some
    (dq,) = torch.autograd.grad(fast("aot_eager")(q.requires_grad_(), k, v).sum(), q)
    assert_same("dq", dq, torch.autograd.grad(want(q, k, v).sum(), q)[0])


class OwnKeys(torch.nn.Module):
    def forward(self, q, v):
        return embedded_gaussian(q, q, v, scale=0.7)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_tiles_where_queries_are_the_keys(backend, small_blocks):
    def want(q, v):
        return embedded_gaussian_reference(q, q, v, scale=0.7)

    fast = torch.compile(OwnKeys(), fullgraph=True, dynamic=True, backend=backend)
    q, _, v = tokens((2, 2, 35, 35, 3, 64))
    assert_same_with_grads(fast, want, q, v, names="q v")
    (dv,) = torch.autograd.grad(fast(q, v.requires_grad_()).sum(), v)
    assert_same("dv", dv, torch.autograd.grad(want(q, v).sum(), v)[0])


@calls_tiles
@pytest.mark.parametrize("own_keys", [False, True])
def test_compiled_tiles_are_differentiated_twice(own_keys, small_blocks):
    q, k, v = (t.requires_grad_() for t in tokens((1, 1, 3, 3 if own_keys else 4, 2, 64)))
    f = OwnKeys() if own_keys else partial(embedded_gaussian, scale=0.7)
    fast = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.autograd.gradgradcheck(fast, (q, v) if own_keys else (q, k, v), fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # of torch's own decompositions
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch 2.8, which has no tiles in programs
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_are_compiled_without_tiles(transform):
    def f(q, k, v):
        if transform == "vmap":
            return torch.vmap(embedded_gaussian)(q[:, None], k[:, None], v[:, None])
        if transform == "grad":
            return torch.func.grad(lambda q: embedded_gaussian(q, k, v).square().sum())(q)
        return torch.func.jvp(lambda q: embedded_gaussian(q, k, v), (q,), (q,))[1]

    inputs = tokens(CALLED)
    assert_same(transform, torch.compile(f, backend="aot_eager")(*inputs), f(*inputs))


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_hold_no_tiles(strict):
    inputs = tuple(tokens(CALLED))
    program = torch.export.export(Tiles(), inputs, strict=strict)
    assert "lookfar" not in str(program.graph)
    assert_same("exported", program.module()(*inputs), Tiles()(*inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
@pytest.mark.parametrize("size", [CALLED, (0, 1, 5, 6, 3, 60), (1, 1, 5, 0, 3, 60)], ids=["some", "none", "no key"])
def test_tiles_are_registered_as_torch_wants_it(size, small_blocks):
    q, k, v = (t.requires_grad_() for t in tokens(size))
    torch.library.opcheck(torch.ops.lookfar.tiles.default, (q, k, v, 0.7))
    for some in ((q, k.detach(), v.detach()), (q.detach(), k.detach(), v)):
        torch.library.opcheck(torch.ops.lookfar.tiles.default, (*some, 0.7))


@each_dtype
@each_size
@pytest.mark.parametrize("path", dot_module.PATHS)
def test_dot_product(path, size, dtype):
    def fast(q, k, v):
        return dot_module.PATHS[path](q, k, v, 0.7)

    assert_same_with_grads(fast, partial(dot_product_reference, scale=0.7), *tokens(size, dtype), names="q k v")


@each_dtype
@each_size
@pytest.mark.parametrize("normalization", ["softmax", "double", "l1", "sigmoid", "none"])
def test_tokens_that_are_views_of_maps(normalization, size, dtype):
    q, k, v = tokens(size, dtype)
    if normalization == "l1":
        q, k = q.abs() + 0.1, k.abs() + 0.1

    def viewed(q, k, v):
        q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))
        return attention(q, k, v, scale=0.7, normalization=normalization)

    want = partial(attention_reference, scale=0.7, normalization=normalization)
    assert_same_with_grads(viewed, want, q, k, v, names="q k v")
    if normalization == "softmax" and v.shape[2] > 1 < v.shape[3]:
        assert viewed(q, k, v).transpose(2, 3).is_contiguous()  # a map needs no copy


@each_dtype
@each_size
@pytest.mark.parametrize("normalization", ["softmax", "double", "l1", "sigmoid", "none"])
def test_normalizations(normalization, size, dtype, small_blocks):
    options = {"scale": 0.7, "normalization": normalization}
    q, k, v = tokens(size, dtype)
    if normalization == "l1":  # sums of random signs come near 0, where nothing is well conditioned
        q, k = q.abs() + 0.1, k.abs() + 0.1
    assert_same_with_grads(
        partial(attention, **options), partial(attention_reference, **options), q, k, v, names="q k v"
    )


@each_size
@pytest.mark.parametrize("normalization", ["softmax", "double", "l1", "sigmoid", "none"])
def test_weights_of_some_queries_are_those_of_all(normalization, size):
    q, k, v = tokens(size)
    some = torch.arange(0, q.shape[-2], 3)
    weights = attention_weights(q[..., some, :], k, normalization=normalization, all_queries=q)
    assert_same("weights", weights @ v, attention_reference(q, k, v, normalization=normalization)[..., some, :])


def test_few_weights_are_normalised_twice_as_they_are_defined():
    q, k, v = tokens((2, 2, 17, 9, 4, 6))
    got = attention(q, k, v, scale=0.7, normalization="double")
    assert torch.equal(got, attention_reference(q, k, v, scale=0.7, normalization="double"))


def test_l1_of_signed_similarities():
    q, k = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0], [-3.0]]]])
    assert attention_weights(q, k, normalization="l1").flatten().tolist() == [0.25, -0.75]


def sorted_concatenation(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return concatenation_paths["sorted"](a, b, v, "none")


@pytest.mark.parametrize(("N", "path"), [(44, "sorted"), (4, "definition")])
def test_few_weights_are_concatenated_by_definition(N, path, small_blocks, monkeypatch):
    called = []
    for name in concatenation_paths:
        monkeypatch.setitem(concatenation_paths, name, lambda *_, name=name: called.append(name))
    concatenation(torch.ones(1, 1, N), torch.ones(1, 1, 44), torch.ones(1, 1, 44, 2))
    assert called == [path]


@each_dtype
@each_size
@pytest.mark.parametrize("path", concatenation_paths)
@pytest.mark.parametrize("normalization", ["none", "l1"])
def test_concatenation(normalization, path, size, dtype):
    q, k, v = tokens(size, dtype)
    a, b = q.sum(-1), k.sum(-1)
    fast = partial(concatenation_paths[path], normalization=normalization)
    reference = partial(concatenation_reference, normalization=normalization)
    assert_same_with_grads(fast, reference, a, b, v, names="a b v")
    assert_same("weights", concatenation_weights(a, b, normalization=normalization) @ v, reference(a, b, v))


def test_concatenation_counts_exact_zeros_as_relu_does():
    a, b = (torch.randint(-3, 4, (2, 1, n), dtype=torch.float64) for n in (40, 33))
    assert_same_with_grads(
        sorted_concatenation,
        concatenation_reference,
        a,
        b,
        torch.randn(2, 1, 33, 5, dtype=torch.float64),
        names="a b v",
    )


def test_concatenation_survives_opposite_offsets():
    a, b, v = torch.randn(1, 1, 500) + 30, torch.randn(1, 1, 400) - 30, torch.randn(1, 1, 400, 8)
    y = sorted_concatenation(a, b, v)
    assert_same("y", y, concatenation_reference(a.double(), b.double(), v.double()).float(), 1e-6)


@each_dtype
@each_size
def test_disentangled(size, dtype):
    q, k, v = tokens(size, dtype)
    logits = torch.randn(k.shape[:-1], dtype=dtype)
    assert_same_with_grads(
        partial(pairwise_attention, scale=0.7), partial(pairwise_attention_reference, scale=0.7), q, k, v, names="q k v"
    )
    assert_same_with_grads(multiplied_attention, multiplied_attention_reference, q, k, logits, v, names="q k logits v")
    assert_same_with_grads(unary_attention, lambda l, v: l.softmax(-1).unsqueeze(-2) @ v, logits, v, names="logits v")


def test_joint_attention_is_pairwise_times_unary():
    q, k, v = tokens((2, 1, 30, 20, 5, 6))
    unary = (q.mean(-2, keepdim=True) @ k.transpose(-2, -1)).squeeze(-2)
    centred = q - q.mean(-2, keepdim=True)
    assert_same("joint", multiplied_attention(centred, k, unary, v), embedded_gaussian_reference(q, k, v))


@each_size
def test_log_sum_exp_and_merging(size, small_blocks):
    q, k, v = tokens(size)
    cut = k.shape[-2] // 2

    def merged(q, k, v):
        halves = [(k[..., :cut, :], v[..., :cut, :]), (k[..., cut:, :], v[..., cut:, :])]
        parts = [attention_with_lse(q, *half, scale=0.7) for half in halves if half[0].shape[-2]]
        return merge([(part[..., :-1], part[..., -1:]) for part in parts])

    assert_same_with_grads(merged, partial(embedded_gaussian_reference, scale=0.7), q, k, v, names="q k v")
    lse = attention_with_lse(q, k, v)[..., -1:]
    assert_same("lse", lse, (q @ k.transpose(-2, -1)).logsumexp(-1, keepdim=True))


def test_blocks_hold_no_more_logits_than_allowed(small_blocks):
    seen = []

    def f(q, k):
        seen.append(q.shape[-2] * k.shape[-2])
        return q @ k.transpose(-2, -1) @ k

    q, k, _ = tokens((1, 1, 130, 49, 4, 4))
    y, dq, dk = with_grads(partial(over_queries, f, keys=49), q, k)
    assert max(seen) <= 1000
    assert sum(seen) == 2 * 130 * 49  # once forward, once again for the gradient
    assert_same("y", y, f(q, k))


@pytest.mark.parametrize(
    "op", [embedded_gaussian, attention, dot_product, pairwise_attention], ids=lambda op: op.__name__
)
def test_second_derivatives(op):
    inputs = [t.requires_grad_() for t in tokens((1, 1, 4, 17, 2, 3))]
    assert torch.autograd.gradcheck(op, inputs)
    assert torch.autograd.gradgradcheck(op, inputs)


def test_second_derivatives_of_concatenation():
    a, b, v = (torch.randn(1, 1, *s, dtype=torch.float64, requires_grad=True) for s in [(6,), (5,), (5, 2)])
    assert torch.autograd.gradcheck(sorted_concatenation, (a, b, v))
    assert torch.autograd.gradgradcheck(sorted_concatenation, (a, b, v))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 3, 7, 15, 16, 33])
def test_a_query_that_is_nan_is_nan_with_however_few_keys(keys, dtype):
    """Torch's kernels for CPUs lose it in the rest that does not fill a vector, whose length is the processor's."""
    q, k, v = torch.randn(1, 1, 5, 8, dtype=dtype), *torch.randn(2, 1, 1, keys, 8, dtype=dtype)
    q[..., -1, 0] = float("nan")
    lost = embedded_gaussian(q, k, v).isnan()
    assert lost[..., -1, :].all()
    assert not lost[..., :-1, :].any()


def test_one_tensor_as_query_key_and_value():
    (x,) = (t.requires_grad_() for t in tokens((1, 1, 17, 17, 3, 3))[:1])

    def penalty(op):
        (g,) = torch.autograd.grad(op(x, x, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    assert_same("second", penalty(embedded_gaussian), penalty(embedded_gaussian_reference))


def test_backward_twice_over_one_graph():
    q, k, v = (t.requires_grad_() for t in tokens((1, 1, 9, 17, 3, 4)))
    y = embedded_gaussian(q, k, v).square().sum()
    first = torch.autograd.grad(y, q, retain_graph=True)[0]
    assert_same("again", torch.autograd.grad(y, q)[0], first)


def test_function_transforms():
    q, k, v = tokens((1, 1, 5, 17, 3, 3))
    want = with_grads(lambda q: embedded_gaussian(q, k, v), q)
    weighting = torch.randn(want[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.func.grad(lambda q: (embedded_gaussian(q, k, v) * weighting).sum())(q)
    assert_same("torch.func.grad", got, want[1])


EVERY = {
    "embedded_gaussian": (embedded_gaussian, embedded_gaussian_reference),
    "double": (partial(attention, normalization="double"), partial(attention_reference, normalization="double")),
    "sigmoid": (partial(attention, normalization="sigmoid"), partial(attention_reference, normalization="sigmoid")),
    "dot_product": (dot_product, dot_product_reference),
    "concatenation": (
        lambda q, k, v: sorted_concatenation(q.sum(-1), k.sum(-1), v),
        lambda q, k, v: concatenation_reference(q.sum(-1), k.sum(-1), v),
    ),
    "multiplied": (
        lambda q, k, v: multiplied_attention(q, k, k.sum(-1), v),
        lambda q, k, v: multiplied_attention_reference(q, k, k.sum(-1), v),
    ),
}
each_op = pytest.mark.parametrize(("op", "reference"), EVERY.values(), ids=EVERY)


@each_op
@pytest.mark.parametrize("shape", [(0, 1, 5, 6), (2, 1, 0, 6), (1, 2, 0, 0)], ids=["batch 0", "no query", "nothing"])
def test_empty(op, reference, shape):
    B, h, N, M = shape
    y, *grads = with_grads(op, *tokens((B, h, N, M, 3, 4)))
    assert y.shape == (B, h, N, 4)
    assert all(not g.isnan().any() for g in grads)


@each_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_neither_overflows_nor_loses_the_logits(op, reference, dtype):
    q, k, v = tokens((1, 1, 70, 65, 64, 8), torch.float32)
    q, k, v = (100 * q).to(dtype), (100 * k).to(dtype), (v / 1000).to(dtype)  # products near 10^5
    want = reference(q.double(), k.double(), v.double())
    with torch.autocast("cpu", dtype=dtype):
        got = op(q, k, v)
    assert got.dtype == dtype
    assert_same("y", got.double(), want, 4 * torch.finfo(dtype).eps)


@each_op
def test_compiled_and_exported_in_one_graph(op, reference):
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return op(q, k, v)

    inputs = tokens((1, 2, 9, 7, 3, 4), torch.float32)
    want = reference(*inputs)
    assert_same("compiled", torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs), want)
    assert_same("exported", torch.export.export(Module(), tuple(inputs)).module()(*inputs), want)


def test_errors_name_the_shapes():
    q, k, v = tokens((1, 1, 5, 4, 3, 2))
    for op in (embedded_gaussian, attention, dot_product):
        with pytest.raises(ValueError, match=r"got q.shape=.*5, 3"):
            op(q, k, v[..., :3, :])
    with pytest.raises(ValueError, match="softmax, double, l1, sigmoid or none, got 'sparse'"):
        attention(q, k, v, normalization="sparse")
    with pytest.raises(ValueError, match="none or l1, got 'softmax'"):
        concatenation(q[..., 0], k[..., 0], v, normalization="softmax")
    with pytest.raises(ValueError, match=r"got a.shape"):
        concatenation(q[..., 0], k[..., 0], v[..., :3, :])
