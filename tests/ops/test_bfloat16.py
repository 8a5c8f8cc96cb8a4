"""bfloat16 on a CPU, with products in it, as where the processor has them, and without."""

import importlib

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, compiled_graph
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lookfar
from lookfar.ops import (
    _pointwise,
    _precision,
    _tiles,
    channel_attention,
    channel_attention_reference,
    dot_product,
    dot_product_reference,
    embedded_gaussian,
    embedded_gaussian_reference,
    multiplied_attention,
    multiplied_attention_reference,
    unary_attention,
)

gaussian = importlib.import_module("lookfar.ops.embedded_gaussian")
channels = importlib.import_module("lookfar.ops.channel_attention")
OUTPUT, GRADIENT = 6e-3, 1.2e-2  # a rounding alone is 1.7e-3 of the length of what is rounded


@pytest.fixture(params=[True, False], ids=["multiplied", "widened"])
def multiplied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Processors without such products give them, too, slowly."""
    monkeypatch.setattr(_precision, "PROCESSOR_MULTIPLIES", request.param)
    return request.param


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_tiles.LIMITS, "rows", 9)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 20)


def some(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def close(op, reference, *inputs: Tensor, output: float = OUTPUT, gradient: float = GRADIENT) -> None:
    """Output and gradients against the definition in float64, by the length of their differences."""
    found = []
    for f, given in ((op, inputs), (reference, [t.double() for t in inputs])):
        leaves = [t.detach().clone().requires_grad_() for t in given]
        with torch.no_grad():
            alone = f(*leaves)
        y = f(*leaves)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        found.append([alone, y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    for n, (got, want) in enumerate(zip(*found)):
        assert n < 2 or got.dtype == inputs[n - 2].dtype
        # one key has the gradient 0, which is the difference of two numbers
        least = float(dy.double().norm()) if n >= 2 else 0.0
        off = float((got.double() - want).norm()) / max(float(want.norm()), least)
        assert off < (output if n < 2 else gradient), f"{n}: off by {off:.1e}"


def of_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return gaussian.PATHS["tiles"](q, k, v, 1.0)


SIZES = [(1, 1, 1, 1, 3, 5), (1, 1, 43, 1, 8, 4), (1, 1, 1, 57, 8, 4), (2, 3, 23, 37, 5, 8), (1, 1, 61, 83, 16, 16)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tiled", [True, False], ids=["tiles", "few weights"])
def test_attention(size, tiled, multiplied, request):
    if tiled:
        request.getfixturevalue("small_tiles")
    B, h, N, M, D, E = size
    op = of_tiles if multiplied and tiled else embedded_gaussian
    close(op, embedded_gaussian_reference, some(B, h, N, D), some(B, h, M, D), some(B, h, M, E))


@pytest.mark.parametrize("N", [1, 8, 43])
def test_queries_that_are_the_keys(N, multiplied, small_tiles):
    q, v = some(2, 2, N, 80) / 8, some(2, 2, N, 5)
    close(lambda q, v: embedded_gaussian(q, q, v), lambda q, v: embedded_gaussian_reference(q, q, v), q, v)
    x = some(2, 2, N, 80) / 8
    close(lambda x: embedded_gaussian(x, x, x), lambda x: embedded_gaussian_reference(x, x, x), x)


@pytest.mark.parametrize("size", [0.01, 1, 30])
def test_logits_of_any_size(size, multiplied, small_tiles):
    """Rounded to bfloat16 the largest would be off by one and more."""
    q, k, v = some(1, 1, 30, 16), size * some(1, 1, 50, 16), some(1, 1, 50, 24)
    op = of_tiles if multiplied else embedded_gaussian
    close(op, embedded_gaussian_reference, q, k, v, gradient=GRADIENT if size < 30 else 2e-2)


def test_values_with_a_large_mean(monkeypatch):
    """dP is then large and nearly the same for all keys, and what it differs by is what counts."""
    monkeypatch.setattr(_precision, "PROCESSOR_MULTIPLIES", True)
    given = some(1, 1, 100, 8), some(1, 1, 300, 8), 4 + some(1, 1, 300, 16)
    dy = some(1, 1, 100, 16).abs()
    found = []
    for f, wide in ((of_tiles, False), (embedded_gaussian_reference, True)):
        leaves = [(t.double() if wide else t.clone()).requires_grad_() for t in given]
        found.append(torch.autograd.grad(f(*leaves), leaves, dy.to(leaves[0].dtype)))
    off = [float((got.double() - want).norm() / want.norm()) for got, want in zip(*found)]
    # with the mean taken away after rounding .07 and .03, as much with other sums than those of rounded weights
    assert off[0] < 0.06
    assert off[1] < 0.02


def test_queries_and_keys_in_float32(multiplied, small_tiles):
    q, k, v = torch.randn(2, 2, 23, 5), torch.randn(2, 2, 37, 5), some(2, 2, 37, 8)
    close(embedded_gaussian, embedded_gaussian_reference, q, k, v)
    close(embedded_gaussian, embedded_gaussian_reference, q.bfloat16(), k.bfloat16(), v.float())
    given = some(2, 2, 23, 5), some(2, 2, 37, 5), torch.randn(2, 2, 37), v
    close(multiplied_attention, multiplied_attention_reference, *given)


def test_masked_keys(multiplied, small_tiles):
    q, k, v = some(1, 2, 11, 1).abs(), some(1, 2, 50, 1), some(1, 2, 50, 30)  # widths for tiles
    k[:, :, :25] = -torch.inf
    y = embedded_gaussian(q, k, v)
    assert_same("y", y.double(), embedded_gaussian_reference(q.double(), k.double(), v.double()), 0.02)


def test_tiles_where_the_processor_multiplies(multiplied, small_tiles, monkeypatch):
    called: list[str] = []
    for name in gaussian.PATHS:
        monkeypatch.setitem(gaussian.PATHS, name, lambda *_, name=name: called.append(name))
    embedded_gaussian(some(1, 1, 50, 8), some(1, 1, 60, 8), some(1, 1, 60, 32))
    embedded_gaussian(some(1, 1, 50, 8), some(1, 1, 60, 8), some(1, 1, 60, 8))  # of equal widths the kernel is leaner
    assert called == ["tiles" if multiplied else "fused", "fused"]


def test_second_derivatives(multiplied, small_tiles):
    def penalty(f, *given: Tensor) -> Tensor:
        leaves = [t.detach().clone().requires_grad_() for t in given]
        grads = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)[0]

    given = some(1, 1, 30, 5), some(1, 1, 50, 5), some(1, 1, 50, 40)
    got, want = penalty(embedded_gaussian, *given), penalty(embedded_gaussian_reference, *(t.double() for t in given))
    assert float((got.double() - want).norm() / want.norm()) < 0.05


@pytest.mark.skipif(not TELLS_COMPILED, reason="torch 2.8 takes what is compiled for being exported")
def test_compiled_programs_call_the_tiles(monkeypatch, small_tiles):
    monkeypatch.setattr(_precision, "PROCESSOR_MULTIPLIES", True)
    q, k, v = (t.requires_grad_() for t in (some(1, 2, 30, 5), some(1, 2, 50, 5), some(1, 2, 50, 40)))
    assert "lookfar.tiles" in compiled_graph(embedded_gaussian, q, k, v)
    compiled = torch.compile(embedded_gaussian, fullgraph=True, backend="aot_eager")
    y, want = compiled(q, k, v), embedded_gaussian(q, k, v)
    assert torch.equal(y, want)
    dy = some(*y.shape)
    for got, of in zip(torch.autograd.grad(y, (q, k, v), dy), torch.autograd.grad(want, (q, k, v), dy)):
        assert torch.equal(got, of)


@pytest.mark.parametrize("own_keys", [True, False])
@pytest.mark.parametrize("asking", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
def test_tiles_are_registered_as_torch_wants_it(asking, own_keys, small_tiles):
    q, k, v = some(1, 2, 23, 5).to(asking), some(1, 2, 23, 5).to(asking), some(1, 2, 23, 7)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    given = leaves[0], leaves[1] if own_keys else None, leaves[2], 0.7
    torch.library.opcheck(torch.ops.lookfar.tiles.default, given, rtol=0.05, atol=0.05)


def test_between_channels(multiplied, monkeypatch):
    """Parts of the map, rows of channels, and products of half of the pairs."""
    monkeypatch.setattr(channels, "PART", 32)
    monkeypatch.setattr(channels, "ROWS", 8)
    for shape in [(2, 21, 75), (1, 8, 32), (1, 1, 5), (2, 3, 1)]:
        x = some(*shape) / 4
        close(channel_attention, channel_attention_reference, x)


def test_between_channels_whose_products_are_large(multiplied):
    """Near 2^17, rounded to bfloat16 in steps of 2^9: another channel would win."""
    x = some(1, 6, 2500) + 8 * torch.eye(1)[0].bfloat16()
    close(channel_attention, channel_attention_reference, x)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("as_map", [True, False])
def test_one_map_for_all_queries(as_map, heads, multiplied):
    logits = some(2, heads, 150)
    v = (some(2, 6, 150).transpose(1, 2) if as_map else some(2, 150, 6)).unsqueeze(1)

    def definition(logits: Tensor, v: Tensor) -> Tensor:
        return logits.softmax(-1).unsqueeze(-2) @ v

    close(unary_attention, definition, logits, v)
    assert unary_attention(logits, v).shape == (2, heads, 1, 6)
    v.requires_grad_()
    (grad,) = torch.autograd.grad(unary_attention(logits, v).sum(), v)
    if heads == 1:
        assert grad.squeeze(1).stride() == v.squeeze(1).stride()


def test_dot_product_of_few_positions(multiplied):
    close(dot_product, dot_product_reference, some(1, 1, 9, 40), some(1, 1, 7, 40), some(1, 1, 7, 50))


def test_a_mask_is_one_product(multiplied):
    layer, x = nn.Conv2d(40, 1, 1).bfloat16(), some(2, 40, 9, 7)
    with torch.no_grad():
        want = layer.double()(x.double()).flatten(2)
        got = _pointwise.convolved_rows(layer.bfloat16(), x)
    assert_same("mask", got.double(), want, 0.01)


class _Widened(TorchDispatchMode):
    """Counts maps that are copied into float32."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.found = numbers, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        if func.name() == "aten::_to_copy" and y.dtype == torch.float32 and y.numel() >= self.numbers:
            self.found += 1
        return y


@pytest.mark.parametrize(
    "name", ["global_context", "squeeze_excitation", "position_attention", "nonlocal", "simplified_nonlocal"]
)
def test_blocks_do_not_widen_their_map(name, monkeypatch, small_tiles):
    monkeypatch.setattr(_precision, "PROCESSOR_MULTIPLIES", True)
    block, x = lookfar.create_block(name, 64).bfloat16().eval(), some(1, 64, 13, 11)
    with torch.no_grad(), _Widened(x.numel()) as copies:
        block(x)
    assert copies.found == 0
