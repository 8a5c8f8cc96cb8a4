"""Generalized attention: a state of mmcv that holds more than weights."""

import pytest
import torch
from ops._compare import TELLS_COMPILED

from lookfar import create_block, weights
from lookfar._drawing import randomise
from lookfar.blocks import generalized_attention

THEIRS = {
    "query": "query_conv",
    "key": "key_conv",
    "value": "value_conv",
    "columns": "appr_geom_fc_x",
    "rows": "appr_geom_fc_y",
    "key_vector": "appr_bias",
    "position_vector": "geom_bias",
    "project": "proj_conv",
}


def test_the_mask_that_mmcv_keeps_among_its_parameters_is_left_out():
    trained = create_block("generalized_attention", 8, heads=2, spatial_range=1, zero_init=False)
    state = {}
    for key, value in trained.state_dict().items():
        module, _, rest = key.partition(".")
        state[".".join([THEIRS.get(module, module), *filter(None, [rest])])] = value
    state["local_constraint_map"] = torch.ones(3, 3, 2, 2, dtype=torch.uint8)
    block = weights.load(create_block("generalized_attention", 8, heads=2, spatial_range=1), state)
    for key, value in trained.state_dict().items():
        assert torch.equal(block.state_dict()[key], value), key


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [(9, 7), (1, 6), (1, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"terms": "0101"}, {"kv_stride": 1, "q_stride": 2}, {"terms": "1100", "heads": 1}]
)
def test_energies_of_positions_beside_queries(options, size, compiled, monkeypatch):
    """Logits as products of wider queries and keys are those that are added up, and so are the gradients."""
    torch._dynamo.reset()
    block = randomise(create_block("generalized_attention", 16, dtype=torch.float64, **options))
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    found, taken = [], []
    wider = block._with_positions
    monkeypatch.setattr(block, "_with_positions", lambda *args: (taken.append(1), wider(*args))[1])
    for narrow in (0, 100):
        monkeypatch.setattr(generalized_attention, "NARROW", narrow)
        f = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False) if compiled and narrow else block
        y = f(x)
        parameters = [p for p in block.parameters() if p.requires_grad]
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True)])
        assert len(taken) == (narrow > 0 and (TELLS_COMPILED or not compiled))
    for got, want in zip(*found[::-1]):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
