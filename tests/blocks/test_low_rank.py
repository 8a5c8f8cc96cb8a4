"""Heads against plain loops over them, the middle step switched off, and other normalisations of low-rank blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samples import assert_all_same, assert_same, inert, pull, randomise
from torch import Tensor, nn

from lookfar import create_block
from lookfar.ops.matrix_decomposition import matrix_decomposition


def build(name: str, channels: int = 8, **options) -> nn.Module:
    return randomise(create_block(name, channels, **options)).double().eval()


def maps(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 4, 3, dtype=torch.float64)


def test_heads_of_em_cluster_their_own_channels() -> None:
    m, x = build("expectation_maximization", bases=3, heads=2, iterations=2), maps()
    h = m.embed(x).flatten(2)
    rebuilt = []
    for head, part in enumerate(h.split(4, 1)):
        images = []
        for image in part:
            mu = m.bases[head]
            for _ in range(2):
                z = (image.T @ mu).softmax(1)
                mu = image @ (z / (1e-6 + z.sum(0)))
                mu = mu / (1e-6 + mu.norm(dim=0))
            images.append(mu @ z.T)
        rebuilt.append(torch.stack(images))
    y = x + m.norm(m.project(torch.cat(rebuilt, 1).view_as(x).relu()))
    assert_same("y", m(x), y)
    assert m.attention(x).shape == (2, 2, 12, 12)
    assert m.maps(x).shape == (2, 2 * 3, 12)


def test_em_without_its_steps_mixes_the_stored_bases() -> None:
    m, x = build("expectation_maximization", bases=3, heads=2, reasoning=False, gradient="last"), maps()
    h = m.embed(x).flatten(2).unflatten(1, (2, 4))
    z = (m.bases.transpose(1, 2) @ h).softmax(2)
    assert_same("maps", m.maps(x), z.flatten(1, 2))
    mixed = (m.bases @ z).flatten(1, 2).view_as(x)
    assert_same("y", m(x), x + m.norm(m.project(mixed.relu())))
    with pytest.raises(ValueError, match=r"maps\(x\) says"):
        m.attention(x)
    # the stored bases still follow what one step would fit
    one = build("expectation_maximization", bases=3, heads=2, iterations=1)
    one.load_state_dict(m.state_dict())
    m.train()(x)
    one.train()(x)
    assert_same("bases", m.bases, one.bases)


@pytest.mark.parametrize("spatial", [True, False], ids=["spatial", "channels"])
@pytest.mark.parametrize("method", ["nmf", "cd", "vq"])
def test_heads_of_a_hamburger_factorise_their_own_channels(method: str, spatial: bool) -> None:
    m, x = build("hamburger", bases=3, heads=2, method=method, inverse_temperature=2.0, spatial=spatial), maps()
    y = m.value(x)
    parts = (y.relu() if method == "nmf" else y).flatten(2).split(4, 1)
    start = F.normalize(torch.rand(2, 2, 4 if spatial else 12, 3, dtype=torch.float64), dim=2)  # (B, h, D, K)
    rebuilt = []
    for head, part in enumerate(parts):
        rows = part if spatial else part.transpose(1, 2)
        left, right = matrix_decomposition(rows, start[:, head], method=method, iterations=7, inverse_temperature=2.0)
        product = left @ right.transpose(1, 2)
        rebuilt.append(product if spatial else product.transpose(1, 2))
    want = x + m.norm(m.project(torch.cat(rebuilt, 1).view_as(x)))
    assert_same("y", m(x, start.flatten(0, 1)), want)
    assert m.maps(x).shape == (2, 2 * 3, 12)


def test_a_hamburger_draws_its_bases_as_it_is_told() -> None:
    x = maps()
    train, always, never = (build("hamburger", bases=3, random_bases=mode) for mode in ("train", "always", "never"))
    assert torch.equal(train(x), train(x))
    assert not torch.equal(train.train()(x), train(x))
    assert not torch.equal(always(x), always(x))
    with torch.no_grad():
        never.train()
        assert torch.equal(never(x), never(x))
        before = never.hams[0].bases.clone()
        left, _ = never.eval().hams[0](never._value(x))
        assert_same("bases", never.hams[0].bases, F.normalize(before + 0.9 * (left.mean(0) - before), dim=1))
    with pytest.raises(ValueError, match="spatial=False is of a single factorisation"):
        create_block("hamburger", 8, variant="v2plus", spatial=False)


def test_a_hamburger_keeps_bases_that_are_maps_where_they_are_loaded() -> None:
    x = maps()
    m = build("hamburger", bases=3, random_bases="never", spatial=False)
    assert m(x).shape == x.shape  # from the seed, of any size
    state = m.state_dict() | {"hams.0.bases": F.normalize(torch.rand(1, 12, 3, dtype=torch.float64), dim=1)}
    m.load_state_dict(state)
    m(x)
    moved = m.state_dict()["hams.0.bases"]
    assert not torch.equal(moved, state["hams.0.bases"])
    other = build("hamburger", bases=3, random_bases="never", spatial=False)
    other.load_state_dict(m.state_dict())
    assert torch.equal(other(x), m(x))
    with pytest.raises(ValueError, match="maps of 12 positions, got 9"):
        m(x[:, :, :3])


def test_a_node_far_from_every_position_keeps_its_direction() -> None:
    m, x = build("graph_projection", nodes=2, inner_channels=5, form="published"), maps()[..., :1, :1]
    unit = m.units[0]
    with torch.no_grad():
        unit.centres[:, 1] = 40.0  # its share of the position is e^-thousands
    unit_length = F.normalize((x[:, :, 0] - unit.centres) / unit.scales.sigmoid(), dim=1)  # (B, C, V)
    nodes = (unit.weight.T @ unit_length @ unit_length.transpose(1, 2) @ unit_length).relu()
    assert_same("y", m(x)[:, :, 0, 0], nodes[:, :, 0])
    assert_same("maps", m.maps(x)[:, :, 0], torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2, 2))


def test_a_projection_shared_in_ocnet_moves_its_statistics_twice_a_step() -> None:
    m, x = build("object_context").train(), maps()
    norm, before = m.contexts[0].key[0].norm, m.contexts[0].key[0].norm.running_mean.clone()
    m(x)
    mean = m.contexts[0].key[0].conv(x).mean((0, 2, 3))
    assert_same("mean", norm.running_mean, 0.9**2 * before + (1 - 0.9**2) * mean)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("normalization", ["softmax", "double", "none"])
def test_heads_of_ocr_relate_their_own_channels(normalization: str) -> None:
    m, x = build("object_contextual", heads=2, normalization=normalization), maps()
    logits = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    regions = x.flatten(2) @ logits.flatten(2).softmax(2).transpose(1, 2)
    q, k, v = m.query(x).flatten(2), m.key(regions[..., None]).flatten(2), m.value(regions[..., None]).flatten(2)
    mixed = []
    for a, b, c in zip(q.split(2, 1), k.split(2, 1), v.split(2, 1)):
        s = a.transpose(1, 2) @ b / 2**0.5  # (B, N, K)
        if normalization == "double":
            s = s.softmax(1)
            s = s / (1e-9 + s.sum(2, keepdim=True))
        else:
            s = s.softmax(2) if normalization == "softmax" else s / 5
        mixed.append(c @ s.transpose(1, 2))
    context = m.mix(torch.cat(mixed, 1).unflatten(2, (4, 3)))
    assert_same("y", m(x, logits), m.fuse(torch.cat([context, x], 1)))
    assert m.maps(x, logits).shape == (2, 2, 12, 5)


def test_ocr_without_relation_gives_regions_back_by_the_first_guess() -> None:
    m, x = build("object_contextual", reasoning=False), maps()
    logits = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    regions = x.flatten(2) @ logits.flatten(2).softmax(2).transpose(1, 2)
    values = m.value(regions[..., None])[..., 0]
    context = m.mix((values @ logits.flatten(2).softmax(1)).unflatten(2, (4, 3)))
    assert_same("y", m(x, logits), m.fuse(torch.cat([context, x], 1)))
    assert_same("maps", m.maps(x, logits)[:, 0], logits.flatten(2).softmax(1).transpose(1, 2))
    with pytest.raises(ValueError, match="without reasoning no attention has heads=2"):
        create_block("object_contextual", 8, reasoning=False, heads=2)
    with pytest.raises(ValueError, match="double, l1, sigmoid or none, got 'twice'"):
        create_block("object_contextual", 8, normalization="twice")


def test_ocr_with_labels_gives_every_position_its_own_ideal_region() -> None:
    m, x = build("object_contextual", heads=2), maps()
    logits = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 255, 0, -1, 1, 0, 0, 1, 1, 255]).view(1, 4, 3).expand(2, -1, -1)  # no 2
    got = m(x, logits, labels)
    flat = torch.where((labels < 0) | (labels > 2), 3, labels).flatten(1)
    ideal = torch.stack([x.flatten(2)[..., flat[0] == c].mean(2) for c in (0, 1, 3)], 2)
    own = m.value(ideal[..., None])[..., 0][..., torch.tensor([0, 1, -1, 2])[flat[0]]]
    context = m.mix(own.unflatten(2, (4, 3)))
    assert_same("y", got, m.fuse(torch.cat([context, x], 1)))
    with pytest.raises(ValueError, match=r"want labels \(2, 4, 3\), got \(2, 1, 4, 3\)"):
        m(x, logits, labels[:, None])


@pytest.mark.parametrize("normalization", ["double", "l1", "sigmoid", "none"])
def test_double_attention_normalised_otherwise(normalization: str) -> None:
    m, x = (
        build("double_attention", nodes=3, inner_channels=5, normalization=normalization, share_query_key=True),
        maps(),
    )
    a, logits = m.value(x).flatten(2), m.query(x).flatten(2)
    share = logits.softmax(1)
    gathering = {
        "double": share / (1e-9 + share.sum(2, keepdim=True)),
        "l1": logits / logits.abs().sum(2, keepdim=True),
        "sigmoid": logits.sigmoid() / 12,
        "none": logits / 12,
    }[normalization]
    bag = a @ gathering.transpose(1, 2)
    assert_same("y", m(x), x + m.project((bag @ share).unflatten(2, (4, 3))))
    with pytest.raises(ValueError, match="softmax, double, l1, sigmoid or none, got 'twice'"):
        create_block("double_attention", 8, normalization="twice")


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"graph_convolution": True, "nodes": (3, 4)}])
def test_latent_nodes_that_do_not_meet_send_back_what_they_gathered(options: dict) -> None:
    m, x = build("latent_gnn", **{"nodes": 3, **options}, reduction=2, reasoning=False), maps()
    u, v = (F.normalize(layer(x), dim=1) for layer in (m.value, m.back or m.value))
    parts = []
    for n, to_nodes in enumerate(m.to_nodes):
        a = to_nodes(u).relu().flatten(2)
        e = a if m.symmetric else m.to_positions[n](v).relu().flatten(2)
        a, e = F.normalize(a, dim=1 if m.symmetric else 2), F.normalize(e, dim=1)
        part = (u.flatten(2) @ a.transpose(1, 2) @ e).unflatten(2, (4, 3))
        parts.append(m.convolve[n](part).relu() if len(m.convolve) else part)
    assert_same("y", m(x), x + m.gamma * m.project(torch.cat(parts, 1)))


@pytest.mark.parametrize("options", [{"heads": 2}, {"reasoning": False}, {"dilations": (1, 2)}], ids=str)
def test_learned_regions_are_those_of_the_logits_that_they_make(options: dict[str, Any]) -> None:
    m, x = build("object_contextual", regions="learned", nodes=3, **options), maps().requires_grad_()
    given = build("object_contextual", **options)
    given.load_state_dict({k: v for k, v in m.state_dict().items() if not k.startswith("guess")})
    asked = x if given.first is None else given.first(x)
    names = [name for name, _ in given.named_parameters()]
    found = []
    for module, y in ((m, m(x)), (given, given(x, m.guess(asked)))):
        wanted = [x, m.guess.weight, *(module.get_parameter(name) for name in names)]
        found.append(dict(zip(["y", "dx", "guess", *names], [y, *torch.autograd.grad(pull([y]), wanted)])))
    assert_all_same("learned", *found)
    assert_same("maps", m.maps(x), given.maps(x, m.guess(asked)))


def test_regions_are_said_once() -> None:
    learned, published = create_block("ocr", 8, regions="learned"), create_block("ocr", 8)
    x = maps().float()
    with pytest.raises(ValueError, match="takes the map alone, got logits"):
        learned(x, x)
    with pytest.raises(ValueError, match="want logits"):
        published(x)
    with pytest.raises(ValueError, match=r"nodes is for regions='learned'.*got nodes=4"):
        create_block("ocr", 8, nodes=4)


def double_attention_of_heads(m: Any, x: Tensor) -> Tensor:
    """Each image and head by itself, as the equations have it."""
    images = []
    for image in x.flatten(2):  # (C, N)
        A, B, V = (
            (layer.weight.flatten(1) @ image + layer.bias[:, None]).chunk(m.heads, 0)
            for layer in (m.value, m.key or m.query, m.query)
        )
        if m.normalization == "double":
            gathering = [b.softmax(0) / (1e-9 + b.softmax(0).sum(1, keepdim=True)) for b in B]
        else:
            gathering = [b.softmax(1) for b in B]
        given = torch.cat([a @ g.T @ v.softmax(0) for a, g, v in zip(A, gathering, V)])
        images.append(m.project.weight.flatten(1) @ given + m.project.bias[:, None])
    return x + torch.stack(images).view_as(x)


def glore_of_heads(m: Any, x: Tensor) -> Tensor:
    images = []
    for image in x.flatten(2):
        states = (m.value.weight.flatten(1) @ image + m.value.bias[:, None]).chunk(m.heads)
        maps = (m.assign.weight.flatten(1) @ image + m.assign.bias[:, None]).chunk(m.heads)
        given = []
        graph = (t.chunk(m.heads) for t in (m.mix_nodes.weight, m.mix_nodes.bias, m.mix_states.weight))
        for s, p, nodes, bias, mix in zip(states, maps, *graph):
            v = s @ p.T / (p.shape[1] if m.normalize else 1)
            given.append(mix @ (v + v @ nodes.T + bias).relu() @ p)
        images.append(m.project.weight.flatten(1) @ torch.cat(given))
    return x + m.norm(torch.stack(images).view_as(x))


def latent_gnn_of_heads(m: Any, x: Tensor) -> Tensor:
    def unit(t: Tensor, axis: int) -> Tensor:
        return t / t.norm(dim=axis, keepdim=True).clamp_min(1e-12)

    def features(layer: nn.Module) -> list[Tensor]:
        return [unit(part, 1) for part in layer(x).flatten(2).chunk(m.heads, 1)]

    def weights(layer: nn.Module, u: list[Tensor], axis: int) -> list[Tensor]:
        return [
            unit(a, axis) for a in layer(torch.cat(u, 1).unflatten(2, x.shape[2:])).relu().flatten(2).chunk(m.heads, 1)
        ]

    u, v = features(m.value), features(m.value if m.symmetric else m.back)
    parts = []
    for n, to_nodes in enumerate(m.to_nodes):
        A = weights(to_nodes, u, 1 if m.symmetric else 2)
        E = A if m.symmetric else weights(m.to_positions[n], v, 1)
        for a, e, own in zip(A, E, u):
            L = a @ own.transpose(1, 2)
            S = (unit(L, 2) @ unit(L, 2).transpose(1, 2)).softmax(2)
            parts.append((S @ L).transpose(1, 2) @ e)
    return x + m.gamma * m.project(torch.cat(parts, 1).unflatten(2, x.shape[2:]))


def external_attention_of_heads(m: Any, x: Tensor) -> Tensor:
    found = []
    for part in m.embed(x).flatten(2).chunk(m.heads, 1):  # (B, C/h, N)
        a = (m.key.weight @ part).softmax(2)
        found.append(m.value.weight @ (a / (1e-9 + a.sum(1, keepdim=True))))
    return x + m.norm(m.project(torch.cat(found, 1).view_as(x)))


@pytest.mark.parametrize(
    ("name", "options", "by_hand"),
    [
        ("double_attention", {"heads": 2, "nodes": 6, "inner_channels": 4}, double_attention_of_heads),
        ("double_attention", {"heads": 2, "normalization": "double", "share_query_key": True, "nodes": 8},
         double_attention_of_heads),
        ("glore", {"heads": 2, "nodes": 6, "inner_channels": 4}, glore_of_heads),
        ("glore", {"heads": 4, "nodes": 4, "normalize": True}, glore_of_heads),
        ("latent_gnn", {"heads": 2, "nodes": (6, 4), "reduction": 2}, latent_gnn_of_heads),
        ("latent_gnn", {"heads": 4, "nodes": 8, "reduction": 1, "symmetric": True}, latent_gnn_of_heads),
        ("external_attention", {"heads": 2, "bases": 5}, external_attention_of_heads),
        ("external_attention", {"heads": 8, "bases": 3}, external_attention_of_heads),
    ],
)  # fmt: skip
def test_heads_are_blocks_side_by_side(name: str, options: dict[str, Any], by_hand: Callable[..., Tensor]) -> None:
    m = build(name, **options)
    names = [n for n, _ in m.named_parameters() if n not in inert(m)]
    for size in ((2, 7, 5), (1, 1, 3)):
        x = torch.randn(size[0], 8, *size[1:], dtype=torch.float64, requires_grad=True)
        found = []
        for y in (m(x), by_hand(m, x)):
            grads = torch.autograd.grad(pull([y]), [x, *(m.get_parameter(n) for n in names)])
            found.append(dict(zip(["y", "dx", *names], [y, *grads])))
        assert_all_same(name, *found)


@pytest.mark.parametrize("name", ["double_attention", "glore", "latent_gnn", "external_attention"])
def test_heads_that_do_not_divide_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"heads must divide .*, got 3"):
        create_block(name, 16, heads=3)
