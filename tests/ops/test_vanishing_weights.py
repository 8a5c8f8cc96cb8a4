"""Weights that no sum would notice are zero on a CPU: the same results, and no numbers that are slow to multiply."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ops._compare import assert_same
from ops._every import CASES, Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lookfar._drawing import randomise
from lookfar.blocks import create_block, sample_inputs
from lookfar.ops import _precision, _tiles
from lookfar.ops._precision import powers_

ROWS = [
    [0.0, -10.0, -68.0, -72.0, -87.5, -100.0],
    [-1.0, -2.0, -3.0, -300.0, -math.inf, -1e30],
    [5.0, 5.0, 5.0, -95.0, -103.0, -110.0],
]
# torch's own, and ours; of the exponential at most about zero
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softmax": (lambda s: s.softmax(-1), _precision.softmax),
    "softmax of columns": (lambda s: s.softmax(0), lambda s: _precision.softmax(s, 0)),
    "exp": (torch.exp, _precision.exp),
    "logsumexp": (lambda s: s.logsumexp(-1, keepdim=True), lambda s: _precision.logsumexp(s, -1)),
}


def subnormal(t: Tensor) -> Tensor:
    return (t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_torch_has_it(name: str, dtype: torch.dtype) -> None:
    theirs, ours = PAIRS[name]
    s = torch.tensor(ROWS, dtype=dtype)
    torch.testing.assert_close(ours(s), theirs(s), rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-29)
    assert name == "logsumexp" or not subnormal(ours(s)).any()
    finite = s.clamp_min(-500).requires_grad_()
    (got,), (want,) = (torch.autograd.grad(f(finite).sin().sum(), finite) for f in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PAIRS)
def test_all_derivatives(name: str) -> None:
    ours = PAIRS[name][1]
    s = torch.randn(3, 5, dtype=torch.float64).mul_(20).requires_grad_()
    assert torch.autograd.gradcheck(ours, s, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(ours, s)
    torch.testing.assert_close(torch.vmap(lambda row: ours(row[None])[0])(s.detach())[0], ours(s[:1].detach())[0])


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_no_number_stays(name: str) -> None:
    theirs, ours = PAIRS[name]
    for row in ([math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]):
        s = torch.tensor([row])
        if name != "logsumexp" or math.inf not in row:
            torch.testing.assert_close(ours(s), theirs(s), equal_nan=True)
    empty = torch.zeros(2, 0)
    assert PAIRS["logsumexp"][1](empty).tolist() == [[-math.inf]] * 2


def test_powers() -> None:
    s = torch.tensor([0.0, -99.5, -101.0, -140.0, -math.inf, math.nan])
    got = powers_(s.clone())
    assert got[:2].tolist() == s[:2].exp2().tolist()
    assert got[2:5].tolist() == [0.0, 0.0, 0.0]
    assert got[5].isnan()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_with_large_logits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition's output and gradients, where most weights vanish."""
    monkeypatch.setitem(_tiles.LIMITS, "rows", 4)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 5)
    inputs = [12 * t for t in case.inputs()]
    found = []
    for op in (case.fast, case.slow):
        given = [t.clone().requires_grad_(n in case.wanted) for n, t in enumerate(inputs)]
        y = op(*given)
        grads = torch.autograd.grad((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum(),
                                    [given[n] for n in case.wanted])  # fmt: skip
        found.append([y, *grads])
    for n, (got, want) in enumerate(zip(*found)):
        assert_same(str(n), got, want, 1e-8)


class Watch(TorchDispatchMode):
    """The largest share of subnormal numbers in what is multiplied."""

    share = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm", "mul", "addcmul_", "mul_"):
            unread = (kwargs or {}).get("beta") == 0  # what was in the buffer before
            for t in args[unread:]:
                if isinstance(t, Tensor) and t.numel() > 100 and t.is_floating_point():
                    self.share = max(self.share, subnormal(t).float().mean().item())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("position_attention", 3), ("position_attention", 10), ("criss_cross", 3), ("double_attention", 30),
        ("expectation_maximization", 10), ("external_attention", 30), ("symbolic_graph_reasoning", 10), ("carafe", 30),
        ("stand_alone", 3), ("local_attention", 10), ("offset_attention", 3), ("sparse_attention", 10),
        ("channel_attention", 0.2), ("atrous_attention", 10),
    ],
)  # fmt: skip
def test_no_block_multiplies_them(name: str, times: float) -> None:
    """Intel's processors take a hundred times as long for each."""
    torch.manual_seed(0)
    block = randomise(create_block(name, 64)).train()
    x, *others = sample_inputs(block, 64, (24, 24), batch=1)
    with Watch() as watch:
        y = block((x * times).requires_grad_(), *others)
        (y[0] if isinstance(y, tuple) else y).sum().backward()
    assert watch.share < 0.01
