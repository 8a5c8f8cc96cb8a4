"""Generalized attention: a state of mmcv that holds more than weights."""

import torch

from lookfar import create_block, weights

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
