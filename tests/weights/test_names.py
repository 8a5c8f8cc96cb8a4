"""Published weights that mean something else than their names say."""

import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import nn

from lookfar import create_block, weights


def test_inplace_abn_multiplies_by_the_size_of_its_weight() -> None:
    """A context of OCNet.pytorch whose norms have weights of both signs, computed as InPlaceABN does."""
    theirs = randomise(create_block("object_context", 8, mode="base", form="published")).double().eval()
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any((m.weight < 0).any() for m in norms)
    ours = create_block("object_context", 8, mode="base", form="published").double().eval()
    weights.load(ours, weights.from_inplace_abn(theirs.state_dict()))
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)

    def inplace_abn(m: nn.BatchNorm2d, args: tuple, y: torch.Tensor) -> torch.Tensor:
        scale = m.weight.abs() + 1e-5
        return F.batch_norm(args[0], m.running_mean, m.running_var, scale, m.bias, eps=m.eps)

    for m in norms:
        m.register_forward_hook(inplace_abn)
    assert_same("y", ours(x), theirs(x))


def test_inplace_abn_leaves_other_layers_alone() -> None:
    state = {"a.0.weight": -torch.ones(2), "a.1.weight": -torch.ones(2), "a.1.running_mean": -torch.ones(2)}
    found = weights.from_inplace_abn(state, eps=0.5)
    assert found["a.0.weight"].tolist() == [-1, -1]
    assert found["a.1.weight"].tolist() == [1.5, 1.5]
    assert found["a.1.running_mean"].tolist() == [-1, -1]


def test_ports_of_double_attention_are_loaded_with_a_warning() -> None:
    block = create_block("double_attention", 8)
    ports = {"value": "convA", "key": "convB", "query": "convV", "project": "conv_reconstruct"}
    state = {}
    for key, value in randomise(create_block("double_attention", 8)).state_dict().items():
        layer, rest = key.split(".")
        state[f"{ports[layer]}.{rest}"] = value
    with pytest.warns(UserWarning, match="normalises over other axes"):
        weights.load(block, state)
    assert torch.equal(block.value.weight, state["convA.weight"])
    assert torch.equal(block.project.bias, state["conv_reconstruct.bias"])
