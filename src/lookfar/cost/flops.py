"""FLOPs of what really runs: torch's own counter, and what it misses or inflates.

One multiply-add is two FLOPs. Counted are products that are summed up: matrix products, convolutions, attention
kernels, windows, bilinear reading at computed places; in whatever order an exact fast path runs them. Element-wise
work, softmax, normalisation, resizing, sorting and prefix sums are not, as is usual.

Traps: before torch 2.14 the counter gives zero for ``scaled_dot_product_attention`` on CPU. Fused kernels want equal
widths of queries and values, so ops fill the narrower one up with zeros; these products with zero are no work of the
attention and are not counted here. ``nn.MultiheadAttention`` has a path for inference that is one opaque kernel.
Compiled code cannot be counted: what is compiled runs as it was written.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lookfar.cost.handwritten import CORNERS, reported

_SDPA = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def count_flops(function: Callable[..., Any], *inputs: Any) -> int:
    """FLOPs of ``function(*inputs)``, by running it once; a multiply-add is 2.

    Args:
        function: A module or any callable on tensors. What it runs is counted, a backward pass inside it too; kernels
            that compute their weights again in the backward pass are counted with that.
        *inputs: Its arguments.

    >>> count_flops(torch.nn.Linear(8, 4, bias=False), torch.randn(3, 8))
    192
    """
    found: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with _as_written(), reported(found.append), counter:
        function(*inputs)
    return counter.get_total_flops() + sum(found)


@contextmanager
def _as_written() -> Iterator[None]:
    """Nothing compiled, no kernel for a whole layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            # the counter hangs a hook on all modules, of which what was compiled complains
            warnings.filterwarnings("ignore", "Using `torch.compile\\(module\\)` when there are global hooks")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Our formulas for one run. They share what they have seen being filled up with zeros."""
    filled: dict[int, tuple[int, Tensor]] = {}  # storage -> (width before, the tensor, which keeps the key from reuse)

    def width(t: Tensor) -> int:
        return filled[_storage(t)][0] if _storage(t) in filled else t.shape[-1]

    def widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
        """Query-key pairs over batch and heads, and the true widths of keys and values."""
        return q.shape[:-1].numel() * k.shape[-2], min(width(q), width(k)), width(v)

    def pad(x: Tensor, pad: list[int], value: float = 0, *, out_val: Tensor, **_: Any) -> int:
        if value == 0 and pad[0] == 0 and pad[1] > 0:
            filled[_storage(out_val)] = (width(x), out_val)
        return 0

    def forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        pairs, D, E = widths(q, k, v)
        return 2 * pairs * (D + E)  # q k^T, weights v

    def backward(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
        pairs, D, E = widths(q, k, v)
        return 2 * pairs * (3 * D + 2 * E)  # q k^T again, dq, dk; dv, dweights

    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        aten.constant_pad_nd: pad,
        aten.mv: lambda a, x, **_: 2 * a.numel(),
        aten.dot: lambda a, b, **_: 2 * a.numel(),
        aten.vdot: lambda a, b, **_: 2 * a.numel(),
        aten.grid_sampler_2d: _reading,
        aten.grid_sampler_2d_backward: lambda grad, x, grid, mode, *_, **__: 2 * _reading(x, grid, mode, out_val=grad),
    }
    for name in ("addmm", "addmv", "addbmm", "baddbmm"):
        for packet in (getattr(aten, name), getattr(aten, f"{name}_")):  # torch's counter does not see the second
            formulas[packet] = lambda y, a, b, **_: 2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1)
    for name in _SDPA:
        formulas[getattr(aten, name)] = forward
        formulas[getattr(aten, f"{name}_backward")] = backward
    for formula in formulas.values():
        formula._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]  # the counter hands over tensors, not shapes
    return formulas


def _reading(x: Tensor, grid: Tensor, mode: int, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * CORNERS * out_val.numel() if mode == 0 else 0  # bilinear; the nearest is taken as it is


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata
