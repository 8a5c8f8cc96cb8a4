"""What the command line says of masks reaches the plan, and from there the data."""

import pytest
from image_trees import make_tree, stripes
from typer.testing import CliRunner

from lookfar.cli import app
from lookfar.study import Plan
from lookfar.study.build import open_plan_data


def planned(monkeypatch, *arguments):
    """The plan that a command line makes."""
    plans = []

    def run(plan, *_, **__):
        plans.append(plan)
        raise ValueError("stopped here")

    monkeypatch.setattr("lookfar.study.running.run", run)
    CliRunner().invoke(app, ["study", "--blocks", "nonlocal", *arguments])
    (plan,) = plans
    return plan


@pytest.mark.parametrize(
    "arguments",
    [("--ignore", "11", "--ignore", "12", "--ignore", "13"), ("--ignore", "11,12,13"), ("--ignore", "11-13")],
)
def test_ignore_repeats(tmp_path, monkeypatch, arguments):
    root = make_tree(tmp_path, [stripes(0, 1, 11, 12, 13)] * 2)
    plan = planned(monkeypatch, "--data", str(root), *arguments)
    assert open_plan_data(plan).train[0][1].unique().tolist() == [0, 1, 255]
    again = Plan.from_dict(plan.to_dict())
    assert again == plan


@pytest.mark.parametrize("labels", ["0,128,255", "255,128,0"])
def test_labels_classes_and_exif_are_part_of_the_plan(tmp_path, monkeypatch, labels):
    root = make_tree(tmp_path, [stripes(0, 128, 255)] * 2)
    plan = planned(monkeypatch, "--data", str(root), "--labels", labels, "--classes", "3", "--exif", "apply")
    seen = open_plan_data(plan).train[0][1][0].unique_consecutive().tolist()
    assert seen == [labels.split(",").index(value) for value in ("0", "128", "255")]
    plan.save(tmp_path / "study.yaml")
    assert Plan.load(tmp_path / "study.yaml") == plan
    other = planned(monkeypatch, "--data", str(root), "--labels", "0,128", "--classes", "2")
    names = {name for name, value in plan.to_dict().items() if value != other.to_dict()[name]}
    assert names == {"labels", "classes", "exif"}


def test_colours_on_the_command_line_and_in_a_plan_file(tmp_path, monkeypatch):
    plan = planned(monkeypatch, "--data", "x", "--labels", "#000000,#800000", "--ignore", "7", "--ignore", "#ffffff")
    assert (plan.labels, plan.ignore) == (("#000000", "#800000"), (7, "#ffffff"))
    plan.save(tmp_path / "study.yaml")
    assert Plan.load(tmp_path / "study.yaml") == plan
    (tmp_path / "study.yaml").write_text("data: x\nblocks: nonlocal\nignore: [11, 12]\nlabels: 0,1\n")
    plan = planned(monkeypatch, str(tmp_path / "study.yaml"))
    assert (plan.labels, plan.ignore) == ((0, 1), (11, 12))


@pytest.mark.parametrize("entry", [{"ignore": "a"}, {"labels": [1.5]}, {"labels": [True]}, {"classes": 0}, {"exif": 3}])
def test_entries_of_another_kind_are_refused(entry):
    with pytest.raises(ValueError, match=f"{next(iter(entry))} must be"):
        Plan("x", ("nonlocal",), **entry)
