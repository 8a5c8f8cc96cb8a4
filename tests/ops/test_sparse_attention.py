"""Sparse patterns against masked N x N weights: sizes that the phases do not divide, graphs, memory, pairs reached."""

import importlib
from functools import partial

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph

from lookfar.cost import peak_memory
from lookfar.ops import sparse_attention, sparse_attention_reference, sparse_attention_weights

module = importlib.import_module("lookfar.ops.sparse_attention")
windows = importlib.import_module("lookfar.ops._window")

# H, W, kernel_size, dilation
SIZES = {
    "odd": (7, 9, 3, 2),
    "one": (1, 1, 3, 4),
    "a row": (1, 5, 1, 3),
    "divided": (6, 4, 5, 2),
    "dilation beyond the map": (3, 4, 3, 9),
    "full": (4, 3, 3, 1),
}


def draw(H, W, *, D=3, E=5, dtype=torch.float64):
    return [torch.randn(2, 2, d, H, W, dtype=dtype) for d in (D, D, E)]


@pytest.mark.parametrize("pattern", ["local", "local_clamped", "atrous", "sparse"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_definition(size, pattern, monkeypatch):
    H, W, k, r = size
    options = {"pattern": pattern, "kernel_size": k, "dilation": r, "scale": 0.7}
    inputs = draw(H, W)
    fast, slow = (partial(op, **options) for op in (sparse_attention, sparse_attention_reference))
    assert_same_with_grads(fast, slow, *inputs, names="q k v")
    for name in (windows, module):
        monkeypatch.setattr(name, "for_graphs", lambda: True)
    assert_same("graph", fast(*inputs), slow(*inputs))


@pytest.mark.parametrize("normalization", ["l1", "sigmoid", "none"])
@pytest.mark.parametrize("pattern", ["local_clamped", "atrous", "sparse"])
def test_normalisations(pattern, normalization, monkeypatch):
    for H, W, k, r in (SIZES["odd"], SIZES["dilation beyond the map"]):
        options = {"pattern": pattern, "kernel_size": k, "dilation": r, "scale": 0.7, "normalization": normalization}
        inputs = draw(H, W)
        fast, slow = (partial(op, **options) for op in (sparse_attention, sparse_attention_reference))
        with monkeypatch.context() as m:
            assert_same_with_grads(fast, slow, *inputs, names="q k v")
            for name in (windows, module):
                m.setattr(name, "for_graphs", lambda: True)
            assert_same("graph", fast(*inputs), slow(*inputs))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_compiled_for_one_size_it_pads_no_phase(size):
    H, W, _, r = size
    inputs = draw(H, W)
    fast = partial(sparse_attention, pattern="atrous", dilation=r)
    slow = partial(sparse_attention_reference, pattern="atrous", dilation=r)
    assert ("masked_fill" in compiled_graph(fast, *inputs)) != TELLS_COMPILED
    torch._dynamo.reset()
    assert_same_with_grads(torch.compile(fast, fullgraph=True, backend="aot_eager"), slow, *inputs, names="q k v")


def test_compiled_for_all_sizes_it_is_one_program():
    found = []
    fast = torch.compile(
        partial(sparse_attention, pattern="atrous"),
        fullgraph=True,
        dynamic=True,
        backend=lambda g, _: found.append(g) or g,
    )
    for size in ((6, 5), (8, 8), (9, 14)):
        inputs = draw(*size)
        assert_same(f"{size}", fast(*inputs), sparse_attention_reference(*inputs, pattern="atrous"))
    assert len(found) == 1


def test_keys_seen():
    """Position by position, by the definition's two conditions."""
    (H, W), k, r = (7, 6), 3, 3
    q, key, _ = draw(H, W)
    weights = {
        pattern: sparse_attention_weights(q, key, pattern=pattern, kernel_size=k, dilation=r).gt(0)[0, 0]
        for pattern in ("local", "atrous", "sparse")
    }
    for i in range(H * W):
        for j in range(H * W):
            dy, dx = j // W - i // W, j % W - i % W
            local, atrous = max(abs(dy), abs(dx)) <= k // 2, dy % r == 0 and dx % r == 0
            seen = tuple(bool(weights[p][i, j]) for p in ("local", "atrous", "sparse"))
            assert seen == (local, atrous, local or atrous), (i, j)


def test_two_steps_reach_everything():
    """With k = 2r - 1, the block's default."""
    for H, W, r in [(13, 11, 4), (6, 5, 2)]:
        q, k, _ = draw(H, W, D=1, dtype=torch.float32)
        seen = sparse_attention_weights(q, k, pattern="sparse", kernel_size=2 * r - 1, dilation=r)[0, 0].gt(0).float()
        assert (seen @ seen).gt(0).all()


def test_memory_is_not_that_of_all_pairs():
    q, k, v = draw(32, 32, D=4, E=4, dtype=torch.float32)
    peak = peak_memory(lambda: sparse_attention(q, k, v, pattern="sparse", kernel_size=3, dilation=4))
    assert peak < 2 * 2 * 1024**2 * 4 / 4


def test_wrong_arguments_are_named():
    q, k, v = draw(4, 4)
    for options, words in [
        ({"pattern": "strided"}, "got 'strided'"),
        ({"pattern": "local", "kernel_size": 4}, "odd .*, got 4"),
        ({"pattern": "atrous", "dilation": 0}, "dilation must be a positive integer, got 0"),
        ({"pattern": "atrous", "normalization": "double"}, "got 'double': it shares a key among all queries"),
    ]:
        with pytest.raises(ValueError, match=words):
            sparse_attention(q, k, v, **options)
    with pytest.raises(ValueError, match="want q, k"):
        sparse_attention(q, k, v[..., 1:], pattern="local")
