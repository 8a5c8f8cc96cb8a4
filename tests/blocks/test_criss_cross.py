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


@pytest.mark.parametrize(("recurrence", "positions"), [(1, 3 + 4 + 5 - 2), (2, 60 - 2 * 3 * 4), (3, 60)])
def test_reach_on_a_video(recurrence, positions):
    """One step: the three lines. Two: the three planes. Three: everything."""
    m = randomise(create_block("criss_cross", 8, recurrence=recurrence, dims=3)).double()
    x = torch.randn(1, 8, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    m(x)[0, :, 1, 3, 2].sum().backward()
    assert x.grad is not None
    assert int((x.grad[0].abs().sum(0) > 0).sum()) == positions


def test_a_video_of_one_frame_is_an_image():
    image, video = (randomise(create_block("criss_cross", 8, dims=dims)).double() for dims in (2, 3))
    image.load_state_dict({name: p.reshape(image.get_parameter(name).shape) for name, p in video.named_parameters()})
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    assert_same("y", video(x[:, :, None])[:, :, 0], image(x))


def test_on_a_line_it_is_another_block():
    with pytest.raises(ValueError, match=r"dims must be 2 or 3, got 1: on a line .* position_attention\(dims=1\)"):
        create_block("criss_cross", 8, dims=1)
    with pytest.raises(ValueError, match=r"\(dims=2\) takes maps \(B, C, H, W\), got \(2, 8, 9\): on a line"):
        create_block("criss_cross", 8)(torch.randn(2, 8, 9))


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
