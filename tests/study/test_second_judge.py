"""A second set to judge by: one training, two evaluations, the second never used for anything else."""

import json

import numpy as np
import pytest
from PIL import Image

from lookfar.study import afterwards, load
from lookfar.study._files import write_json
from lookfar.study.ablations import load_ablations
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.report import render
from lookfar.study.results import write_csv
from lookfar.study.worker import run_trial
from lookfar.tasks.segmentation import scores


def save_pair(root, name, seed):
    rng = np.random.default_rng(seed)
    for kind, shape in (("images", (24, 24, 3)), ("masks", (24, 24))):
        (root / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256 if kind == "images" else 2, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(root / kind / f"{name}.png")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A block trained for two steps on frames of three sequences: ``a`` trains, ``b`` and ``c`` judge."""
    root = tmp_path_factory.mktemp("second")
    for n in range(12):
        save_pair(root / "data", f"{'abc'[n // 4]}_{n:02d}", n)
    (root / "data" / "classes.txt").write_text("odd\neven\n")
    plan = Plan(
        str(root / "data"), ("global_context",), seeds=1, steps=2, size=(24, 24), batch_size=2, host="small",
        val="b", also_val="c", in_chans=3,
    ).resolved()  # fmt: skip
    plan.save(root / "study.yaml")
    names = {"val_names": [f"b_{n:02d}" for n in range(4, 8)], "also_val_names": [f"c_{n:02d}" for n in range(8, 12)]}
    write_json(root / "environment.json", {"data": {"classes": ["odd", "even"], **names}})
    for candidate in plan.candidates:
        folder = trial_folder(root, candidate, 0)
        folder.mkdir(parents=True)
        write_json(
            folder / "config.json",
            {"candidate": candidate, "seed": 0, "control_parameters": 50, "plan": plan.to_dict()},
        )
        result = run_trial(folder)
        write_json(folder / "result.json", {"status": "done", "reason": "", **result})
    return root


def matrices(study, candidate, name):
    with np.load(trial_folder(study, candidate, 0) / name) as file:
        return file["confusion"]


def test_each_set_is_judged_by_its_own_masks(study):
    for first, name in ((4, "confusion.npz"), (8, "also.npz")):
        confusion = matrices(study, "global_context", name)
        for n, of_image in enumerate(confusion):
            mask = np.asarray(Image.open(study / "data" / "masks" / f"{'abc'[(first + n) // 4]}_{first + n:02d}.png"))
            assert of_image.sum(1).tolist() == np.bincount(mask.ravel(), minlength=2).tolist()
    counts, reason, *_ = load_ablations(trial_folder(study, "global_context", 0) / "also-ablations.npz")
    assert [of.shape for of in counts.values()] == [(4, 3, 2)] * 5
    assert (counts["off"][:, 1] == matrices(study, "global_context", "also.npz").sum(-1)).all()
    assert reason == ""


def test_both_are_in_tables_report_and_csv(study):
    results = load(study)
    found = results.also.summary("baseline").score.mean
    assert found == pytest.approx(100 * scores(matrices(study, "baseline", "also.npz"))["miou"])
    assert results.summary("baseline").score.mean == pytest.approx(
        100 * scores(matrices(study, "baseline", "confusion.npz"))["miou"]
    )
    assert results.also.also is None
    assert "The same trials on c, 4 images used for nothing else:" in repr(results)
    assert repr(results).count("failure rate") <= 1  # what both share is said once
    assert str(results.also.summary("baseline").score) in repr(results).split("used for nothing else:")[1]
    page = render(results)
    assert "A second set to judge by" in page
    assert "4 images that were used for nothing else" in page
    path = write_csv(results)
    assert repr(found) in path.with_name("also-results.csv").read_text()
    assert repr(found) in path.with_name("also-comparison.csv").read_text()
    assert repr(found) not in path.read_text()


def test_a_study_without_one_says_nothing_of_it(study, tmp_path):
    (tmp_path / "trials").symlink_to(study / "trials")
    values = Plan.load(study / "study.yaml").to_dict() | {"also_val": None}
    Plan.from_dict(values).save(tmp_path / "study.yaml")
    results = load(tmp_path)
    assert results.also is None
    assert "nothing else" not in repr(results) + render(results)


def test_the_second_set_decides_nothing(study, tmp_path):
    """Other masks in it change neither a weight nor a number of the first set."""
    source = trial_folder(study, "global_context", 0)
    write_json(tmp_path / "config.json", json.loads((source / "config.json").read_text()))
    masks = {path: path.read_bytes() for path in (study / "data" / "masks").glob("c_*.png")}
    try:
        for path in masks:
            Image.fromarray(1 - np.asarray(Image.open(path))).save(path)
        run_trial(tmp_path)
    finally:
        for path, before in masks.items():
            path.write_bytes(before)
    assert (tmp_path / "final.safetensors").read_bytes() == (source / "final.safetensors").read_bytes()
    for name, same in (("confusion.npz", True), ("also.npz", False)):
        with np.load(tmp_path / name) as file:
            assert (file["confusion"] == matrices(study, "global_context", name)).all() == same


def test_what_is_missing_is_measured_afterwards_on_both_sets(study):
    plan, folder = Plan.load(study / "study.yaml"), trial_folder(study, "global_context", 0)
    files = [folder / "ablations.npz", folder / "also-ablations.npz"]
    before = [load_ablations(path) for path in files]
    files[1].unlink()
    files[0].write_bytes(files[0].read_bytes()[:100])
    without, timed = afterwards.missing(study, plan)
    assert without == [("global_context", 0)]
    assert {candidate for candidate, _ in timed} == set(plan.candidates)
    try:
        # a damaged file is mended before; here only that weights suffice
        assert afterwards.main(study) == 0
        assert afterwards.missing(study, plan) == ([], [])
        assert set(load(study).latency.of) == set(plan.candidates)
    finally:
        (study / "latency.json").unlink(missing_ok=True)
    for path, (counts, reason, *_) in zip(files, before):
        again, why, *_ = load_ablations(path)
        assert why == reason
        assert all(np.array_equal(again[kind], counts[kind]) for kind in counts)
