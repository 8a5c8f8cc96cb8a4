"""What every op promises, whatever path it takes: derivatives of all kinds, transforms, odd numbers, half precision."""

import importlib
from itertools import combinations

import pytest
import torch
import torch.utils.checkpoint
from ops._compare import assert_same
from ops._every import CASES, Case
from torch import Tensor
from torch.autograd import forward_ad

from lookfar.ops import _bilinear, _blockwise, _tiles

criss_cross = importlib.import_module("lookfar.ops.criss_cross")


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small inputs are worked on in several blocks."""
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 20)
    monkeypatch.setitem(_bilinear.LIMIT, "cpu", 20)
    monkeypatch.setitem(_tiles.LIMITS, "rows", 4)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 5)
    monkeypatch.setattr(criss_cross, "_limit", lambda t: 20)


def pulled(op, inputs: list[Tensor], wanted: tuple[int, ...], *, again: bool) -> list[Tensor]:
    """Gradients of the ``wanted`` inputs; with ``again`` those of the gradients' squares."""
    inputs = [t.detach().clone().requires_grad_(n in wanted) for n, t in enumerate(inputs)]
    y = op(*inputs)
    weighting = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    chosen = [inputs[n] for n in wanted]
    found = torch.autograd.grad((y.sin() * weighting).sum(), chosen, create_graph=again)
    if again:
        found = torch.autograd.grad(sum(g.square().sum() for g in found), chosen, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, chosen)]


def weighted(op, *inputs: Tensor) -> Tensor:
    y = op(*inputs)
    return (y.sin() * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def test_derivatives_of_any_of_the_inputs(case):
    """First and second, whichever inputs ask for them."""
    inputs = case.inputs()
    sizes = {1, 2, len(case.wanted)} & set(range(1, len(case.wanted) + 1))
    for wanted in (some for size in sizes for some in combinations(case.wanted, size)):
        for again in (False, True):
            got, want = (pulled(op, inputs, wanted, again=again) for op in (case.fast, case.slow))
            for n, g, w in zip(wanted, got, want):
                assert_same(f"{wanted}, {n}, {again=}", g, w, 1e-8)


def test_torch_func_grad(case):
    inputs = case.inputs()
    got = torch.func.grad(lambda *t: weighted(case.fast, *t), argnums=case.wanted)(*inputs)
    for n, g, w in zip(case.wanted, got, pulled(case.slow, inputs, case.wanted, again=False)):
        assert_same(str(n), g, w)


def test_per_sample_gradients(case):
    inputs = case.inputs(batch=3)
    names = list(case.shapes)
    axes = tuple(None if name in case.shared else 0 for name in names)

    def one(*inputs: Tensor) -> Tensor:
        return weighted(case.fast, *(t if axis is None else t[None] for t, axis in zip(inputs, axes)))

    got = torch.vmap(torch.func.grad(one, argnums=case.wanted), axes)(*inputs)
    for b in range(3):
        image = [t if axis is None else t[b : b + 1] for t, axis in zip(inputs, axes)]
        for n, g, w in zip(case.wanted, got, pulled(case.slow, image, case.wanted, again=False)):
            assert_same(f"{b}, {n}", g[b], w if axes[n] is None else w[0])


def test_vmap(case):
    """Over an axis of its own, with and without gradients outside."""
    sets = [case.inputs() for _ in range(3)]
    stacked = [torch.stack(t).requires_grad_() for t in zip(*sets)]
    got = torch.vmap(case.fast)(*stacked)
    for y, inputs in zip(got, sets):
        assert_same("y", y, case.slow(*inputs))
    chosen = [stacked[n] for n in case.wanted]
    assert all(g is not None for g in torch.autograd.grad(got.sum(), chosen))


def directional(op, inputs: list[Tensor], moves: list[Tensor]) -> Tensor:
    """By two backward passes."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    y = op(*inputs)
    u = torch.zeros_like(y, requires_grad=True)
    found = torch.autograd.grad(y, inputs, u, create_graph=True, allow_unused=True)
    total = sum(((g * m).sum() for g, m in zip(found, moves) if g is not None), y.new_zeros(()))
    return torch.autograd.grad(total, u)[0]


def test_forward_mode(case):
    inputs = case.inputs()
    moves = [torch.randn_like(t) if n in case.wanted else torch.zeros_like(t) for n, t in enumerate(inputs)]
    want = directional(case.slow, inputs, moves)
    assert_same("torch.func.jvp", torch.func.jvp(case.fast, tuple(inputs), tuple(moves))[1], want, 1e-8)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, m) for t, m in zip(inputs, moves)]
        assert_same("dual", forward_ad.unpack_dual(case.fast(*dual)).tangent, want, 1e-8)
        learning = [forward_ad.make_dual(t.clone().requires_grad_(), m) for t, m in zip(inputs, moves)]
        assert_same("both", forward_ad.unpack_dual(case.fast(*learning)).tangent, want, 1e-8)


def test_rows_of_a_jacobian(case):
    """One backward pass for several rows, by vmap over the gradient of the output."""
    if "pointwise_spatial" in str(case.fast) and hasattr(torch.utils.checkpoint, "_NoopSaveInputs"):
        pytest.skip("a recomputed step within a recomputed step: this torch's checkpoint knows no vmap")
    inputs = [t.requires_grad_(n in case.wanted) for n, t in enumerate(case.inputs(batch=1))]
    fast, slow = case.fast(*inputs), case.slow(*inputs)
    chosen = [inputs[n] for n in case.wanted]
    rows = torch.randn(3, *fast.shape, dtype=fast.dtype)
    got = torch.vmap(lambda row: torch.autograd.grad(fast, chosen, row, retain_graph=True))(rows)
    for n, row in enumerate(rows):
        for g, w in zip(got, torch.autograd.grad(slow, chosen, row, retain_graph=True)):
            assert_same(str(n), g[n], w)


def test_the_output_may_be_changed_in_place(case):
    inputs = case.inputs()
    got = pulled(lambda *t: case.fast(*t).mul_(2), inputs, case.wanted, again=False)
    want = pulled(lambda *t: 2 * case.slow(*t), inputs, case.wanted, again=False)
    for n, g, w in zip(case.wanted, got, want):
        assert_same(str(n), g, w)


def test_no_images(case):
    inputs = case.inputs(batch=0)
    got, want = (op(*inputs) for op in (case.fast, case.slow))
    assert got.shape == want.shape
    assert got.shape[0] == 0
    assert all(not g.isnan().any() for g in pulled(case.fast, inputs, case.wanted, again=False))


def test_nan_is_never_swallowed(case):
    """What is NaN by the definition is NaN; and nothing else is, but where sums run over all pixels alike."""
    for n, name in enumerate(case.shapes):
        inputs = case.inputs()
        inputs[n].view(-1)[-1] = float("nan")
        got, want = (op(*inputs) for op in (case.fast, case.slow))
        lost = want.isnan()
        assert got[lost].isnan().all(), name
        if not case.spreads:
            assert_same(name, got[~lost], want[~lost])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(case, dtype):
    inputs = case.inputs(dtype=dtype)
    y = case.fast(*inputs)
    want = case.slow(*(t.double() for t in inputs))
    assert y.dtype in (dtype, torch.float32)
    assert_same("y", y.double(), want, 4 * torch.finfo(dtype).eps)
    found = pulled(case.fast, inputs, case.wanted, again=False)
    assert [g.dtype for g in found] == [dtype] * len(found)
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize(
    ("name", "masked"), [("concatenation none", 1), ("concatenation l1", 1), ("multiplied_attention", 2)]
)
def test_a_masked_key_is_not_seen(name, masked):
    """A logit of minus infinity; gradients stay finite too."""
    case = CASES[name]
    inputs = case.inputs()
    inputs[masked][..., 1] = -torch.inf
    assert_same("y", case.fast(*inputs), case.slow(*inputs))
    wanted = tuple(n for n in case.wanted if n != masked)
    assert all(g.isfinite().all() for g in pulled(case.fast, inputs, wanted, again=False))
