"""What the documents say to those who come from other libraries: names that exist, and timm's layers as they are."""

import re
from pathlib import Path

import pytest
import torch
from timm.layers import GlobalContext, SEModule
from timm.layers.cbam import CbamModule
from timm.layers.non_local_attn import NonLocalAttn

from lookfar.blocks import create_block, list_blocks, parse_block

PAGE = (Path(__file__).parents[1] / "docs/migration.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
]
OURS = [text for row in ROWS for text in re.findall(r"`([a-z_]+(?:\([^`]*\))?)`", row[1]) if text != "psa"]
THEIRS = {
    "SEModule(64, rd_divisor=1)": SEModule(64, rd_divisor=1),
    "CbamModule(64)": CbamModule(64),
    "GlobalContext(64, fuse_add=True, fuse_scale=False)": GlobalContext(64, fuse_add=True, fuse_scale=False),
    "GlobalContext(64)": GlobalContext(64),
    "NonLocalAttn(64, use_scale=False)": NonLocalAttn(64, use_scale=False),
}


@pytest.mark.parametrize("written", sorted(set(OURS)))
def test_names_of_the_page_are_blocks_with_these_options(written):
    name, options = parse_block(written)
    assert name in list_blocks()
    create_block(name, 512, **options)


def test_the_page_names_many():
    assert len(OURS) > 20


@pytest.mark.parametrize("theirs", THEIRS)
def test_timms_layers_compute_the_same(theirs):
    (row,) = [row for row in ROWS if f"`{theirs}`" in row[0]]
    name, options = parse_block(re.match(r"`([^`]+)`", row[1])[1])
    block, layer = create_block(name, 64, **options).eval(), THEIRS[theirs].eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    own, given = block.state_dict(), list(layer.state_dict().values())
    without = ("reduce.bias", "expand.bias") if name == "cbam" else ()  # timm's has none
    names = [key for key in own if key not in without]
    assert len(names) == len(given)
    state = {key: value.reshape(own[key].shape) for key, value in zip(names, given)}
    if name == "cbam":
        state["spatial.weight"] = state["spatial.weight"].flip(1)  # maximum and mean are the other way round
    block.load_state_dict({**state, **{key: torch.zeros_like(own[key]) for key in without}})
    x = torch.randn(2, 64, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(block(x), layer(x), rtol=1e-4, atol=1e-4)
