"""A trial's block gives way to a cheaper one where the score allows it, and to none where it does not."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lookfar.blocks import block_info
from lookfar.data.fingerprint import fingerprint
from lookfar.study import Plan, load, load_trial
from lookfar.study.build import build_host, open_plan_data, put_in
from lookfar.study.candidates import Candidate
from lookfar.study.plan import trial_folder
from lookfar.study.report import write_report
from lookfar.study.rungs import Rung
from lookfar.study.simpler import Tried
from lookfar.study.simplified import simplify
from lookfar.study.simplified_study import table_of, write_trial
from lookfar.tasks import Segmentation
from lookfar.training import evaluate

HERE = Path(__file__).parent
BLOCK = "nonlocal(inner_channels=2, norm_layer=None, scale=False)"


def draw(folder, count):
    """Two sources an image, one for each of what pixels ask; a pixel's label is what its source holds."""
    rng = np.random.default_rng(count)
    for number in range(count):
        asks = rng.integers(0, 2, (10, 12))
        image = np.zeros((10, 12, 3), np.uint8)
        image[..., 0], holds = 255 * asks, rng.integers(0, 2, 2)
        for kind in (0, 1):
            y, x = np.argwhere(asks == kind)[rng.integers((asks == kind).sum())]
            image[y, x, 1:] = 255, 255 * holds[kind]
        for part, array in (("images", image), ("masks", holds[asks].astype(np.uint8))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / part / f"{number:03}.png")


def set_by_hand(network, name, kind):
    """A block that finds the source of every pixel; that averages what all sources hold; or that is not read."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        block, head = network.get_submodule(name), network.backbone.head
        block.query.weight[0, 0] = 9.0 * (kind == "query")
        block.query.bias[1] = 9.0
        block.key.weight[0, 1] = block.key.weight[1, 2] = 1.0
        block.value.weight[0, 3] = block.project.weight[5, 0] = 1.0
        if kind != "off":
            head.weight[0, 5], head.weight[1, 5] = -1.0, 1.0
        head.bias[1] = 0.1  # what an average over all positions does not reach


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study with a trial of each kind as its seed, as far as its files go."""
    home = tmp_path_factory.mktemp("home")
    draw(home / "photos/train", 12)
    draw(home / "photos/val", 24)
    shutil.copy(HERE / "own_pointer.py", home / "own_pointer.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        plan = Plan("photos", (BLOCK,), host="own_pointer.py:build", place="stem", seeds=3, accelerator="cpu", steps=1)
        plan = plan.resolved()
        data, task, study = open_plan_data(plan), plan.find_task(), home / "study"
        study.mkdir()
        plan.save(study / "study.yaml")
        (study / "data.json").write_text(json.dumps(fingerprint(data)))
        for seed, kind in enumerate(("query", "one map", "off")):
            network = build_host(plan, data, seed)
            for candidate in ("baseline", plan.blocks[0]):
                names = put_in(network, plan, Candidate.parse(candidate), data, seed, control_parameters=0)
                if names:
                    set_by_hand(network, names[0], kind)
                config = {"plan": plan.to_dict(), "candidate": candidate, "seed": seed, "control_parameters": 0}
                judged = evaluate(network.eval(), data, task)
                write_trial(study, config, network, names, judged, data, task, 1, "made by hand")
    return home


@pytest.fixture
def there(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    return lambda seed: trial_folder(Path("study"), str(Candidate.parse(BLOCK)), seed), tmp_path / "out"


@pytest.mark.parametrize(
    ("mean", "said"), [(0.31, "loses 0.3 ± 0.2"), (-0.31, "gains 0.3 ± 0.2"), (-0.01, "loses 0.0 ± 0.2")]
)
def test_a_network_that_is_better_without_its_block_gains(mean, said):
    side = {"score": 50.0, "parameters": 2, "flops": 2e6, "ms": 1.0, "memory_mb": 1.0, "block_memory_mb": 0.0}
    facts = {"before": side, "after": side, "groups": "24 images", "margin": 0.5, "errors": None}
    facts["loss"] = {"mean": mean, "low": mean - 0.2, "high": mean + 0.2}
    assert f"It {said} points over 24 images; margin 0.5." in table_of(facts, Segmentation())


def test_a_block_that_needs_its_query_is_refused_with_the_number(there, run):
    (trial, out) = there
    code, said, _ = run("simplify", trial(0), "--out", out)
    assert code == 1
    assert "none (without the block)" in said
    assert "one-map (one map for all queries)" in said
    assert re.search(r"Refused, nothing is written: one-map loses \d\d\.\d ± \d+\.\d points\. --force", said)
    assert not out.exists()
    assert [path for path in out.parent.iterdir() if "out" in path.name] == []
    found = simplify(trial(0), out)
    assert [rung.verdict for rung in found.tried] == ["needed"] * 3
    assert found.tried[-1].loss.low > 10
    assert found.tried[-1].made.errors is not None
    assert found.tried[-1].made.errors.floor > 0.5


@pytest.mark.parametrize(("blind", "said"), [(100.0, True), (0.0, False)])
def test_a_network_that_learned_nothing_is_said(there, monkeypatch, blind, said):
    (trial, out) = there
    monkeypatch.setattr(Segmentation, "blind", lambda self, facts: blind)
    lines = []
    simplify(trial(2), out, to="none", say=lines.append)
    assert any(line.startswith("Nothing was learned that a block could be needed for") for line in lines) == said


def test_an_open_loss_is_told_apart_from_the_margin():
    made = SimpleNamespace(to="average")
    said = str(Tried(made, Rung("uniform", -0.2, -0.92, 0.52, 0.5, 1134), ""))
    assert "open: 0.52 lost at most, margin 0.50; about 1 100 images" in said.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "open: 0.5001 lost" not in str(Tried(made, Rung("uniform", 0.0, -0.5, 0.5001, 0.5), ""))
    assert "equivalent: 0.5 lost at most, margin 0.5" in str(Tried(made, Rung("uniform", 0.0, -0.498, 0.498, 0.5), ""))


def test_what_was_not_needed_is_written_when_forced(there):
    (trial, out) = there
    found = simplify(trial(0), out, force=True)
    assert found.facts["verdict"] == "needed"
    assert found.facts["to"] == "one-map"
    assert load_trial(out).network is not None


def test_one_map_takes_the_place_of_a_block_that_does_not_need_its_query(there, run):
    """The whole way: the command, the folder, the network in it, its report, and simplifying it once more."""
    (trial, out) = there
    before = trial(1), (trial(1) / "result.json").read_bytes()
    code, said, _ = run("simplify", trial(1), "--out", out)
    assert code == 0
    assert before == (trial(1), (trial(1) / "result.json").read_bytes())
    assert "one-map (one map for all queries): +0.0" in said
    assert "equivalent: 0.0 lost at most, margin 0.5" in said
    assert "parameters" in said
    old, new = load_trial(trial(1)), load_trial(out)
    (name,) = new.blocks
    assert block_info(new.network.get_submodule(name)).name == "simplified_nonlocal"
    inputs, _ = next(new.data.val_batches(24))
    with torch.no_grad():
        assert torch.allclose(new.network(inputs), old.network(inputs), atol=1e-5)
    results = load(out)
    assert [row.status for row in results.trials] == ["done"] * 3
    assert results.summaries[0].score == results.summary(str(Candidate.parse(BLOCK))).score
    assert write_report(out).is_file()
    facts = json.loads((out / "simplified.json").read_text())
    assert facts["of"] == {"candidate": str(Candidate.parse(BLOCK)), "seed": 1}
    assert facts["after"]["flops"] < facts["before"]["flops"]
    assert facts["errors"]["fitted"] < 1e-5 < facts["errors"]["average"]
    code, _, err = run("simplify", trial(1), "--out", out)
    assert code == 2
    assert "nothing is overwritten" in err
    with pytest.raises(ValueError, match="simplified_nonlocal cannot become one map"):
        simplify(out, out.with_name("again"))


def test_a_block_that_nothing_reads_is_removed(there):
    (trial, out) = there
    found = simplify(trial(2), out)
    assert found.chosen is found.tried[0]
    assert load_trial(out).blocks == ()
    assert found.facts["after"]["block_memory_mb"] == 0
    assert load(out).summary("baseline").done == 1


def test_global_context_is_learned(there):
    (trial, out) = there
    with pytest.raises(ValueError, match="--steps"):
        simplify(trial(1), out, to="global_context")
    found = simplify(trial(1), out, to="global_context", steps=2, force=True)
    assert found.tried[0].made.errors is not None
    assert list(found.tried[0].made.errors.of) == ["distilled"]
    new = load_trial(out)
    assert block_info(new.network.get_submodule(new.blocks[0])).name == "global_context"


def test_steps_teach_the_copy(there):
    (trial, out) = there
    found = simplify(trial(1), out, to="average", steps=40, label_steps=2, force=True)
    assert found.facts["errors"]["distilled"] != found.facts["errors"]["average"]
    assert found.facts["steps"] == 40
    assert found.facts["label_steps"] == 2


def test_an_average_stays_one_when_it_is_taught_and_is_taught_the_same_each_time(there, monkeypatch):
    """Whatever random numbers the caller is at, and with the plan's weights of classes."""
    (trial, out) = there
    plain, seen = Plan.settings, set()
    monkeypatch.setattr("lookfar.cost.measure_in_turn", lambda networks, _: {name: [1.0, 1.0] for name in networks})
    monkeypatch.setattr(Plan, "settings", lambda plan: replace(plain(plan), class_weights=(1.0, 3.0)))
    learn = Segmentation.learn
    monkeypatch.setattr(
        Segmentation, "learn", lambda *given: seen.add(tuple(given[-1].tolist())) or learn(*given), raising=False
    )
    networks = []
    for number in range(2):
        torch.manual_seed(number)
        simplify(trial(1), out / str(number), to="average", steps=3, label_steps=3, force=True)
        networks.append(load_trial(out / str(number)))
    block = networks[0].network.get_submodule(networks[0].blocks[0])
    assert not block.mask.weight.any()
    assert block.value.weight.any()
    assert seen == {(1.0, 3.0)}
    for one, other in zip(*(network.network.state_dict().values() for network in networks)):
        assert one.equal(other)
    assert json.loads((out / "0/trials/baseline/0/config.json").read_text())["initial_seed"] == 1


def test_a_trial_without_a_block_and_a_folder_without_a_trial(there):
    (_, out) = there
    with pytest.raises(ValueError, match="baseline has no block"):
        simplify(trial_folder(Path("study"), "baseline", 0), out)
    with pytest.raises(FileNotFoundError, match="no trial in"):
        simplify("photos", out)
    with pytest.raises(ValueError, match="is a study: give one of its trials"):
        simplify("study", out)
