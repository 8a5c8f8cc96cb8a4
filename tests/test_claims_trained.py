"""What small trainings come to, on studies' folders whose numbers are known."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lookfar.claims import SMALL, document
from lookfar.claims._claim import Answer, word_of
from lookfar.claims.maps import NUMBERS
from lookfar.claims.relations import Pair, among, bears_out, pairs, together
from lookfar.claims.trained import concluded, folder_of, lines_of, outcome_of, plans_of, train
from lookfar.study import load
from lookfar.study.ablations import save_ablations
from lookfar.study.plan import Plan, trial_folder
from lookfar.tasks.segmentation import counts_of, scores

IMAGES = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def confusion_of(percent, rng):
    """Of IMAGES images of two classes, so that the mean IoU is about ``percent``, image by image a little off."""
    right = 2 * percent / (100 + percent)  # IoU r / (2 - r)
    found = np.clip(rng.normal(right, 0.001, (IMAGES, 2)), 0, 1)
    confusion = np.zeros((IMAGES, 2, 2), np.int64)
    confusion[:, [0, 1], [0, 1]] = np.round(1e5 * found)
    confusion[:, [0, 1], [1, 0]] = 1e5 - confusion[:, [0, 1], [0, 1]]
    return confusion


def ran(name, levels, *, spread=0.02, seeds=3, stem=None, missing=(), failed=(), **entries):
    """The studies of a claim as they lie when run: ``levels`` are the candidates' scores, others stand at 80."""
    for path in plans_of(name):
        if stem is not None and path.stem != stem:
            continue
        asked = Plan.load(path)
        plan = dataclasses.replace(asked, seeds=seeds, **entries).resolved()
        folder = folder_of(asked)
        if folder.is_dir():  # a study grows
            before = Plan.load(folder / "study.yaml")
            plan = dataclasses.replace(plan, blocks=tuple(dict.fromkeys([*before.blocks, *plan.blocks])))
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / "study.yaml")
        for at, candidate in enumerate(plan.candidates):
            for seed in range(seeds):
                trial, rng = trial_folder(folder, candidate, seed), np.random.default_rng([at, seed])
                if trial.is_dir() or (candidate, seed) in missing:
                    continue
                trial.mkdir(parents=True)
                if (candidate, seed) in failed:
                    (trial / "result.json").write_text(json.dumps({"status": "failed", "reason": "nan"}))
                    continue
                level = levels.get(candidate, 80.0) + spread * rng.standard_normal()
                confusion = confusion_of(level, np.random.default_rng(seed))
                np.savez_compressed(trial / "confusion.npz", confusion=confusion)
                result = {"status": "done", "reason": "", "parameters": 1000, "step": plan.steps, **scores(confusion)}
                (trial / "result.json").write_text(json.dumps(result))


# ---- one relation, one word ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "of"),
    # intervals: better, just better, same, open upwards, wide, open downwards, just worse, worse, beyond, far beyond
    [
        ("better than", [True, False, False, None, None, False, False, False, True, False]),
        ("no better than", [False, True, True, None, None, True, True, True, False, True]),
        ("no worse than", [True, True, True, True, None, None, True, None, True, False]),
        ("practically the same as", [None, True, True, None, None, None, True, None, False, False]),
        ("different from", [True, False, False, None, None, None, False, True, True, True]),
    ],
)
def test_an_interval_bears_out_refutes_or_leaves_open(relation, of):
    ends = [
        (0.1, 0.9), (0.1, 0.4), (-0.3, 0.3), (-0.1, 0.9), (-0.9, 0.9), (-0.9, 0.1), (-0.4, -0.1), (-0.9, -0.1),
        (0.6, 0.9), (-0.9, -0.6),
    ]  # fmt: skip
    assert [bears_out(relation, *pair, 0.5) for pair in ends] == of
    assert bears_out(relation, float("nan"), float("nan"), 0.5) is None


@pytest.mark.parametrize(
    ("holds", "every", "some"),
    [
        ([True, True], "confirmed", "confirmed"),
        ([True, None], "open", "confirmed"),
        ([None, False], "refuted", "open"),
        ([True, False], "refuted", "confirmed"),
        ([False, False], "refuted", "refuted"),
        ([None], "open", "open"),
        ([], "open", "open"),
    ],
)
def test_parts_make_one_word(holds, every, some):
    answers = [Answer(of, "") for of in holds]
    assert (word_of(answers), word_of(answers, some=True)) == (every, some)


# ---- claims ----------------------------------------------------------------------------------------------------------

SHARED = "nonlocal(share_query_key=True)"
UNARY, JOINT, PAIRWISE = (f"disentangled_nonlocal(terms={term})" for term in ("unary", "joint", "pairwise"))
ONE, THREE, SIX = (f"expectation_maximization(iterations={n}, norm_layer=BatchNorm2d)" for n in (1, 3, 6))


@pytest.mark.parametrize(
    ("name", "levels", "spread", "word"),
    [
        ("c6", {}, 0.02, "confirmed"),
        ("c6", {"nonlocal": 85}, 0.02, "refuted"),
        ("c6", {}, 2, "open"),
        ("c6", {"nonlocal": 80.5}, 0.02, "open"),  # at the margin
        ("c12", {}, 0.02, "confirmed"),
        ("c12", {SHARED: 85}, 0.02, "confirmed"),
        ("c12", {SHARED: 75}, 0.02, "refuted"),
        ("c12", {SHARED: 75}, 8, "open"),
        ("c2", {UNARY: 83, JOINT: 82, PAIRWISE: 81, "baseline": 78}, 0.02, "confirmed"),
        ("c2", {UNARY: 83, JOINT: 82, PAIRWISE: 81, "baseline": 81}, 0.02, "refuted"),
        ("c2", {UNARY: 82, JOINT: 83, PAIRWISE: 81, "baseline": 78}, 0.02, "refuted"),
        ("c2", {UNARY: 83, JOINT: 82, PAIRWISE: 81, "baseline": 78}, 3, "open"),
        ("c11", {ONE: 70}, 0.02, "confirmed"),
        ("c11", {ONE: 79.8}, 0.02, "refuted"),
        ("c11", {ONE: 70, SIX: 83}, 0.02, "refuted"),
        ("c11", {ONE: 70}, 2, "open"),
        ("c13", {"glore": 85, "latent_gnn": 85}, 0.02, "confirmed"),
        ("c13", {"glore": 85}, 0.02, "refuted"),
        ("c16", {"external_attention": 85, "position_attention": 75}, 0.02, "confirmed"),
        ("c16", {"external_attention": 85, "position_attention": 85}, 0.02, "refuted"),
        ("c21", {"nonlocal": 85, "position_attention": 85}, 0.02, "confirmed"),
        ("c21", {"nonlocal": 85}, 0.02, "refuted"),
        ("c23", {"nonlocal(normalization=sigmoid)": 70}, 0.02, "confirmed"),
        ("c23", {"nonlocal(mode=dot_product)": 85}, 0.02, "confirmed"),
        ("c23", {}, 0.02, "refuted"),
        (
            "c23",
            {"nonlocal(mode=dot_product)": 85, "nonlocal(mode=dot_product, normalization=l1)": 85},
            0.02,
            "refuted",
        ),
        ("c23", {}, 2, "open"),
    ],
)
def test_word_of_a_claim(name, levels, spread, word):
    ran(name, levels, spread=spread)
    outcome = concluded(name)
    assert not isinstance(outcome, str), outcome
    assert outcome.word == word, outcome.found
    assert "scenes:lookup (3 seeds of 1000 steps" in outcome.found


def test_the_numbers_are_those_of_the_study():
    ran("c12", {SHARED: 75})
    results = load("runs/claims/lookup")
    of = {(t.candidate, t.seed): t.score for t in results.trials}
    mean = np.mean([of[SHARED, seed] - of["nonlocal", seed] for seed in range(3)])
    said = outcome_of("c12").partition(f"{SHARED} against nonlocal ")[2]
    low, high = (float(end.replace("−", "-")) for end in re.findall(r"[−+][\d.]+", said)[1:3])
    assert (low + high) / 2 == pytest.approx(mean, abs=0.01)


def test_intervals_of_a_claim_hold_together_and_are_its_own():
    ran("c12", {}, spread=1)
    alone, names = load("runs/claims/lookup"), [SHARED, "nonlocal", "position_attention"]

    def half(results, compared):
        return together(among(results, names), SHARED, "nonlocal", compared).half

    before = half(alone, 2)
    assert half(alone, 1) == pytest.approx(among(alone, names).difference(SHARED, "nonlocal").single.half)
    assert half(alone, 1) < before < half(alone, 6)
    ran("c6", {"nonlocal(mode=gaussian)": 20}, spread=30)  # joins the study, and changes nothing
    grown = load("runs/claims/lookup")
    assert len(grown.plan.blocks) > len(alone.plan.blocks)
    assert half(grown, 2) == before


def test_as_many_differences_hold_together_as_a_claim_has(monkeypatch):
    numbers = []
    monkeypatch.setattr("lookfar.claims.relations.together", lambda *asked: numbers.append(asked[-1]))
    ran("c6", {})
    ran("c12", {})
    concluded("c6"), concluded("c12")
    assert numbers == [6] * 6 + [2] * 2


def test_every_claim_compares_what_its_plans_train():
    for name, claim in SMALL.items():
        trained = {block for path in plans_of(name) for block in Plan.load(path).resolved().candidates}
        asked = () if callable(claim.asks) else claim.asks
        assert {of for pair in asked for of in (pair.first, pair.second)} <= trained, name
        assert len(asked) == len(set(asked))
    assert len(pairs("different from", *"abcd")) == 6
    assert Pair("c", "different from", "d") in pairs("different from", *"abcd")


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_missing_and_failed_trials_decide_nothing():
    assert concluded("c6") == "not run"
    ran("c12", {})  # one of c6 is there with it
    assert concluded("c6") == "partly run: 3 of 12 trials"
    assert concluded("c13") == "not run"
    assert concluded("c12").word == "confirmed"
    shutil.rmtree(trial_folder(folder_of(Plan.load(plans_of("c12")[0])), SHARED, 2))
    assert concluded("c12") == "partly run: 11 of 12 trials"


def test_a_failed_trial_leaves_a_claim_open():
    ran("c12", {}, failed=[(SHARED, 1)])
    assert concluded("c12") == f"open: {SHARED} failed under seed 1"


def test_fewer_seeds_than_asked_are_part_of_a_run():
    ran("c12", {SHARED: 75}, seeds=2)
    assert concluded("c12") == "partly run: 8 of 12 trials"


def test_more_seeds_count():
    ran("c12", {SHARED: 75}, seeds=4)
    assert "(4 seeds" in concluded("c12").found


def test_another_training_is_no_outcome():
    ran("c12", {SHARED: 75}, steps=100)
    assert concluded("c12").startswith("run otherwise than asked (steps: 100 there, 1000 asked for")


def test_another_machine_is_one():
    ran("c12", {SHARED: 75}, threads=2, accelerator="mps")
    assert concluded("c12").word == "refuted"


# ---- maps ------------------------------------------------------------------------------------------------------------


def give_maps(stem, costs, spread=0.05):
    """Ablations of the non-local block: what each rung costs."""
    folder = folder_of(Plan.load(next(path for path in plans_of("c1") if path.stem == stem)))
    for seed in range(3):
        trial, rng = trial_folder(folder, "nonlocal", seed), np.random.default_rng(seed)
        if stem == "c1-red":
            right = rng.random(IMAGES) < 0.9
            np.savez_compressed(trial / "outcomes.npz", label=np.zeros(IMAGES), prediction=np.where(right, 0, 1))
        levels = {kind: 80 - cost + spread * rng.standard_normal() for kind, cost in costs.items()}
        facts = {kind: counts_of(confusion_of(level, np.random.default_rng(seed))) for kind, level in levels.items()}
        save_ablations(trial / "ablations.npz", facts, "", None, ("off", "uniform", "mean", "other"))
        numbers = {"similarity": np.full((IMAGES, 1), 0.25), "label_mass": np.full((IMAGES, 1), 0.5)}
        np.savez_compressed(trial / NUMBERS, **numbers)


NEEDED, ONE_MAP = {"off": 20, "uniform": 15, "mean": 10, "other": 10}, {"off": 20, "uniform": 15, "mean": 0, "other": 0}
UNUSED = {"off": 0, "uniform": 0, "mean": 0, "other": 0}


@pytest.fixture
def two_plans(monkeypatch):
    """c1 on two sets of scenes whose pixels are labelled."""
    of = [path for path in plans_of("c1") if path.stem in ("c1-cue", "c1-lookup")]
    monkeypatch.setattr("lookfar.claims.trained.plans_of", lambda name: of if name == "c1" else plans_of(name))
    ran("c1", {}, stem="c1-cue")
    ran("c1", {}, stem="c1-lookup")


@pytest.mark.parametrize(
    ("cue", "lookup", "word"),
    [
        (ONE_MAP, ONE_MAP, "confirmed"),
        (ONE_MAP, NEEDED, "refuted"),
        (NEEDED, NEEDED, "refuted"),
        (UNUSED, ONE_MAP, "open"),  # a block that nothing is lost without says nothing of maps
    ],
)
def test_one_map_for_all_queries(two_plans, cue, lookup, word):
    give_maps("c1-cue", cue)
    give_maps("c1-lookup", lookup)
    outcome = concluded("c1")
    assert outcome.word == word, outcome.found
    assert "on scenes:cue (3 seeds of 1200 steps): nonlocal " in outcome.found
    text = "\n".join(lines_of("c1"))
    assert "scenes:lookup, nonlocal, seed 2" in text
    assert "similarity" in text
    assert "| scenes:cue, nonlocal, seed 0 |" in document({})


def test_noise_leaves_one_map_open(two_plans):
    give_maps("c1-cue", ONE_MAP, spread=3)
    give_maps("c1-lookup", ONE_MAP)
    assert concluded("c1").word == "open"


def test_a_claim_on_several_data_says_which_are_missing(two_plans):
    shutil.rmtree("runs/claims/cue")
    assert concluded("c1") == "on scenes:cue not run"
    give_maps("c1-lookup", ONE_MAP)
    assert concluded("c1") == "on scenes:cue not run"


def test_one_part_that_does_not_hold_refutes_whatever_is_missing(two_plans):
    shutil.rmtree("runs/claims/cue")
    give_maps("c1-lookup", NEEDED)
    outcome = concluded("c1")
    assert outcome.word == "refuted"
    assert outcome.found.endswith("on scenes:cue not run.")


@pytest.mark.parametrize(
    ("pairwise", "unary", "word"), [(2, 2, "confirmed"), (2, 0.5, "refuted"), (0.9, 2, "refuted"), (1, 2, "open")]
)
def test_maps_on_classes_and_borders(tmp_path, monkeypatch, pairwise, unary, word):
    monkeypatch.setattr(Plan, "resolved", lambda plan: plan)  # its data are not there
    ran("c5", {}, steps=10, task="segmentation")
    monkeypatch.setattr("lookfar.claims.trained._otherwise", lambda made, asked: "")
    for seed in range(3):

        def about(level, seed=seed):
            values = np.random.default_rng(seed).normal(level, 0.1, IMAGES)
            values -= values.mean() - level - 0.01 * (seed - 1)
            values[3] = np.nan  # an image without that label
            return values

        far = np.full(IMAGES, np.nan)  # what is not asked of that map
        for name, label, boundary in (
            ("disentangled_nonlocal(terms=pairwise)", [about(2)], [far]),
            ("disentangled_nonlocal(terms=unary)", [far], [about(unary)]),
            ("disentangled_nonlocal", [about(pairwise), far], [far, about(3)]),
        ):
            trial = trial_folder(tmp_path / "runs/claims/CamVid", name, seed)
            numbers = {"label_lift": np.stack(label, 1), "boundary_lift": np.stack(boundary, 1)}
            np.savez_compressed(trial / NUMBERS, **numbers)
    outcome = concluded("c5")
    assert outcome.word == word, outcome.found
    assert f"disentangled_nonlocal's pairwise map on the query's class {pairwise:.2f} [" in outcome.found
    assert "disentangled_nonlocal's unary map on borders of classes 3.00 [" in outcome.found
    assert outcome.found.count("times chance (seed by seed ") == 4
    assert "times chance (seed by seed 2.99, 3.00, 3.02)" in outcome.found
    for path in (tmp_path / "runs").rglob(NUMBERS):
        path.unlink()  # and the networks are gone
    assert concluded("c5").word == "open"
    assert "on borders of classes not measured" in concluded("c5").found


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_page_has_word_data_and_numbers():
    ran("c12", {SHARED: 75})
    row = next(line for line in document({}).splitlines() if line.startswith("| c12 "))
    assert "| scenes:lookup | **refuted** on scenes:lookup (3 seeds" in row
    assert row.count(" | ") == 5


def test_what_the_page_has_stays_where_trainings_are_not_all_here(run, two_plans, monkeypatch):
    monkeypatch.setattr("lookfar.claims.command.EXACT", ())  # they take seconds
    give_maps("c1-cue", ONE_MAP)
    give_maps("c1-lookup", NEEDED)
    ran("c12", {SHARED: 75})
    before = document({})
    shutil.rmtree(trial_folder(folder_of(Plan.load(plans_of("c12")[0])), SHARED, 2))
    shutil.rmtree("runs/claims/cue")
    assert concluded("c12").startswith("partly run")

    def row(page, start):
        return next((line for line in page.splitlines() if line.startswith(start)), "")

    after = document({}, before)
    assert "**refuted** on scenes:lookup" in row(after, "| c12 ")
    assert row(after, "| c12 ") == row(before, "| c12 ")
    assert row(after, "| scenes:cue, nonlocal, seed 0 |") == row(before, "| scenes:cue, nonlocal, seed 0 |") != ""
    assert after.count("| scenes:lookup, nonlocal, seed 0 |") == 1
    assert "| partly run: " in row(document({}), "| c12 ")
    asked_otherwise = before.replace("serves queries and keys as well as two", "does as well as two")
    assert "| partly run: " in row(document({}, asked_otherwise), "| c12 ")
    Path("page.md").write_text(before, encoding="utf-8")
    assert run("claims", "--out", "page.md")[0] == 0
    assert row(Path("page.md").read_text(encoding="utf-8"), "| c12 ") == row(before, "| c12 ")


def test_rows_of_trials_stay_where_the_folder_of_their_data_has_other_blocks_alone(two_plans):
    give_maps("c1-cue", ONE_MAP)
    give_maps("c1-lookup", NEEDED)
    before = document({})
    for data in ("cue", "lookup"):
        shutil.rmtree(trial_folder(Path("runs/claims") / data, "nonlocal", 0).parent)
    before, after = (
        [
            line
            for line in page.splitlines()
            if line.startswith(("| trained block", "| ---: ", "| --- | ---:", "| scenes:"))
        ]
        for page in (before, document({}, before))
    )
    assert len(before) == 2 + 6
    assert after == before


def test_training_runs_the_missing_studies_in_turn(monkeypatch, capsys):
    started = []

    def run(plan, options, *, out, workers):
        started.append((plan.stem, str(out), workers))
        if plan.stem == "c1-camvid":
            raise FileNotFoundError("no folder data/CamVid")
        return {"c1-cue": 1, "c1-red": 130}.get(plan.stem, 0)

    monkeypatch.setattr("lookfar.study.command.run_command", run)
    assert train(["c6", "c12"], 2) == 0
    assert started == [("c6", "runs/claims/lookup", 2), ("c12", "runs/claims/lookup", 2)]
    started.clear()
    assert train(["c1", "c6"]) == 130, "stopped: what follows is not begun"
    assert [stem for stem, *_ in started] == ["c1-camvid", "c1-cue", "c1-lookup", "c1-red"], "a failed trial stops none"
    out, err = capsys.readouterr()
    assert "plans/c1-red.yaml --out runs/claims/red" in out
    assert err == "lookfar: not run: no folder data/CamVid\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train"], "--train wants claims that need trainings"),
        (["c3", "--train"], "--train wants claims that need trainings"),
        (["c6", "--workers", "2"], "want --train too"),
    ],
)
def test_options_that_do_nothing_are_refused(run, options, message):
    code, _, err = run("claims", *options)
    assert code == 2
    assert message in err
