"""Published blocks that undo their own idea: by how much, and the option under which they do what the paper meant.

The numbers asserted here are those on the blocks' pages.
"""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import Tensor, nn

from lookfar import create_block


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


def cgnl(**options) -> nn.Module:
    m = create_block("compact_generalized_nonlocal", 64, zero_init=False, **options).double()
    for conv in (m.query, m.key, m.value, m.project):
        nn.init.kaiming_normal_(conv.weight)
    return m


@pytest.mark.parametrize(("norm_layer", "least", "most"), [(None, 0, 1e-7), (nn.BatchNorm2d, 0.5, 2)])
def test_cgnl_attention_cancels_in_its_group_norm(norm_layer, least: float, most: float) -> None:
    """Twice the kernel everywhere, which is another attention, changes the published update by less than 1e-7."""
    m = cgnl(norm_layer=norm_layer).eval()
    x = torch.randn(2, 64, 14, 14, dtype=torch.float64)
    update = m(x) - x
    with torch.no_grad():
        m.key.weight.mul_(2)
    assert least <= difference(update, m(x) - x) <= most


@pytest.mark.parametrize(("norm_layer", "least", "most"), [(None, 0, 1e-5), (nn.BatchNorm2d, 0.5, 10)])
def test_cgnl_learns_its_attention_only_where_it_counts(norm_layer, least: float, most: float) -> None:
    m = cgnl(norm_layer=norm_layer).train()
    x = torch.randn(4, 64, 14, 14, dtype=torch.float64)
    (m(x) * torch.randn_like(x)).sum().backward()
    assert least <= float(m.key.weight.grad.norm() / m.query.weight.grad.norm()) <= most


def test_cgnl_published_is_the_sign_of_the_attention() -> None:
    m = cgnl().eval()
    x = torch.randn(2, 64, 14, 14, dtype=torch.float64)
    s = (m.key(x) * m.value(x)).unflatten(1, (8, -1)).sum((2, 3, 4))
    without = m.norm(m.project(m.query(x))).unflatten(1, (8, -1))
    assert difference(m(x) - x, (s.sign()[..., None, None, None] * without).flatten(1, 2)) < 1e-4


@torch.no_grad()
def variation(m: nn.Module, x: Tensor) -> float:
    """The share of the update's variance, in a channel of an image, that is between its positions."""
    update = m(x) - x
    return float(update.var((2, 3), correction=0).sum() / update.square().mean((2, 3)).sum())


def test_cgnl_gaussian_is_a_constant_over_positions() -> None:
    x = torch.randn(2, 64, 14, 14, dtype=torch.float64)
    m = cgnl(mode="gaussian").eval()
    assert variation(m, x) < 1e-4
    meant = cgnl(mode="gaussian", decay=True, gamma=0.5).eval()
    meant.load_state_dict(m.state_dict())
    assert variation(meant, x) > 0.3


def test_cgnl_decay_is_the_gaussian_of_the_paper() -> None:
    m = create_block("compact_generalized_nonlocal", 4, groups=2, mode="gaussian", decay=True, gamma=0.3, order=40)
    m = randomise(m).double().eval()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64)
    t, p, g = (conv(x).flatten() for conv in (m.query, m.key, m.value))
    n = x[0, 0].numel()
    u = torch.zeros_like(t)
    for group in range(2):
        for i in range(group * n, (group + 1) * n):
            for j in range(group * n, (group + 1) * n):
                u[i] += torch.exp(-0.3 * (t[i] - p[j]) ** 2) * g[j]
    assert_same("y", m(x), x + m.norm(m.project(u.view(1, 2, 3, 2))))
    with pytest.raises(ValueError, match="decay must be False"):
        create_block("compact_generalized_nonlocal", 16, decay=True)


def sgr_as_written(m: nn.Module, x: Tensor) -> Tensor:
    """The update by the paper's equations, every matrix built."""
    X = x.flatten(2).transpose(1, 2)
    votes = (X @ m.vote).softmax(2)
    symbols = (votes.transpose(1, 2) @ (X @ m.embed)).relu()
    joined = torch.cat([symbols, m.embeddings.expand(len(x), -1, -1)], 2) @ m.reason
    symbols = (m.graph_matrix @ joined).relu()
    to_symbol, to_position = m.compatibility
    logits = (symbols @ to_symbol)[:, None] + (X @ to_position)[..., None]  # (B, N, K)
    weights = logits.softmax(1)
    weights = weights / weights.sum(2, keepdim=True)
    return (weights @ (symbols @ m.answer)).relu().transpose(1, 2).view_as(x)


def test_sgr_gives_all_positions_one_vector() -> None:
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    words = torch.randn(6, 10)
    published = create_block("symbolic_graph_reasoning", 16, embeddings=words, zero_init=False).double()
    written = sgr_as_written(published, x).detach()
    assert_same("as written", published(x) - x, written)
    meant = create_block("symbolic_graph_reasoning", 16, embeddings=words, mapping="product", zero_init=False).double()
    assert variation(published, x) < 1e-12
    assert written.var((2, 3)).max() < 1e-12
    assert variation(meant, x) > 0.2


def learned(gradient: str) -> tuple[float, float]:
    """How far the first convolution has moved, and the loss at the end over the loss at the start."""
    torch.manual_seed(0)
    m = create_block("expectation_maximization", 8, bases=4, gradient=gradient, zero_init=False).train()
    x = torch.randn(8, 8, 6, 6)
    target = F.conv2d(x, torch.randn(8, 8, 1, 1)).mean((2, 3), keepdim=True).expand_as(x)
    start = m.embed.weight.detach().clone()
    optimiser = torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(m(x) - x, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return difference(start, m.embed.weight.detach()), losses[-1] / losses[0]


def test_emau_first_convolution_learns_only_when_asked() -> None:
    found = {gradient: learned(gradient) for gradient in ("none", "last", "full")}
    assert found["none"][0] == 0
    for gradient in ("last", "full"):
        assert found[gradient][0] > 0.3
        assert found[gradient][1] < 0.8 * found["none"][1]


@torch.no_grad()
def test_channel_attention_copies_one_channel() -> None:
    """The largest weight of a row, on average, where energies are sums over 4096 positions, and means of them."""
    x = torch.randn(1, 64, 64, 64).relu()
    largest = {}
    for scale in (False, True):
        m = create_block("channel_attention", 64, scale=scale, zero_init=False)
        # channels that stand for themselves show what is mixed
        weights = torch.linalg.lstsq(x[0].flatten(1).T, m.update(x)[0].flatten(1).T).solution.T
        largest[scale] = float(weights.amax(1).mean())
    assert largest[False] > 0.8
    assert largest[True] < 0.05


def test_channel_attention_of_the_paper_looks_at_the_most_similar() -> None:
    m = create_block("channel_attention", 3, similarity="most", zero_init=False).double().requires_grad_(False)
    x = torch.tensor([[3.0, 0.0], [3.1, 0.1], [-3.0, 0.0]], dtype=torch.float64)[None, :, None]
    energy = x[0, :, 0] @ x[0, :, 0].T
    assert_same("update", m.update(x)[0, :, 0], energy.softmax(1) @ x[0, :, 0])
    assert m.update(x)[0, 0, 0, 0] > 3
    scaled = create_block("channel_attention", 3, similarity="most", scale=True, zero_init=False).double()
    assert_same("scaled", scaled.update(x)[0, :, 0], (energy / 2).softmax(1) @ x[0, :, 0])
    with pytest.raises(ValueError, match="least or most, got 'none'"):
        create_block("channel_attention", 3, similarity="none")


@torch.no_grad()
def test_wide_maps_belong_to_one_cluster() -> None:
    x = torch.randn(1, 2048, 6, 6)
    largest = {}
    for scale in (False, True):
        m = create_block("graph_projection", 2048, nodes=32, inner_channels=1, scale=scale)
        largest[scale] = float(m.maps(x).amax(1).mean())
    assert largest[False] > 0.8
    assert largest[True] < 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "grows"),
    [
        ("latent_gnn", {"nodes": 6, "reduction": 2, "residual": False}, 1.99),
        ("latent_gnn", {"nodes": 6, "reduction": 2, "residual": False, "symmetric": True}, 3.99),
        ("symbolic_graph_reasoning", {"nodes": 6, "zero_init": False}, 2),
        ("glore", {"nodes": 6, "zero_init": False, "reasoning": False}, 3.99),
    ],
)
def test_sums_over_positions_grow_with_the_map(name: str, options: dict, grows: float) -> None:
    """The update on a map of twice the sides over that on the map itself, where both show the same."""
    x = torch.randn(2, 32, 6, 6)
    twice = F.interpolate(x, scale_factor=2, mode="nearest")
    growth = {}
    for normalize in (False, True):
        torch.manual_seed(0)
        m = create_block(name, 32, normalize=normalize, **options).eval()
        update, larger = (m(t) - (0 if name == "latent_gnn" else t) for t in (x, twice))
        growth[normalize] = float(larger.square().mean().sqrt() / update.square().mean().sqrt())
    assert growth[False] > grows
    assert growth[True] == pytest.approx(1, abs=1e-3)
