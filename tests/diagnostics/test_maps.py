"""Similarity, label mass and key grids, against loops over pairs and cases known by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import Sample, samples
from torch import nn
from torch.nn import functional as F

from lookfar.blocks import create_block
from lookfar.diagnostics import (
    attention_maps,
    key_size,
    labels_at,
    map_similarity,
    own_class_share,
    query_independent_part,
    query_size,
    why_no_maps,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "attention_diagnostics"


def test_similarity_is_the_mean_over_pairs_of_different_queries():
    maps = torch.rand(2, 3, 7, 11, dtype=torch.float64).softmax(-1)
    cosine = F.cosine_similarity(maps[..., :, None, :], maps[..., None, :, :], dim=-1)
    want = cosine[..., ~torch.eye(7, dtype=torch.bool)].mean(-1)
    assert torch.allclose(map_similarity(maps), want, rtol=1e-12)


def test_similarity_knows_one_map_and_disjoint_maps():
    one = torch.rand(1, 1, 1, 9).expand(1, 1, 5, 9)
    assert map_similarity(one).item() == pytest.approx(1)
    assert map_similarity(torch.eye(6)[None, None]).item() == pytest.approx(0)


def test_rows_of_zeros_have_no_direction():
    maps = torch.eye(4)[[0, 0, 1]][None, None]
    with_zero = torch.cat([maps, torch.zeros(1, 1, 2, 4)], 2)
    assert map_similarity(with_zero).item() == pytest.approx(map_similarity(maps).item())
    assert math.isnan(map_similarity(maps[..., :1, :]).item())


def test_maps_of_a_block_bare_and_inside_a_gate():
    block = create_block("position_attention", 16, zero_init=False)
    x, queries = torch.randn(2, 16, 3, 5), torch.tensor([0, 7])
    gate = nn.Module()
    gate.block = block
    want = attention_maps(block, x)[:, :, queries]
    assert torch.allclose(attention_maps(gate, x, queries), want)
    assert query_independent_part(want).shape == (2, 1, 15)


def test_a_block_without_weights_says_so():
    block = create_block("channel_attention", 16)
    assert "no weights over positions" in why_no_maps(block)
    with pytest.raises(ValueError, match="channel_attention has no weights over positions"):
        attention_maps(block, torch.randn(1, 16, 3, 3))


@torch.no_grad()
@samples(attends="weights")
def test_key_and_query_grid(sample: Sample):
    """The block says which grids its keys and queries form; guessed from their number, pyramid keys looked like one."""
    m = sample.make()
    if sample.info.kind in ("tokens", "upsampler", "region"):
        pytest.skip("no map to draw on")
    wide = [(10, 11), (12, 33), (9, 2)]  # 110 keys of a pyramid are no 10 x 11
    for size in [*sample.sizes, *(wide if len(sample.sizes[0]) == 2 else [])]:
        (x, *_) = sample.inputs(m, size, batch=1)
        keys = m.attention(x, torch.tensor([0])).shape[-1]
        grid = key_size(m, x.shape[2:])
        if grid is None:
            assert sample.name == "asymmetric_nonlocal"
        else:
            assert math.prod(grid) == keys, size
            assert len(grid) == len(size)
        if not why_no_maps(m):
            assert math.prod(query_size(m, x.shape[2:])) == m.attention(x).shape[-2], size


def test_keys_of_a_pyramid_form_no_grid():
    assert key_size(create_block("asymmetric_nonlocal", 16), (10, 11)) is None
    assert key_size(create_block("asymmetric_nonlocal", 16, bins=(3,)), (10, 11)) == (3, 3)
    assert key_size(create_block("nonlocal", 16, subsample=2), (7, 5)) == (3, 2)
    assert key_size(create_block("generalized_attention", 16), (7, 5)) == (4, 3)


def test_labels_at_takes_the_centre_of_each_cell():
    labels = torch.arange(16).view(1, 4, 4)
    assert labels_at(labels, (2, 2)).tolist() == [[5, 7, 13, 15]]
    assert labels_at(labels, (4, 4)).flatten().tolist() == list(range(16))


def test_own_class_share_leaves_void_out_of_both():
    maps = torch.tensor([[[[0.5, 0.2, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]]]])
    share, chance = own_class_share(maps, torch.tensor([[0, 255]]), torch.tensor([[0, 0, 1, 255]]))
    assert share[0, 0, 0].item() == pytest.approx(0.7 / 0.8)
    assert chance[0, 0].item() == pytest.approx(2 / 3)
    assert share[0, 0, 1].isnan()
    assert chance[0, 1].isnan()


def test_weights_of_any_sign_have_no_share():
    share, chance = own_class_share(torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[0]]), torch.tensor([[0, 1]]))
    assert share.isnan().all()
    assert chance.item() == 0.5


@pytest.mark.parametrize("case", ["joint_7x5", "degenerate_5x8", "limits_6x4", "sampled_queries_6x4"])
def test_equals_the_published_definitions(case):
    with np.load(GOLDENS / f"{case}.npz") as vectors:
        maps = torch.from_numpy(vectors["x"])
        Q = maps.shape[-2]
        mean_over_pairs = (map_similarity(maps) * (Q - 1) + 1) / Q  # GCNet's pairs include i = j
        want = torch.from_numpy(vectors["s:cosine_distance"])
        assert torch.allclose((1 - mean_over_pairs) / 2, want, rtol=1e-9, atol=1e-12)
        if "s:label_mass" in vectors:
            keys = torch.from_numpy(vectors["labels"]).flatten().long().expand(len(maps), -1)
            queries = keys[:, torch.from_numpy(vectors["queries"]).long()] if "queries" in vectors else keys
            share, _ = own_class_share(maps, queries, keys)
            want = torch.from_numpy(vectors["s:label_mass"])
            mass = share * (maps * (keys != 255)[:, None, None]).sum(-1)  # the literature does not renormalise
            valid = ~share.isnan()
            assert torch.allclose(mass[valid], want[valid], rtol=1e-9)
