"""A 1x1 convolution as one product: tokens and gradients of the convolution, which is run where it must be."""

from collections.abc import Callable

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, compiled_graph
from torch import Tensor, nn

from lookfar.ops import _pointwise
from lookfar.ops._layout import to_tokens
from lookfar.ops._pointwise import convolved_rows, convolved_tokens

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the product was taken."""
    calls: list[int] = []
    apply = _pointwise._Product.apply
    monkeypatch.setattr(_pointwise._Product, "apply", lambda *args: calls.append(1) or apply(*args))
    return calls


def both(layer: nn.Module, x: Tensor, heads: int) -> list[list[Tensor]]:
    """Tokens and gradients, by the product and by the convolution."""
    found = []
    for f in (convolved_tokens, lambda layer, x, heads: to_tokens(layer(x), heads)):
        x = x.detach().requires_grad_()
        y = f(layer, x, heads)
        factors = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        found.append([y, *torch.autograd.grad((y * factors).sum(), [x, *layer.parameters()])])
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "heads"), [((1, 8, 1, 1), 1), ((1, 8, 5, 7), 2), ((3, 8, 5, 7), 1), ((2, 8, 9), 1), ((2, 8, 2, 3, 4), 2)]
)
@pytest.mark.parametrize("last", [False, True])
def test_is_the_convolution(
    shape: tuple[int, ...],
    heads: int,
    bias: bool,
    dtype: torch.dtype,
    last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(shape, dtype=dtype)
    if last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    layer = CONV[x.dim()](8, 6, 1, bias=bias, dtype=dtype)
    calls = called(monkeypatch)
    got, want = both(layer, x, heads)
    assert calls == [1]
    assert got[0].is_contiguous()
    assert got[1].stride() == x.stride() or 1 in x.shape[:1]
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("as_map", [False, True])
def test_derivatives(as_map: bool) -> None:
    x, layer = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True), nn.Conv2d(5, 3, 1).double()
    layer_inputs = (x, *layer.parameters())

    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _pointwise._Product.apply(x.flatten(2), weight.flatten(1), bias, as_map)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(f, layer_inputs)
    assert torch.autograd.gradgradcheck(f, layer_inputs)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 1).double(), nn.Conv2d(6, 4, 1, bias=False).double(), None])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_views_of_a_map(layer: nn.Module | None, size: tuple[int, int], batch: int, last: bool) -> None:
    x = torch.randn(batch, 6, *size, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    inputs = [x, *([] if layer is None else layer.parameters())]
    found = []
    for y in (convolved_tokens(layer, x, 2, viewed=True), to_tokens(x if layer is None else layer(x), 2)):
        factors = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        found.append([y, *torch.autograd.grad((y * factors).sum(), inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
    if layer is None and not last:
        assert convolved_tokens(None, x, 2, viewed=True).data_ptr() == x.data_ptr()  # not copied


def test_transforms_take_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, layer, x = called(monkeypatch), nn.Conv2d(5, 3, 1), torch.randn(2, 5, 3, 2)
    with torch.no_grad():
        want = to_tokens(layer(x))
        got = torch.func.vmap(lambda one: convolved_tokens(layer, one[None])[0])(x)
        tangent = torch.func.jvp(lambda x: convolved_tokens(layer, x), (x,), (x,))[1]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(tangent, to_tokens(layer(x) - layer(torch.zeros_like(x))))
    assert calls == []


class Own(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hooked() -> nn.Module:
    layer = nn.Conv2d(6, 6, 1)
    layer.register_forward_hook(lambda module, args, y: y.mul(3))
    return layer


must_be_run = pytest.mark.parametrize(
    "make",
    [
        lambda: Own(6, 6, 1),
        hooked,
        lambda: nn.Conv2d(6, 6, 3, padding=1),
        lambda: nn.Conv2d(6, 6, 1, stride=2),
        lambda: nn.Conv2d(6, 6, 1, padding=1),
        lambda: nn.Conv2d(6, 6, 1, groups=2),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)),
        lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()),
        lambda: nn.Conv2d(6, 6, 1).bfloat16(),
    ],
)


@must_be_run
def test_layers_that_must_be_run(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, layer = called(monkeypatch), make()
    x = torch.randn(2, 6, 5, 4, dtype=next(layer.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(convolved_tokens(layer, x), to_tokens(layer(x)))
    assert calls == []


def test_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, layer, x = called(monkeypatch), nn.Conv2d(6, 6, 1), torch.randn(2, 6, 5, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert convolved_tokens(layer, x).dtype == torch.bfloat16
    assert calls == []


class Rows(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return convolved_rows(self.layer, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 5, 7), (3, 8, 5, 7), (2, 8, 9)])
def test_rows_are_a_product_in_compiled_programs_alone(shape: tuple[int, ...], bias: bool) -> None:
    rows, x = Rows(CONV[len(shape)](8, 2, 1, bias=bias)), torch.randn(shape)
    want = rows.layer(x).flatten(2)
    assert torch.equal(rows(x), want)
    assert ("conv" in compiled_graph(rows, x)) != TELLS_COMPILED
    assert_same("compiled", torch.compile(rows, fullgraph=True, backend="aot_eager")(x), want)
    exported = torch.export.export(rows, (x,))
    assert "conv" in str(exported.graph)
    assert_same("exported", exported.module()(x), want)


@must_be_run
def test_rows_of_layers_that_must_be_run(make: Callable[[], nn.Module]) -> None:
    layer = make()
    x = torch.randn(2, 6, 5, 4, dtype=next(layer.parameters()).dtype)
    with torch.no_grad():
        got = torch.compile(Rows(layer), backend="eager")(x)
        assert torch.equal(got, layer(x).flatten(2))
