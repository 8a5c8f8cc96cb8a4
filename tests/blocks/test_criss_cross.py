"""CCNet: who hears from whom after R steps, heads, shared projections."""

import pytest
import torch
from samples import assert_same, randomise

from lookfar import create_block


@pytest.mark.parametrize(("recurrence", "positions"), [(1, 6 + 4), (2, 7 * 5), (3, 7 * 5)])
def test_reach(recurrence, positions):
    m = randomise(create_block("criss_cross", 16, recurrence=recurrence)).double()
    x = torch.randn(1, 16, 7, 5, dtype=torch.float64, requires_grad=True)
    m(x)[0, :, 3, 2].sum().backward()
    assert x.grad is not None
    reached = (x.grad[0].abs().sum(0) > 0).sum()
    assert int(reached) == positions + (recurrence == 1)


def test_recurrence_is_the_block_applied_again():
    thrice = randomise(create_block("criss_cross", 16, recurrence=3)).double()
    once = create_block("criss_cross", 16, recurrence=1).double()
    once.load_state_dict(thrice.state_dict())
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    assert_same("y", thrice(x), once(once(once(x))))
    assert_same("weights", thrice.attention(x), once.attention(once(once(x))))


def test_heads_do_not_mix():
    m = randomise(create_block("criss_cross", 16, recurrence=1, heads=2, reduction=2)).double()
    x = torch.randn(1, 16, 4, 5, dtype=torch.float64)
    before = m(x)
    with torch.no_grad():
        m.key.weight[4:].add_(1)
    changed = (m(x) - before).abs().amax((0, 2, 3)) > 0
    assert not changed[:8].any()
    assert changed[8:].all()


def test_shared_projection_gives_a_symmetric_similarity():
    m = randomise(create_block("criss_cross", 16, recurrence=1, share_query_key=True)).double()
    assert "key.weight" not in m.state_dict()
    logits = m.attention(torch.randn(1, 16, 1, 6, dtype=torch.float64))[0, 0].log()
    # s_ij - s_ji = z_j - z_i of softmax's normalisers: a difference of a vector with itself
    skew = logits - logits.T
    assert_same("cycles", skew[0][:, None] + skew, skew[0][None].expand(6, 6))


def test_options_are_checked():
    with pytest.raises(ValueError, match="heads must divide channels=16, got 3"):
        create_block("criss_cross", 16, heads=3)
    with pytest.raises(ValueError, match="recurrence must be an integer from 1 to 1000, got 0"):
        create_block("criss_cross", 16, recurrence=0)
