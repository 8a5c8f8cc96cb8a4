"""Fast path against definition: the output and the gradient of every input."""

from collections.abc import Callable

import torch
from torch import Tensor

# torch 2.8 cannot tell what is compiled from what is exported
TELLS_COMPILED = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 8)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def with_grads(op: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output of ``op`` and the gradients of its inputs under a fixed weighting of the output."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    y = op(*inputs)
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad((y * weighting).sum(), inputs)]


def assert_same(what: str, got: Tensor, want: Tensor, tolerance: float | None = None) -> None:
    """Equal up to the dtype's tolerance, relative to the largest value wanted (at least 1)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    got, want = got.detach(), want.detach()
    if not want.numel():
        return
    limit = (TOLERANCE[want.dtype] if tolerance is None else tolerance) * max(1.0, float(want.abs().max()))
    error = float((got.to(want.dtype) - want).abs().max())
    assert error <= limit, f"{what}: off by {error:.2e}, allowed {limit:.2e}"


def assert_same_with_grads(
    fast: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor, names: str = ""
) -> None:
    """Both ops agree in the output and in the gradient of every input."""
    labels = ["y", *(f"d{n}" for n in names.split())]
    for what, got, want in zip(labels, with_grads(fast, *inputs), with_grads(reference, *inputs), strict=True):
        assert_same(what, got, want)


def compiled_graph(f: Callable[..., object], *inputs: Tensor, dynamic: bool = False) -> str:
    """What the compiler is given of ``f``."""
    torch._dynamo.reset()
    graphs = []
    torch.compile(f, fullgraph=True, dynamic=dynamic, backend=lambda g, _: graphs.append(g.graph) or g)(*inputs)
    return str(graphs[0])
