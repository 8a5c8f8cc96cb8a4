"""``lookfar simplify`` of a network that is no trial: written as it was saved, found again, judged, refused."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lookfar import create_network
from lookfar.blocks import block_info
from lookfar.diagnostics import blocks_of
from lookfar.use import open_network

BLOCK = "head.paths.0.block"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images with masks, and networks whose block weighs all queries alike, or is another one."""
    home = tmp_path_factory.mktemp("simplify")
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (home / "photos" / part / kind).mkdir(parents=True)
        for n in range(4):
            Image.fromarray(draw.integers(0, 256, (16, 24, 3), np.uint8)).save(home / f"photos/{part}/images/{n}.png")
            Image.fromarray(draw.integers(0, 2, (16, 24), np.uint8)).save(home / f"photos/{part}/masks/{n}.png")
    for name in ("nonlocal", "danet", "ccnet"):
        torch.manual_seed(0)
        network = create_network(name, 2, backbone="resnet18", width=16)
        for key in blocks_of(network):
            block = network.get_submodule(key)
            if hasattr(block, "query") and name != "ccnet":
                nn.init.zeros_(block.query.weight)
                nn.init.normal_(block.query.bias, std=20)
                nn.init.ones_(block.gamma if block.norm is None else block.norm.weight)
        network.eval().save_pretrained(home / name)
    return home


@pytest.fixture
def run(run, home, monkeypatch):
    monkeypatch.chdir(home)
    # times are measured elsewhere, and take their time
    monkeypatch.setattr(
        "lookfar.insight.simplifying.measure_in_turn", lambda networks, _: {name: [1.0] for name in networks}
    )
    return functools.partial(run, "simplify")


def test_one_map_is_written_and_found_again_by_the_same_words(run, home):
    code, out, err = run("nonlocal", "--data", "photos", "--to", "one-map", "--out", "simple")
    assert code == 0, err
    assert "one-map (one map for all queries): +0.0" in out
    assert "parameters" in out
    assert out.splitlines()[-1] == "Written to simple"
    old, new = open_network("nonlocal").network, open_network("simple").network
    assert block_info(new.get_submodule(BLOCK)).name == "simplified_nonlocal"
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(new(images), old(images), atol=1e-4, rtol=1e-4)
    facts = json.loads((home / "simple/simplified.json").read_text())
    assert facts["of"] == {"network": "nonlocal", "blocks": [BLOCK]}
    assert facts["after"]["flops"] < facts["before"]["flops"]
    assert 10 * facts["errors"]["fitted"] < facts["errors"]["average"]
    assert run("nonlocal", "--data", "photos", "--out", "simple")[0] == 2  # nothing is overwritten


def test_a_block_that_is_removed_stays_so_and_others_stay(run):
    code, out, _ = run("danet", "--data", "photos", "--to", "none", "--force", "--size", "16x16", "--out", "without")
    assert code == 0
    assert "head.paths.1.block: cannot become simpler, and stays" in out
    new = open_network("without").network
    assert blocks_of(new) == ["head.paths.1.block"]
    assert isinstance(new.get_submodule(BLOCK), nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonlocal"], "what is nonlocal to be judged on? --data PATH says it"),
        (["ccnet", "--data", "photos"], "criss_cross cannot become one map"),
        (["nowhere", "--data", "photos"], "no network nowhere"),
        (["nonlocal", "--data", "nowhere"], "no data called 'nowhere'"),
        (["nonlocal", "--data", "photos", "--size", "3"], "size must be two numbers"),
        (["nonlocal", "--data", "photos", "--to", "global_context"], "give --steps 300"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(run, home, arguments, said):
    code, _, err = run(*arguments, "--out", "there")
    assert code == 2, err
    assert said in " ".join(err.split())
    assert not (home / "there").exists()
