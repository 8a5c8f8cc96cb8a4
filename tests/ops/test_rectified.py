"""A ReLU in compiled training: the same gradient, and no map of booleans."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lookfar.blocks._layers import ConvNorm
from lookfar.ops._rectified import rectified
from tests.ops._compare import TELLS_COMPILED

tells_compiled = pytest.mark.skipif(not TELLS_COMPILED, reason="torch 2.8 takes what is compiled for being exported")
BACKEND = "aot_eager_decomp_partition"  # what is kept is chosen as Inductor does
VALUES = [-math.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, math.inf, math.nan]
GRADIENTS = [1.0, -2.0, 0.0, math.inf, -math.inf, math.nan, 5.0, 3e38]


def kept_and_gradient(f: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> tuple[list[torch.dtype], Tensor, Tensor]:
    """Types of what is kept for the backward pass, what f gives, and the gradient of x."""
    kept: list[torch.dtype] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.dtype)
        return t

    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = f(x)
    y.backward(dy)
    assert x.grad is not None
    return kept, y.detach(), x.grad


@tells_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradient(dtype: torch.dtype) -> None:
    """Of every value with every gradient, as torch's own ReLU has it."""
    x = torch.tensor(VALUES, dtype=dtype)[:, None].expand(-1, 8).contiguous()
    dy = torch.tensor(GRADIENTS, dtype=dtype).expand(8, -1).contiguous()
    compiled = torch.compile(lambda x: rectified(x * 1), fullgraph=True, backend=BACKEND)
    kept, y, grad = kept_and_gradient(compiled, x, dy)
    _, want, want_grad = kept_and_gradient(torch.relu, x, dy)
    assert torch.equal(y, want) or torch.equal(y.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(grad.nan_to_num(7), want_grad.nan_to_num(7))
    assert torch.bool not in kept


def layers() -> ConvNorm:
    return ConvNorm(4, 6, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU)


@tells_compiled
def test_layers_keep_no_booleans() -> None:
    torch.manual_seed(0)
    network, x = layers(), torch.randn(2, 4, 7, 9)
    dy = torch.randn(2, 6, 7, 9)
    kept, y, grad = kept_and_gradient(torch.compile(network, fullgraph=True, backend=BACKEND), x, dy)
    _, want, want_grad = kept_and_gradient(network, x, dy)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(grad, want_grad)
    assert torch.bool not in kept
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, fullgraph=True, backend=BACKEND)(x), network(x))


@tells_compiled
def test_a_hook_on_the_activation_is_called() -> None:
    network = layers()
    network.act.register_forward_hook(lambda module, args, y: y + 1)
    x = torch.randn(2, 4, 7, 9)
    torch.testing.assert_close(torch.compile(network, backend=BACKEND)(x), network(x))


def test_in_place_and_not() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(rectified(x), torch.tensor([0.0, 2.0]))
    assert x[0] == -1
    assert rectified(x, inplace=True) is x
    assert x[0] == 0
