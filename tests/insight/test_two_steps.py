"""Where a query of criss-cross attention has heard from after two steps: against the product of two dense maps."""

import pytest
import torch

from lookfar import create_block
from lookfar._drawing import randomise
from lookfar.insight.two_steps import two_step_map


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"recurrence": 3}, {"heads": 2}], ids=str)
@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)], ids=str)
def test_it_is_the_product_of_both_maps(options, size):
    block = randomise(create_block("criss_cross", 16, **options)).double()
    single = create_block("criss_cross", 16, **{**options, "recurrence": 1}).double()
    single.load_state_dict(block.state_dict())
    x = torch.randn(1, 16, *size, dtype=torch.float64)
    before = x
    for _ in range(block.recurrence - 2):
        before = single(before)
    want = single.attention(single(before))[0] @ single.attention(before)[0]  # (h, N, N)
    for y, z in {(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3)}:
        found = two_step_map(block, x, (y, z))
        assert found.shape == (want.shape[0], *size)
        torch.testing.assert_close(found.flatten(1), want[:, y * size[1] + z])
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(len(want), dtype=torch.float64))


def test_other_blocks_have_no_second_step():
    x = torch.randn(1, 16, 5, 4)
    assert two_step_map(create_block("nonlocal", 16), x, (0, 0)) is None
    assert two_step_map(create_block("criss_cross", 16, recurrence=1), x, (0, 0)) is None
    assert two_step_map(create_block("criss_cross", 16, normalization="l1"), x, (0, 0)) is None
