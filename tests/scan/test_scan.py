"""``lookfar scan``: what is cached is what the network gives, scores are the whole network's, groups, refusals."""

import copy
import functools
import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from image_trees import make_photos
from torch import nn

from lookfar import insert
from lookfar.insertion import insertions
from lookfar.networks import build_network
from lookfar.scan import Row, Scan, scan
from lookfar.scan.features import behind
from lookfar.scan.separating import grouped, least_difference
from lookfar.study import Plan
from lookfar.study._files import read_json, write_json
from lookfar.study.plan import trial_folder
from lookfar.study.worker import run_trial
from lookfar.tasks import Segmentation


class Skipping(nn.Module):
    """Reads what stood before its second layer once more behind it."""

    def __init__(self, skips):
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8))
        self.skips = skips

    def forward(self, x):
        low = self.first(x)
        y = self.second(low).relu()
        return self.last(y + low if self.skips else y)


def test_the_rest_of_a_network_gives_what_the_network_gives_and_its_gradients():
    images, network = torch.randn(2, 3, 9, 7), Skipping(skips=False).eval()
    insert(network, "nonlocal", at="second", example=images)
    (one,) = insertions(network)
    nn.init.ones_(one.module.norm.weight)
    whole, cut = network, behind(copy.deepcopy(network), one.spot, images)
    given = whole.second.forward(whole.first(images))
    calls = []
    cut.network.first.register_forward_hook(lambda *_: calls.append("first"))
    for network in (whole, cut):
        network(images if network is whole else given).square().sum().backward()
    torch.testing.assert_close(cut(given), whole(images))
    weights = [
        dict(n.named_parameters())[f"{p}{one.name}.query.weight"].grad for n, p in ((whole, ""), (cut, "network."))
    ]
    torch.testing.assert_close(*weights)
    assert whole.first.weight.grad.any()
    assert cut.network.first.weight.grad is None  # it was not run


def test_a_network_that_reads_more_is_not_cut():
    images, network = torch.randn(2, 3, 9, 7), Skipping(skips=True).eval()
    wanted = network(images)
    assert behind(network, "second", images) is None
    assert network(images).equal(wanted)


def test_what_gives_several_maps_before_a_place_need_not_run():
    images, network = torch.randn(2, 3, 32, 40), build_network("resnet18", classes=3, output_stride=16).eval()
    wanted, given = network(images), network.head(network.backbone(images)[-1])
    torch.testing.assert_close(behind(network, "head.act", images)(given), wanted)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study's baseline of three steps on pairs of images and masks."""
    home = tmp_path_factory.mktemp("scan")
    make_photos(home / "photos", train=6, val=5)
    plan = Plan(
        str(home / "photos"), ("nonlocal",), seeds=1, steps=3, batch_size=2, host="small", accelerator="cpu"
    ).resolved()
    plan.save(home / "study.yaml")
    for candidate in ("baseline", "nonlocal"):
        config = {"candidate": candidate, "seed": 0, "control_parameters": 50, "plan": plan.to_dict()}
        folder = trial_folder(home, candidate, 0)
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config)
    folder = trial_folder(home, "baseline", 0)
    write_json(folder / "result.json", {"status": "done", "reason": "", **run_trial(folder)})
    return home


@pytest.fixture
def run(run, home, monkeypatch):
    monkeypatch.chdir(home)
    return functools.partial(run, "scan")


def test_scores_are_those_of_the_whole_network(home, monkeypatch):
    trial = trial_folder(home, "baseline", 0)
    before = (trial / "final.safetensors").read_bytes()
    options = {"blocks": ["nonlocal", "squeeze_excitation@layer2"], "places": ["layer3"], "steps": 4}
    random = torch.get_rng_state()
    found = scan(trial, **options)
    assert torch.get_rng_state().equal(random)
    scores = {row.candidate: row.scores for row in found.rows}
    assert scores["nothing"] == pytest.approx([100 * read_json(trial / "result.json")["miou"]] * 2)
    assert len(scores["nonlocal@backbone.layer3"]) == 2
    assert {name.partition("(")[0] for name in scores} == {
        "nothing", "control", "nonlocal@backbone.layer3", "squeeze_excitation@backbone.layer2"
    }  # fmt: skip
    assert any(len({*of, scores["nothing"][0]}) == 3 for of in scores.values())  # blocks learn, seeds differ
    monkeypatch.setattr("lookfar.scan.scanning.behind", lambda *_: None)
    for row in scan(trial, **options).rows:
        assert row.scores == pytest.approx(scores[row.candidate], abs=0.05), row.candidate
    assert (trial / "final.safetensors").read_bytes() == before


@pytest.mark.parametrize(("blind", "said"), [(100.0, True), (0.0, False)])
def test_a_network_that_learned_nothing_is_said(run, monkeypatch, blind, said):
    monkeypatch.setattr(Segmentation, "blind", lambda self, facts: blind)
    code, _, err = run(".", "--blocks", "nonlocal", "--steps", 1, "--seeds", 1)
    assert code == 0, err
    assert ("Nothing was learned that blocks could add to: the network does not beat" in err) == said


def test_the_command_tells_all_and_ends_with_a_study(run, home):
    code, out, err = run(".", "--blocks", "nonlocal,emau", "--steps", 2, "--seeds", 1, "--out", "there")
    assert code == 0, err
    assert "gain in the scan" in out
    assert "One seed tells no candidates apart" in out
    assert "no forecast of a training" in out
    *_, last = out.splitlines()
    assert shlex.split(last)[:2] == ["lookfar", "study"]
    option, blocks, *seeds = shlex.split(last)[3:]
    assert (option, *seeds) == ("--blocks", "--seeds", "3")
    assert {*blocks.split(",")} <= {"nonlocal@backbone.layer4", "expectation_maximization@backbone.layer4"}
    assert Path(shlex.split(last)[2]).resolve() == home
    held = json.loads((home / "there/scan.json").read_text())
    assert {row["candidate"] for row in held["rows"]} >= {"nothing", "nonlocal@backbone.layer4"}
    assert held["least"] is None
    assert "nothing:" in err
    assert "expectation_maximization@backbone.layer4: a norm in it moves its statistics by 0.0003" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([".", "--blocks", ""], "name at least one block"),
        ([".", "--blocks", "nonlocal@layer3,nonlocal", "--places", "layer3"], "the same candidate is named twice"),
        ([".", "--blocks", "stand_alone"], "takes the place of a convolution"),
        ([".", "--blocks", "control"], "compared in any case"),
        ([".", "--blocks", "nonlocal", "--places", "layer9"], "layer9"),
        (["trials/nonlocal/0", "--blocks", "nonlocal"], "give the trial of the baseline"),
        ([".", "--blocks", "nonlocal", "--host", "small"], "host is that of the trial"),
        (["--blocks", "nonlocal"], "give the trial of a baseline, or --data"),
        (["nowhere", "--blocks", "nonlocal"], "no trial in nowhere"),
        ([".", "--blocks", "nonlocal", "--seeds", "0"], "seeds must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2, err
    assert said in " ".join(err.split())
    assert len(err.splitlines()) <= 3


def test_groups_hold_what_seeds_do_not_tell_from_their_first():
    scores = {"a": [80.0, 80.4], "b": [79.9, 80.1], "c": [75.0, 75.4], "d": [70.0, 70.2]}
    least = least_difference(scores)
    assert 0.3 < least < 1
    assert grouped(scores, least) == [["a", "b"], ["c"], ["d"]]
    assert grouped(scores, least, higher=False) == [["d"], ["c"], ["b", "a"]]
    assert grouped(scores, math.nan) == [["a", "b", "c", "d"]]


def test_leaders_are_blocks_that_are_better_than_nothing():
    def of(*rows):
        rows = tuple(Row(name, (1.0, 1.0), 0.0, group) for name, group in rows)
        return Scan(Path(), Path(), "", "", rows, 0.1, 1, 1, 1, 1, None).leaders

    assert of(("control", 1), ("a@x", 1), ("b@x", 1), ("c@x", 2), ("nothing", 3), ("d@x", 4)) == ("a@x", "c@x")
    assert of(("a@x", 1), ("nothing", 2), ("b@x", 2)) == ("a@x",)
    assert of(("nothing", 1), ("a@x", 2), ("b@x", 3)) == ("a@x",)
