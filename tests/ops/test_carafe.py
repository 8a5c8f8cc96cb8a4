"""Reassembly against unfolded windows, and attention with relative positions against gathered embeddings."""

import importlib

import pytest
import torch
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph

from lookfar.blocks import create_block
from lookfar.ops import (
    carafe,
    carafe_reference,
    relative_attention,
    relative_attention_reference,
    relative_attention_weights,
)

blockwise = importlib.import_module("lookfar.ops._blockwise")


@pytest.mark.parametrize(("k", "groups", "s"), [(5, 2, 2), (3, 1, 3), (1, 4, 1)])
def test_carafe(k, groups, s):
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    masks = torch.randn(2, groups * k * k, 3 * s, 5 * s, dtype=torch.float64)
    options = {"kernel_size": k, "groups": groups, "scale_factor": s}
    assert_same_with_grads(
        lambda x, m: carafe(x, m, **options), lambda x, m: carafe_reference(x, m, **options), x, masks, names="x masks"
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
def test_compiled_it_reads_masks_from_a_plain_map():
    block, x = create_block("carafe", 8), torch.randn(1, 8, 3, 4)
    assert ("lookfar.plain" in compiled_graph(block, x)) == TELLS_COMPILED
    assert "lookfar" not in str(torch.export.export(block, (x,)).graph)
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.lookfar.plain.default, (last,))


def test_a_wrong_mask_is_named():
    with pytest.raises(ValueError, match=r"\(1, 25, 8, 8\), got \(1, 25, 4, 4\)"):
        carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 25, 4, 4))


@pytest.mark.parametrize("size", [(4, 5), (1, 7), (1, 1)])
@pytest.mark.parametrize("budget", [1, 2**20])
def test_relative_attention(size, budget, monkeypatch):
    monkeypatch.setitem(blockwise.BUDGET, "cpu", budget)
    H, W = size
    q, k, v = (torch.randn(2, 3, H * W, d, dtype=torch.float64) for d in (4, 4, 2))
    tables = [torch.randn(2 * n - 1, 4, dtype=torch.float64) for n in size]
    fast, slow = (
        lambda *inputs, op=op: op(*inputs, size=size) for op in (relative_attention, relative_attention_reference)
    )
    assert_same_with_grads(fast, slow, q, k, v, *tables, names="q k v rows columns")
    weights = relative_attention_weights(q, k, *tables, size=size, queries=torch.tensor([H * W - 1]))
    assert_same("weights", weights @ v, slow(q, k, v, *tables)[:, :, -1:])
