"""EANet: merged maps against the published order of layers, independent memories, the 1e-9."""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import Tensor, nn

from lookfar import create_block, weights


def published(m: nn.Module, x: Tensor) -> Tensor:
    """The unit layer by layer, nothing merged."""
    u = m.embed(x).flatten(2)
    a = (m.key.weight @ u).softmax(-1)
    a = a / (1e-9 + a.sum(1, keepdim=True))
    return x + m.norm(m.project((m.value.weight @ a).view_as(x)))


def make(**options) -> nn.Module:
    return randomise(create_block("external_attention", 8, bases=5, **options)).double().eval()


def test_merged_maps_are_the_published_layers():
    m, x = make(), torch.randn(2, 8, 6, 7, dtype=torch.float64)
    found = []
    for f in (m, lambda x: published(m, x)):
        m.zero_grad()
        f(x).square().sum().backward()
        found.append([p.grad.clone() for p in m.parameters() if p.grad is not None])
    assert_same("y", m(x), published(m, x))
    for name, got, want in zip([n for n, _ in m.named_parameters()], *found, strict=True):
        assert_same(f"d{name}", got, want)


def test_a_position_that_every_slot_rejects_gets_nothing():
    """The sum over the slots there is far below 1e-9: the output shrinks towards the bias of the normalisation."""
    m = make()
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    key = m.key.weight.detach() @ m.embed.weight.detach()[:, :, 0, 0]
    # a direction in which all similarities fall alike
    down = torch.linalg.lstsq(key, -torch.ones(5, 1, dtype=torch.float64)).solution[:, 0]
    x[0, :, 2, 3] = 60 * down
    assert_same("y", m(x), published(m, x))
    nothing = x + m.norm(torch.zeros_like(x))
    assert_same("there", m(x)[0, :, 2, 3], nothing[0, :, 2, 3])


def test_memories_start_equal_and_are_independent():
    m = create_block("external_attention", 8, bases=5)
    assert torch.equal(m.value.weight, m.key.weight.T)
    with torch.no_grad():
        m.key.weight.add_(1)
    assert not torch.equal(m.value.weight, m.key.weight.T)


def test_softmax_over_slots_makes_positions_independent():
    m = make(normalization="softmax")
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    assert_same("a crop", m(x[..., :3]), m(x)[..., :3])
    assert m.inert_parameters == ()


def test_published_weights_bring_the_final_relu():
    m = make()
    names = {"embed": "conv1", "key": "linear_0", "value": "linear_1", "project": "conv2.0", "norm": "conv2.1"}
    state = {}
    for key, value in m.state_dict().items():
        layer, rest = key.split(".")
        state[f"{names[layer]}.{rest}"] = value[..., None] if layer in ("key", "value") else value
    loaded = weights.load(create_block("external_attention", 8, bases=5).double(), state).eval()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    assert_same("y", loaded(x), F.relu(m(x)))


def test_options_are_checked():
    with pytest.raises(ValueError, match="double, softmax, l1, sigmoid or none, got 'twice'"):
        create_block("external_attention", 8, normalization="twice")
