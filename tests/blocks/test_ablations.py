"""Parts of a block left out or exchanged, as its paper compares them, against what is then left of the equations."""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import Tensor, nn

from lookfar import create_block
from lookfar.ops import affine_sample


def build(name: str, channels: int = 8, **options) -> nn.Module:
    return randomise(create_block(name, channels, **options)).double().eval()


def maps(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 4, 3, dtype=torch.float64)


def test_relations_without_boxes_are_those_of_what_regions_show() -> None:
    m = build("relation", heads=2, inner_channels=6, gated=False)
    x, boxes = torch.randn(2, 5, 8, dtype=torch.float64), torch.rand(2, 5, 4, dtype=torch.float64)
    q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert_same("y", m(x, boxes), x + y)


@pytest.mark.parametrize("gated", [True, False])
def test_packed_regions_see_those_of_their_own_image(gated: bool) -> None:
    m = build("relation", heads=2, gated=gated)
    x, boxes = (t.double()[0] for t in m.sample_inputs((7,), batch=1))
    images = torch.tensor([4, 0, 4, 4, 0, 2, 0])
    y = m(x, boxes, images=images)
    for image in (0, 2, 4):
        own = images == image
        assert_same(f"image {image}", y[own], m(x[own], boxes[own]))
    # with the first two as keys, image 2 has none
    assert_same("no key", m(x, boxes, 2, images)[5], x[5])
    assert_same("maps", m.maps(x[None], boxes[None], images=images[None])[0, :, 1, [0, 2, 3, 5]], torch.zeros(2, 4))


def test_a_stand_alone_layer_may_ask_for_positions_alone() -> None:
    m, x = build("stand_alone", heads=2, kernel_size=3, content=False), maps()
    q, v = (layer(x).unflatten(1, (2, 4)) for layer in (m.query, m.value))
    y = torch.zeros_like(v)
    for i in range(4):
        for j in range(3):
            cells = [(a, b) for a in range(3) for b in range(3) if 0 <= i + a - 1 < 4 and 0 <= j + b - 1 < 3]
            at = torch.stack(
                [torch.cat([m.rel_row[:, :, a], m.rel_col[:, :, b]], 1) for a, b in cells]
            )  # (cells, h, d)
            w = torch.einsum("bhd,chd->bch", q[..., i, j], at).softmax(1)
            seen = torch.stack([v[..., i + a - 1, j + b - 1] for a, b in cells])
            y[..., i, j] = torch.einsum("bch,cbhd->bhd", w, seen)
    assert_same("y", m(x), y.flatten(1, 2))
    assert not hasattr(m.key, "weight")
    with pytest.raises(ValueError, match="nothing is left to compare"):
        create_block("stand_alone", 8, relative=False, content=False)


def test_a_local_relation_without_its_prior_sees_no_order_in_a_window() -> None:
    m, x = build("local_relation", kernel_size=3, prior=False), maps()
    assert_same("y", m(x.flip(2, 3)), m(x).flip(2, 3))
    with_prior = build("local_relation", kernel_size=3)
    assert not torch.allclose(with_prior(x.flip(2, 3)), with_prior(x).flip(2, 3))


def test_the_control_of_denoising_is_a_convolution() -> None:
    m, x = build("feature_denoising", filter="none"), maps()
    assert_same("y", m(x), x + m.norm(m.project(x)))


def test_em_may_take_other_steps_in_eval() -> None:
    m, x = build("expectation_maximization", bases=3, iterations=1, eval_iterations=4), maps()
    other = build("expectation_maximization", bases=3, iterations=4)
    other.load_state_dict(m.state_dict())
    assert_same("y", m(x), other(x))
    one = build("expectation_maximization", bases=3, iterations=1)
    one.load_state_dict(m.state_dict())
    assert_same("training", m.train()(x), one.train()(x))
    with pytest.raises(ValueError, match="eval_iterations must be an integer from 1 to 1000 or None, got 0"):
        create_block("expectation_maximization", 8, eval_iterations=0)


@pytest.mark.parametrize("order", ["channel", "spatial", "parallel"])
def test_the_gates_of_cbam_in_every_order(order: str) -> None:
    m, x = build("cbam", order=order, reduction=2), maps()

    def channels(x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
        return m.expand(m.reduce(pooled).relu()).sum(0).sigmoid()[:, :, None, None]

    def positions(x: Tensor) -> Tensor:
        return m.norm(m.spatial(torch.stack([x.amax(1), x.mean(1)], 1))).sigmoid()

    after_channels, after_positions = x * channels(x), x * positions(x)
    want = {
        "channel": after_channels * positions(after_channels),
        "spatial": after_positions * channels(after_positions),
        "parallel": x * channels(x) * positions(x),
    }
    assert_same("y", m(x), want[order])
    with pytest.raises(ValueError, match="order must be channel, spatial or parallel, got 'last'"):
        create_block("cbam", 8, order="last")


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "relu"])
def test_squeezing_by_the_maximum_and_other_gates(gate: str) -> None:
    m, x = build("squeeze_excitation", reduction=2, pooling="max", gate=gate), maps()
    want = getattr(torch, gate)(m.expand(m.reduce(x.amax((2, 3))).relu()))
    assert_same("y", m(x), x * want[:, :, None, None])
    with pytest.raises(ValueError, match="pooling must be avg or max, got 'sum'"):
        create_block("squeeze_excitation", 8, pooling="sum")
    with pytest.raises(ValueError, match="gate must be sigmoid, tanh or relu, got 'step'"):
        create_block("squeeze_excitation", 8, gate="step")


@pytest.mark.parametrize("mode", ["projective", "thin_plate"])
def test_a_spatial_transformer_that_bends_starts_from_the_identity(mode: str) -> None:
    m, x = create_block("spatial_transformer", 8, mode=mode, form="published").double(), maps()
    torch.testing.assert_close(m(x), x)


def test_a_projection_without_depth_is_affine() -> None:
    m, x = build("spatial_transformer", mode="projective", form="published"), maps()
    with torch.no_grad():
        m.locate.weight[6:] = 0
        m.locate.bias[6:] = 0
    assert_same("y", m(x), affine_sample(x, m.transformation(x)[:, :2]))
    with torch.no_grad():
        m.locate.bias[6:] = torch.tensor([0.3, -0.2])
    theta, places = m.transformation(x), torch.tensor([[0.5, -1.0], [-0.2, 0.7]], dtype=torch.float64)
    homogeneous = torch.stack([t @ torch.cat([places.T, torch.ones(1, 2)]) for t in theta])
    assert_same("places", m._places(theta, places), (homogeneous[:, :2] / homogeneous[:, 2:]).transpose(1, 2))


def test_a_spline_passes_through_its_control_points_and_bends_no_plane() -> None:
    m = create_block("spatial_transformer", 8, mode="thin_plate").double()
    line = torch.linspace(-1, 1, 4, dtype=torch.float64)
    control = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).flatten(0, 1)
    theta = torch.randn(2, 16, 2, dtype=torch.float64)
    torch.testing.assert_close(m._places(theta, control), theta)
    other = torch.rand(7, 2, dtype=torch.float64)
    plane = torch.randn(3, 2, dtype=torch.float64)
    lift = lambda t: torch.cat([t, torch.ones_like(t[:, :1])], 1) @ plane  # noqa: E731
    torch.testing.assert_close(m._places(lift(control)[None], other)[0], lift(other))
    assert not torch.allclose(m._places(theta, other)[0], lift(other))
