"""A trial from inside: hosts that candidates share, failures in words."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lookfar.insertion import insertions
from lookfar.study.build import build_host, open_plan_data, put_in
from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan
from lookfar.study.preflight import controls_for, preflight, slow_norms
from lookfar.study.worker import why
from lookfar.training import TrainingError

PLAN = Plan("scenes:lookup", ("nonlocal", "cbam(reduction=4)@layer2"), steps=2).resolved()


@pytest.fixture(scope="module")
def data():
    return open_plan_data(PLAN)


def built(data, text, seed):
    network = build_host(PLAN, data, seed)
    names = put_in(network, PLAN, Candidate.parse(text), data, seed, control_parameters=5000)
    return network, names


def test_candidates_share_host_and_random_state(data):
    host, none = built(data, "baseline", 3)
    drawn = torch.rand(3)
    assert none == []
    for text, place in [("control", "layer4"), ("nonlocal", "layer4"), ("cbam(reduction=4)@layer2", "layer2")]:
        network, names = built(data, text, 3)
        assert torch.equal(torch.rand(3), drawn)  # what is put in takes nothing from the host's generator
        assert [(one.name, one.place) for one in insertions(network)] == [(names[0], f"backbone.{place}")]
        state = network.state_dict()
        for key, value in host.state_dict().items():
            assert torch.equal(state[key], value), (text, key)


def test_seeds_differ_in_host_and_block(data):
    (a, names), (b, _), (again, _) = (built(data, "nonlocal", seed) for seed in (0, 1, 0))

    def differs(module, other):
        pairs = zip(module.parameters(), other.parameters())
        return any(p.ndim > 1 and not torch.equal(p, q) for p, q in pairs)

    block = names[0]
    assert differs(a.backbone, b.backbone)
    assert differs(a.get_submodule(block), b.get_submodule(block))
    assert not differs(a, again)


def test_check_fills_in_and_sizes_the_control():
    checked = preflight(PLAN)
    assert checked.plan.place == "backbone.layer4"
    assert None not in [checked.plan.place, checked.plan.steps, checked.plan.host]
    parameters = checked.facts["parameters"]
    cbam = "cbam(reduction=4)@layer2"
    other = f"control(parameters={parameters[cbam]})@layer2"
    assert list(parameters) == ["baseline", "control", other, "nonlocal", cbam] == list(checked.plan.candidates)
    assert parameters["baseline"] == 0
    # groups of images are found by these, also when a finished study is judged again
    names = checked.facts["data"]["val_names"]
    assert len(names) == checked.facts["data"]["val"]
    assert names[:2] == ["val_0000", "val_0001"]
    assert checked.control_parameters == parameters["nonlocal"]
    assert parameters["control"] == pytest.approx(parameters["nonlocal"], rel=0.05)
    assert 0.5 < parameters[other] / parameters[cbam] < 2


def test_a_budget_too_small_for_any_gate_is_said_before_the_first_step():
    def said(**entries):
        lines = []
        ready = preflight(replace(PLAN, **entries), lines.append)
        return ready.facts["sum_of_learning_rates"], [line for line in lines if "learning rates" in line]

    reach, lines = said(steps=100, lr=1e-3)
    assert reach == pytest.approx(0.05, rel=0.05)  # on average about half of the highest
    (line,) = lines
    assert line.startswith("The learning rates of all steps add up to 0.051. A block comes in by a factor")
    reach, lines = said(steps=2000, lr=1e-2, schedule="poly")
    assert reach > 1
    assert lines == []


@pytest.mark.parametrize(
    ("block", "steps", "share"),
    [
        ("expectation_maximization", 1000, "74 %"),
        ("expectation_maximization(norm_layer=nn.BatchNorm2d)", 1000, None),
        ("expectation_maximization", 20_000, None),
        ("cbam", 100, "37 %"),
        ("cbam", 1000, None),
        ("nonlocal", 5, None),  # its norm is as slow as every norm of the host
    ],
)
def test_norms_that_cannot_follow_are_named(data, block, steps, share):
    candidate, network = Candidate.parse(block), build_host(PLAN, data, 0)
    said = slow_norms(candidate, network, put_in(network, PLAN, candidate, data, 0, control_parameters=0), steps)
    if share is None:
        assert said == ""
    else:
        assert said.startswith(f"{block}: a norm in it moves its statistics by 0.0")
        assert f"after {steps} steps {share} of them are those it started with" in said


def test_norms_that_cannot_follow_are_named_before_the_first_step():
    lines = []
    preflight(replace(PLAN, blocks=("expectation_maximization",), steps=1000), lines.append)
    assert sum("a norm in it" in line for line in lines) == 1


def test_every_size_of_a_place_has_its_control():
    def smallest_267(name, size):
        return max(size, 267)

    blocks = {
        "nonlocal": 8480, "global_context": 653, "cbam": 1300, "channel_attention": 1, "criss_cross": 400,
        "squeeze_excitation@layer2": 5, "double_attention@layer2": 600,
    }  # fmt: skip
    assert controls_for(blocks, smallest_267, {}) == {
        "control": 1,  # and 400
        "control(parameters=653)": 653,  # and 1300
        "control(parameters=8480)": 8480,
        "control(parameters=5)@layer2": 5,
        "control(parameters=600)@layer2": 600,
    }
    assert controls_for({"nonlocal": 8432}, smallest_267, {}) == {"control": 8432}
    assert list(controls_for({"nonlocal@layer2": 8432}, smallest_267, {})) == ["control(parameters=8432)@layer2"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"blocks": ("nonlokal",)}, "Did you mean nonlocal"),
        ({"blocks": ("nonlocal@layer9",)}, "nonlocal@layer9 cannot go into small: .*no place 'layer9'"),
        ({"blocks": ("nonlocal(mode=gausian)",)}, "gausian"),
        ({"blocks": ("nonlocal",), "data": "scenes:looup"}, "scenes"),
        ({"blocks": ("nonlocal",), "host": "smal"}, "small"),
        ({"blocks": ("nonlocal",), "lr": -1.0}, "lr"),
        ({"blocks": ("nonlocal",), "optimizer": "adam"}, "adamw"),
    ],
)
def test_check_refuses_before_the_first_step(entries, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        preflight(Plan(**{"data": "scenes:lookup", "steps": 2, **entries}))


def test_failures_in_words():
    assert why(TrainingError("the loss is nan at step 3")) == "the loss is nan at step 3"
    assert why(torch.OutOfMemoryError("CUDA out of memory.\nTried 3 GiB")).startswith("out of memory: CUDA")
    assert why(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")).startswith("out of memory")
    assert why(ValueError("a\n  b")) == "ValueError: a b"
    assert why(AssertionError()) == "AssertionError"
    assert len(why(ValueError("x" * 1000))) < 400


def test_a_trial_does_not_wait_for_torchmetrics():
    """Fabric imports it for its version; a user's own file may need it all the same."""
    code = (
        "import sys; from lookfar.study.worker import import_fabric; import_fabric(); "
        "assert 'torchmetrics' not in sys.modules; assert 'lightning_fabric' in sys.modules; "
        "import torchmetrics.aggregation"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
