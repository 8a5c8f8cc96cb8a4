"""Attention with relative positions against gathered embeddings: whole, in blocks of queries and in tiles."""

from functools import partial

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph
from torch import Tensor

from lookfar.cost import peak_memory
from lookfar.ops import (
    _blockwise,
    _relative_tiles,
    _tiles,
    relative_attention,
    relative_attention_reference,
    relative_attention_weights,
)

SIZES = [(4, 5), (1, 7), (6, 1), (1, 1)]


def given(size: tuple[int, int], *, sharp: float = 1, batch: int = 2) -> list[Tensor]:
    """q, k, v, rows and columns; of ``sharp`` ones the logits are that much larger."""
    H, W = size
    q, k, v = (torch.randn(batch, 3, H * W, d, dtype=torch.float64) for d in (4, 4, 2))
    return [sharp * q, k, v, *(torch.randn(2 * n - 1, 4, dtype=torch.float64) for n in size)]


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of few queries and keys, for maps of any size."""
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", 1)
    monkeypatch.setitem(_tiles.LIMITS, "rows", 3)
    monkeypatch.setitem(_tiles.LIMITS, "keys", 10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("budget", [1, 2**20])
@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_relative_attention(size, budget, normalization, monkeypatch):
    monkeypatch.setitem(_blockwise.BUDGET, "cpu", budget)
    q, k, v, *tables = given(size)
    options = {"size": size, "normalization": normalization}
    fast, slow = (partial(op, **options) for op in (relative_attention, relative_attention_reference))
    assert_same_with_grads(fast, slow, q, k, v, *tables, names="q k v rows columns")
    weights = relative_attention_weights(q, k, *tables, **options, queries=torch.tensor([v.shape[2] - 1]))
    assert_same("weights", weights @ v, slow(q, k, v, *tables)[:, :, -1:])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sharp", [1, 30])  # some logits are then larger than what tiles take for small
@pytest.mark.parametrize("batch", [1, 2])
def test_tiles(size, sharp, batch):
    fast, slow = (partial(op, size=size) for op in (relative_attention, relative_attention_reference))
    inputs = given(size, sharp=sharp, batch=batch)
    assert _relative_tiles.takes(*inputs)
    assert_same_with_grads(fast, slow, *inputs, names="q k v rows columns")


@pytest.mark.usefixtures("tiles")
def test_embeddings_alone_can_make_logits_large():
    q, k, v, rows, columns = given((4, 5))
    for tables in ((1000 * rows, columns), (rows, 1000 * columns)):  # 2 to that power is infinite
        inputs = q, k, v, *tables
        want = relative_attention_reference(*inputs, size=(4, 5))
        assert_same("y", relative_attention(*inputs, size=(4, 5)), want)


@pytest.mark.usefixtures("tiles")
def test_tiles_are_differentiated_twice_and_by_transforms():
    inputs = [t.requires_grad_() for t in given((2, 3), batch=1)]
    fast = partial(relative_attention, size=(2, 3))
    assert torch.autograd.gradgradcheck(fast, inputs, fast_mode=True)
    tangents = tuple(torch.ones_like(t) for t in inputs)
    slow = partial(relative_attention_reference, size=(2, 3))
    plain = tuple(t.detach() for t in inputs)
    for got, want in zip(torch.func.jvp(fast, plain, tangents), torch.func.jvp(slow, plain, tangents)):
        assert_same("jvp", got, want)


@pytest.mark.usefixtures("tiles")
def test_what_tiles_give_may_be_changed_in_place():
    inputs = [t.requires_grad_() for t in given((2, 3))]
    op = partial(relative_attention, size=(2, 3))
    want = torch.autograd.grad((2 * op(*inputs)).sum(), inputs)
    for a, b in zip(torch.autograd.grad(op(*inputs).mul_(2).sum(), inputs), want):
        assert_same("gradient", a, b)


@pytest.mark.usefixtures("tiles")
def test_tiles_compute_in_float32_under_autocast():
    inputs = [t.float().requires_grad_() for t in given((4, 5))]
    op = partial(relative_attention, size=(4, 5))
    want = torch.autograd.grad(op(*inputs).square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = op(*inputs)
        got = torch.autograd.grad(y.square().sum(), inputs)
    for a, b in zip(got, want):
        assert_same("gradient", a, b)


def test_a_tile_is_held_at_a_time():
    size = H, W = 48, 40
    q, k, v = torch.randn(3, 1, 1, H * W, 4)
    inputs = [t.requires_grad_() for t in (q, k, v, torch.randn(2 * H - 1, 4), torch.randn(2 * W - 1, 4))]

    def both() -> None:
        relative_attention(*inputs, size=size).sum().backward()

    both()
    assert peak_memory(both) < 4 * (H * W) ** 2 / 3


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
@pytest.mark.skipif(not TELLS_COMPILED, reason="torch 2.8 takes what is compiled for being exported")
@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("batch", [0, 2])
def test_tiles_are_one_operation_of_a_compiled_program(dynamic, batch):
    if dynamic and not batch:
        pytest.skip("an empty batch is a size of its own")
    op, inputs = partial(relative_attention, size=(4, 5)), given((4, 5), batch=batch)
    assert "lookfar.tiled" in compiled_graph(op, *inputs, dynamic=dynamic)
    fast = torch.compile(op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_same_with_grads(fast, op, *inputs, names="q k v rows columns")
    if batch:
        leaves = [t.requires_grad_() for t in inputs]
        torch.library.opcheck(torch.ops.lookfar.tiled.default, ("relative", leaves, [4, 5]))
        again = torch.compile(op, fullgraph=True, dynamic=dynamic, backend="eager")
        assert torch.autograd.gradgradcheck(again, leaves, fast_mode=True)
