"""Layers in the place of convolutions, as candidates of a study: the baseline's convolution is their control."""

import json

import pytest
import torch
from image_trees import make_tree, noise

from lookfar.insertion import insertions, remove
from lookfar.study import load
from lookfar.study import run as run_study
from lookfar.study.build import added_parameters, build_host, find_place, open_plan_data, put_in
from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan
from lookfar.study.preflight import preflight
from lookfar.study.trained import load_trial
from lookfar.study.worker import run_trial

LAYERS = ("stand_alone(kernel_size=7)@layer4.conv", "local_relation(kernel_size=7)@layer4.conv")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    masks = [noise(n, 24, 32, top=2) for n in range(8)]
    make_tree(root, masks[:4], val=masks[4:], classes=["even", "odd"])
    return root


def plan_of(photos, *blocks, **entries):
    return Plan(str(photos), blocks, seeds=1, steps=2, batch_size=2, accelerator="cpu", **entries)


def test_a_study_of_layers_is_run_and_judged(photos, tmp_path, monkeypatch):
    def in_this_process(self):
        for trial in self.waiting:
            result = run_trial(trial.folder)
            (trial.folder / "result.json").write_text(json.dumps({"status": "done", **result}))

    monkeypatch.setattr("lookfar.study.running.Scheduler.run", in_this_process)
    run_study(plan_of(photos, *LAYERS, "nonlocal", host="small"), tmp_path / "study", quiet=True)
    results = load(tmp_path / "study")
    parameters = {row.candidate: row.parameters for row in results.summaries}
    controls = [name for name in parameters if name.startswith("control")]
    assert controls == ["control"], "of the block alone"
    convolution = 64 * 64 * 9
    assert parameters[LAYERS[0]] == parameters["baseline"] - convolution + 3 * 64 * 64 + 64 * 7
    for layer in LAYERS:
        row = results.summary(layer)
        assert row.control is None
        assert row.came_in == ""
        assert row.difference.reference == "baseline"
        assert row.without.off is row.without.constant is None, "nothing is left without it"
        assert row.without.other is not None
        assert [rung.kind for rung in row.told.verdict.rungs] == ["other"]
        assert row.flops > 0
    assert results.summary("nonlocal").control == "control"
    network, _, names = load_trial(next(t.folder for t in results.trials if t.candidate == LAYERS[0]))
    assert list(names) == ["backbone.layer4.conv"] == remove(network)


def test_places_may_be_globs(photos):
    text = "stand_alone@layer3.*.conv2"
    ready = preflight(plan_of(photos, text, "local_relation@layer3.*.conv2", host="resnet10t"))
    assert list(ready.plan.candidates) == ["baseline", text, "local_relation@layer3.*.conv2"]
    assert ready.facts["parameters"][text] < 0, "fewer parameters than the convolutions that go"
    data = open_plan_data(ready.plan)
    host = build_host(ready.plan, data, 0)
    states = [build_and_put(host, ready.plan, data, candidate) for candidate in (text, "nonlocal@backbone.layer*")]
    assert states == [
        ["backbone.layer3.0.conv2"],
        ["backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4"],
    ]
    with pytest.raises(ValueError, match=r"the network has no module 'layer9\.\*'"):
        find_place(host, "layer9.*")


def build_and_put(host, plan, data, text):
    names = put_in(host, plan, Candidate.parse(text), data, 0, control_parameters=0)
    assert added_parameters(host, names) != 0
    places = [one.place for one in insertions(host)]
    remove(host)
    return places


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("stand_alone", r"stand_alone cannot go into small: backbone.layer4 is a ConvNormAct: a layer takes the place"),
        ("self_attention", "self_attention is of kind tokens: a study compares blocks that keep .* and layers"),
        ("stand_alone@layer9.*", "the network has no module"),
    ],
)
def test_what_cannot_stand_there_is_said_before_the_first_step(photos, block, says):
    with pytest.raises(ValueError, match=says):
        preflight(plan_of(photos, block, host="small"))


def test_candidates_share_the_host_and_the_random_state(photos):
    plan = plan_of(photos, *LAYERS, host="small").resolved()
    data = open_plan_data(plan)
    want = build_host(plan, data, 3).state_dict()
    drawn = torch.rand(3)
    network = build_host(plan, data, 3)
    put_in(network, plan, Candidate.parse(LAYERS[0]), data, 3, control_parameters=0)
    assert torch.equal(torch.rand(3), drawn)
    same = [key for key, value in network.state_dict().items() if key in want and torch.equal(value, want[key])]
    assert len(same) == len(want) - 1, "all but the convolution's weight"


def test_a_host_on_tokens_may_have_batch_norms(photos):
    plan = plan_of(photos, "self_attention", host="t2t_vit_7", output_stride=16, norm="batch", size=(32, 32)).resolved()
    data = open_plan_data(plan)
    network = build_host(plan, data, 0)
    kinds = {type(module).__name__ for module in network.modules()}
    assert "TokenBatchNorm" in kinds
    assert "LayerNorm" not in kinds
    assert insertions(network) == []
    assert network.train()(data.example(2)).isfinite().all()
    with pytest.raises(ValueError, match="--norm batch is for hosts on tokens: this one has no LayerNorm"):
        build_host(plan_of(photos, "nonlocal", host="small", norm="batch").resolved(), data, 0)
    with pytest.raises(ValueError, match="norm must be None or batch, got 'layer'"):
        plan_of(photos, "nonlocal", norm="layer").resolved()
