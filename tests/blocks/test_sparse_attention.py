"""Local, atrous and sparse attention against softmax over the positions that are seen, one query at a time."""

import pytest
import torch
from samples import assert_same, randomise

from lookfar.blocks import create_block


def seen(name, i, j):
    """By their distances; a window of 3, every second position."""
    dy, dx = (abs(a - b) for a, b in zip(i, j))
    near, far = max(dy, dx) <= 1, dy % 2 == 0 and dx % 2 == 0
    return {"local_attention": near, "atrous_attention": far, "sparse_attention": near or far}[name]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", ["local_attention", "atrous_attention", "sparse_attention"])
def test_similarities_are_divided_by_the_root_of_a_heads_width(name, heads):
    size = {"local_attention": {"kernel_size": 3}, "atrous_attention": {"dilation": 2}}
    options = size.get(name, {"kernel_size": 3, "dilation": 2})
    m = randomise(create_block(name, 8, inner_channels=6, heads=heads, **options)).double().eval()
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    q, k, v = (layer(x)[0].unflatten(0, (heads, -1)) for layer in (m.query, m.key, m.value))  # (h, D / h, H, W)
    mixed = torch.zeros_like(v)
    positions = [(y, x) for y in range(4) for x in range(5)]
    for h in range(heads):
        for row, column in positions:
            keys = [j for j in positions if seen(name, (row, column), j)]
            logits = torch.stack([q[h, :, row, column] @ k[h, :, a, b] / (6 / heads) ** 0.5 for a, b in keys])
            mixed[h, :, row, column] = sum(w * v[h, :, a, b] for w, (a, b) in zip(logits.softmax(0), keys))
    assert_same(name, m(x), x + m.project(mixed.flatten(0, 1)[None]))
