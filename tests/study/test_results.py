"""The score, and what is read from a study's folder; intervals and verdicts have test_statistics.py."""

import csv
import html
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lookfar.study import load
from lookfar.study.ablations import save_ablations
from lookfar.study.answer import answer
from lookfar.study.command import report_command
from lookfar.study.latency import Latency, save_latency
from lookfar.study.measured import measure
from lookfar.study.noise import sample_covariance
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.report import render
from lookfar.study.results import write_csv
from lookfar.study.show import next_step
from lookfar.study.text import ABLATED, ratio_words, sentences, table_lines
from lookfar.study.words import ends, points, signed
from lookfar.tasks.segmentation import commonest_class, counts_of, iou_of, mean_iou, scores


def everything(counts):
    return float(mean_iou(counts, np.ones((1, len(counts))))[0])


# ---- the score -------------------------------------------------------------------------------------------------------


def test_miou_is_that_of_training():
    confusion = np.random.default_rng(0).integers(0, 50, (7, 4, 4))
    confusion[:, 3] = confusion[:, :, 3] = 0  # a class that never occurs
    confusion[:, 2] = 0  # one that is only predicted
    assert everything(counts_of(confusion)) == pytest.approx(100 * scores(confusion)["miou"])


def test_a_stray_pixel_costs_a_pixel():
    """Of a class that no mask shows, and of the smallest that one does; 4 000 000 pixels in 10 images."""
    confusion = np.zeros((10, 4, 4), np.int64)
    confusion[:, 0, 0], confusion[:, 1, 1], confusion[:, 0, 1] = 300_000, 90_000, 10_000
    confusion[0, 2, 2] = 20_000  # in one image alone
    before = counts_of(confusion)
    for truth, prediction in ((0, 3), (1, 3), (2, 3)):
        stray = confusion.copy()
        stray[0, truth, truth] -= 1
        stray[0, truth, prediction] += 1
        after = counts_of(stray)
        assert 0 < everything(before) - everything(after) < 0.01
        weights = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=300).astype(float)
        assert np.abs(mean_iou(after, weights) - mean_iou(before, weights)).max() < 0.01
        # and not a little in one resample and everything in another
        assert np.isnan(iou_of(after, weights)[:, 3]).all()


def test_a_resample_without_a_class_leaves_it_out():
    confusion = np.zeros((2, 2, 2), np.int64)
    confusion[0, 0, 0] = 8
    confusion[1] = [[4, 0], [3, 1]]
    got = mean_iou(counts_of(confusion), np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert got == pytest.approx([100, 100 * (4 / 7 + 1 / 4) / 2])


def test_nothing_labelled_has_no_score():
    assert math.isnan(everything(np.zeros((3, 3, 2))))
    assert math.isnan(commonest_class(np.zeros((3, 3, 2))))


def test_the_commonest_class():
    confusion = np.zeros((1, 3, 3), np.int64)
    confusion[0, 0, 0], confusion[0, 1, 0] = 75, 25  # always the first
    assert commonest_class(counts_of(confusion)) == pytest.approx(everything(counts_of(confusion)))


def test_variance_of_a_known_case():
    # one class right or wrong per image: mIoU of two classes is a smooth function of the share right; delta method
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.7
    confusion = np.zeros((400, 2, 2), int)
    confusion[:, 0, 0] = 1000
    confusion[right, 1, 1] = 10
    confusion[~right, 1, 0] = 10
    measured = measure({("a", 0): counts_of(confusion)}, mean_iou, range(400), resamples=4000)
    # IoU of class 1 is the share right: its standard deviation is sqrt(p (1 - p) / n), halved by the mean of two
    p = right.mean()
    assert math.sqrt(sample_covariance(measured.draws, 400)[0, 0]) == pytest.approx(
        50 * math.sqrt(p * (1 - p) / 400), rel=0.1
    )


# ---- a folder --------------------------------------------------------------------------------------------------------


def write_trial(study, candidate, seed, confusion, **result):
    folder = trial_folder(study, candidate, seed)
    folder.mkdir(parents=True)
    values = scores(confusion)
    np.savez_compressed(folder / "confusion.npz", confusion=confusion)
    parameters = {"baseline": 1000, "control": 1530, "nonlocal": 1500}.get(candidate, 1010)
    cost = {
        "parameters": parameters,
        "flops": 2e9,
        "memory_mb": 3.0,
        "seconds": 9.0,
        "step": 10,
    }
    (folder / "result.json").write_text(json.dumps({"status": "done", "reason": "", **values, **cost, **result}))


def confusion_of(accuracy, rng, images=30):
    """Two classes of 100 pixels an image, each right with this probability."""
    right = rng.binomial(100, accuracy, (images, 2))
    confusion = np.zeros((images, 2, 2), np.int64)
    confusion[:, [0, 1], [0, 1]] = right
    confusion[:, [0, 1], [1, 0]] = 100 - right
    return confusion


@pytest.fixture
def study(tmp_path):
    plan = Plan("scenes:lookup", ("nonlocal", "cbam", "criss_cross"), seeds=3)
    plan.save(tmp_path / "study.yaml")
    (tmp_path / "environment.json").write_text(json.dumps({"data": {"classes": ["odd", "even"]}}))
    rng = np.random.default_rng(0)
    for seed in range(3):
        write_trial(tmp_path, "baseline", seed, confusion_of(0.7, rng))
        write_trial(tmp_path, "control", seed, confusion_of(0.7, rng))
        write_trial(tmp_path, "nonlocal", seed, confusion_of(0.9, rng))
        ablated = {"off": counts_of(confusion_of(0.4, rng)), "mean": counts_of(confusion_of(0.8, rng))}
        save_ablations(trial_folder(tmp_path, "nonlocal", seed) / "ablations.npz", ablated, "")
    save_latency(tmp_path, {"baseline": [2.0, 1.0, 4.0], "nonlocal": [3.0, 2.0, 5.0]}, "one thread")
    write_trial(tmp_path, "cbam", 0, confusion_of(0.7, rng))
    folder = trial_folder(tmp_path, "cbam", 1)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "failed", "reason": "out of memory: 3 GiB"}))
    return tmp_path


def test_load_gives_tables(study):
    results = load(study)
    assert len(results.trials) == 5 * 3
    assert [row.candidate for row in results.summaries] == ["nonlocal", "cbam", "criss_cross", "control", "baseline"]
    assert not results.complete
    best = results.summary("nonlocal")
    of_seed = [t.score for t in results.trials if t.candidate == "nonlocal"]
    assert best.score.mean == pytest.approx(np.mean(of_seed))
    assert best.verdict == "better"
    scores = [t.without.off for t in results.trials if t.candidate == "nonlocal"]
    assert best.without.off == pytest.approx(np.mean(scores)) == pytest.approx(25, abs=3)  # IoU of 40 % right
    assert (best.without.other, best.without.reason) == (None, "")
    assert best.latency == Latency(3.0, 2.0, 5.0, 1.5, 1.25, 2.0)  # ratios round by round
    assert results.summary("cbam").latency is None
    assert results.summary("control").verdict == "open"
    assert results.summary("baseline").difference is None
    with pytest.raises(ValueError, match="there are nonlocal"):
        results.summary("other")


def test_differences_are_paired_by_seed(study):
    results = load(study)
    of = {(t.candidate, t.seed): t.score for t in results.trials}
    differences = [of["nonlocal", seed] - of["baseline", seed] for seed in range(3)]
    got = results.summary("nonlocal").difference
    assert got.mean == pytest.approx(np.mean(differences))
    assert got.of_seed == pytest.approx(differences)


def test_failed_and_missing_trials_appear(study):
    results = load(study)
    row = results.summary("cbam")
    assert (row.done, row.failed, row.reason) == (1, 1, "out of memory: 3 GiB")
    assert row.difference.seeds == 1
    assert row.verdict == "seed noise not measured"
    assert (row.once.wins, row.once.seeds) == (int(row.difference.mean > 0), 2)
    row = results.summary("criss_cross")
    assert (row.done, row.failed, row.score, row.difference) == (0, 0, None, None)


def test_csv_has_a_row_a_trial(study):
    results = load(study)
    rows = list(csv.DictReader(write_csv(results).read_text().splitlines()))
    assert len(rows) == 15
    first = rows[0]
    assert (first["candidate"], first["seed"], first["status"]) == ("baseline", "0", "done")
    assert float(first["miou"]) == results.trials[0].score
    assert float(first["iou even"]) == results.trials[0].of_class[1]
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["reason"] == "out of memory: 3 GiB"
    assert failed["miou"] == ""


def test_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study.yaml is missing"):
        load(tmp_path)


def test_gain_over_the_control_is_told(study):
    results = load(study)
    of = {(t.candidate, t.seed): t.score for t in results.trials}
    row = results.summary("nonlocal")
    assert row.over_control.mean == pytest.approx(np.mean([of["nonlocal", s] - of["control", s] for s in range(3)]))
    assert results.summary("control").over_control is None
    assert row.control == "control"
    assert row.against_control.startswith("better than convolutions of the same size (530 parameters) (+")
    assert f", {row.against_control}." in repr(results)
    assert "larger size (530 parameters, the block 10)" in results.summary("cbam").against_control


def test_text_fits_where_it_is_shown(study):
    results = load(study)
    for width in (80, 140):
        lines = table_lines(results.summaries, width, results.task.words)
        assert max(map(len, lines)) <= width
        assert "nonlocal" in lines[1]
    assert len(table_lines(results.summaries, 80, results.task.words)) > len(
        table_lines(results.summaries, 140, results.task.words)
    )
    said = "\n".join(sentences(results.summaries, results.conclusions))
    assert "cbam: " in said
    assert "1 of 2 trials failed (out of memory: 3 GiB)" in said
    off, never = (points(v) for v in (results.summary("nonlocal").without.off, results.summary("baseline").score.mean))
    assert f"Switched off at test time, {off} % mIoU remain; the network that never had it reaches {never}." in said


# ---- what makes a difference uncertain -------------------------------------------------------------------------------


def confusion_with(right):
    """Images whose first class is always right, and whose second is right on this share of 1000 pixels.

    The first class has so many pixels that mIoU is 50 + 50 times the mean share, whatever images are drawn.
    """
    right = np.round(1000 * np.asarray(right)).astype(np.int64)
    confusion = np.zeros((len(right), 2, 2), np.int64)
    confusion[:, 0, 0] = 10**9
    confusion[:, 1, 1], confusion[:, 1, 0] = right, 1000 - right
    return confusion


def study_of(folder, shares):
    """A study of trials with these shares; ``shares`` maps a candidate to one array (images,) a seed."""
    seeds = len(shares["baseline"])
    plan = Plan("scenes:lookup", tuple(name for name in shares if name != "baseline"), seeds=seeds)
    plan.save(folder / "study.yaml")
    for candidate, of_seeds in shares.items():
        for seed, right in enumerate(of_seeds):
            write_trial(folder, candidate, seed, confusion_with(right))
    return load(folder)


def test_images_on_which_seeds_err_in_turn_make_nothing_uncertain(tmp_path):
    """What counts is what images do to all seeds alike, not how much they differ under one of them."""
    first = np.arange(40) % 2
    shares = {"baseline": [np.full(40, 0.4)] * 2, "nonlocal": [first, 1 - first]}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.difference.mean == pytest.approx(5, abs=0.01)
    assert row.difference.half < 0.01
    assert row.difference.low > 0
    assert row.verdict == "first impression"  # two seeds


def test_images_that_are_hard_for_both_make_no_difference_uncertain(tmp_path):
    """The same images are drawn for both sides of a difference."""
    hard = np.arange(40) % 4 / 4
    shares = {"baseline": [hard] * 2, "nonlocal": [hard + 0.1] * 2}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.score.half > 4
    assert row.difference.half < 0.01
    assert row.difference.mean == pytest.approx(5, abs=0.01)


def test_images_that_differ_make_a_difference_uncertain(tmp_path):
    """As an average over images is: half = t(0.975, 99) times its standard error, where seeds agree."""
    gain = np.arange(100) % 2 * 0.4
    shares = {"baseline": [np.full(100, 0.5)] * 2, "nonlocal": [0.5 + gain] * 2}
    row = study_of(tmp_path, shares).summary("nonlocal")
    assert row.difference.half == pytest.approx(1.98422 * 50 * gain.std() / math.sqrt(100), rel=0.1)


def test_intervals_cover_as_often_as_they_say(tmp_path):
    """Seeds shift all images, images have a noise of their own that seeds share: 95 % of intervals hold the truth."""
    rng = np.random.default_rng(2)
    rounds, S, images, truth, seed_sd, image_sd = 100, 3, 40, 0.1, 0.02, 0.06
    covered = 0
    for n in range(rounds):
        hard = 0.5 + 0.1 * rng.standard_normal(images)
        gain = truth + seed_sd * rng.standard_normal(S)[:, None] + image_sd * rng.standard_normal(images)
        (tmp_path / str(n)).mkdir()
        shares = {"baseline": [hard] * S, "nonlocal": np.clip(hard + gain, 0, 1)}
        got = study_of(tmp_path / str(n), shares).summary("nonlocal").difference
        covered += got.low <= 50 * truth <= got.high
    assert covered >= 0.9 * rounds


# ---- one voice -------------------------------------------------------------------------------------------------------


def random_study(folder, rng):
    """Any number of blocks, seeds, images and groups; trials that failed or are missing, classes without truth."""
    blocks = ("nonlocal", "cbam", "criss_cross", "squeeze_excitation")[: rng.integers(1, 5)]
    seeds, images, K = (int(rng.integers(1, most)) for most in (5, 9, 4))
    plan = Plan("scenes:lookup", blocks, seeds=seeds, margin=float(rng.choice([0.0, 0.5, 5.0])), groups=r"^[a-z]")
    plan.save(folder / "study.yaml")
    names = [f"{'ab'[i % int(rng.integers(1, 3))]}{i}" for i in range(images)]
    data = {"classes": [f"class {k}" for k in range(K)], "val_names": names}
    (folder / "environment.json").write_text(json.dumps({"data": data}))
    truth = rng.integers(0, 60, (images, K)) * (rng.random((images, K)) < 0.7)
    for candidate in plan.candidates:
        shift = rng.normal(0, rng.choice([0, 0.1]))
        for seed in range(seeds):
            fate = rng.random()
            if fate < 0.06:
                continue
            if fate < 0.12:
                path = trial_folder(folder, candidate, seed)
                path.mkdir(parents=True)
                (path / "result.json").write_text(json.dumps({"status": "failed", "reason": "it diverged"}))
                continue
            share = np.clip(0.6 + shift + rng.choice([0, 0.02]) * rng.standard_normal((images, K)), 0, 1)
            confusion = np.zeros((images, K, K), np.int64)
            right = np.round(truth * share).astype(np.int64)
            for k in range(K):
                confusion[:, k, k] += right[:, k]
                confusion[:, k, (k + 1) % K] += truth[:, k] - right[:, k]
            write_trial(folder, candidate, seed, confusion)
            state = {"step": 9, "blocks": {"b": {"contribution": float(rng.choice([0.001, 0.3]))}}}
            path = trial_folder(folder, candidate, seed)
            (path / "metrics.jsonl").write_text(json.dumps(state) + "\n")
            if candidate != "baseline" and rng.random() < 0.8:
                ablated = {kind: counts_of(rng.permuted(confusion, axis=2)) for kind in ABLATED if rng.random() < 0.8}
                save_ablations(path / "ablations.npz", ablated, str(rng.choice(["", "it has no maps"])))
    if rng.random() < 0.8:
        timed = [name for name in plan.candidates if rng.random() < 0.9] or ["baseline"]
        save_latency(folder, {name: rng.uniform(1, 9, 3).tolist() for name in timed}, "one thread")


def page_text(page):
    text = html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\N{NO-BREAK SPACE}", " ")
    return re.sub(r"\s+", " ", text)


def test_terminal_report_and_csv_say_the_same(tmp_path):
    """On 60 random studies: every number, every word."""
    rng, verdicts = np.random.default_rng(3), set()
    for n in range(60):
        folder = tmp_path / str(n)
        folder.mkdir()
        random_study(folder, rng)
        results = load(folder)
        rows = {row["candidate"]: row for row in csv.DictReader(_comparison(results).splitlines())}
        terminal, page = repr(results), page_text(render(results))
        for text in (terminal, page, *answer(results).supports):
            assert not re.search(r"\bnan\b|\binf\b", text), text
        for line in results.conclusions.sentences:
            assert line in terminal
            assert line in page
        for row in results.summaries:
            verdicts.add(row.verdict)
            of_csv = rows[row.candidate]
            assert of_csv["said"] == row.said
            assert of_csv["study"] == " ".join(results.conclusions.sentences)
            assert row.said in re.sub(r"\s+", " ", terminal)
            assert row.said.removeprefix("failed: ").removesuffix(".") in page
            if row.score is None:
                continue
            assert str(row.score) in terminal
            assert str(row.score) in page
            assert float(of_csv["miou"]) == row.score.mean
            for kind, title in ABLATED.items():
                value = getattr(row.without, kind)
                assert of_csv[title] == ("" if value is None else repr(value))
                if value is not None:
                    assert points(value) in page
            if row.told is not None:
                assert f"{row.candidate}: {row.told}" in terminal
                assert re.sub(r"\s+", " ", str(row.told)).removesuffix(".") in page
                assert (of_csv["needs"], of_csv["needs, said"]) == (row.told.word, row.told.why)
            if row.latency is not None:
                assert of_csv["ms"] == repr(row.latency.ms)
                assert ratio_words(row.latency) in terminal
                assert ratio_words(row.latency) in page or row.candidate == "baseline"
                assert str(results.latency) in page
            if row.difference is not None:
                d = row.difference
                assert str(d) in terminal
                assert f"{signed(d.mean, d.half)}{' to '.join(ends(d.low, d.high) or ['too wide to show'])}" in page
                assert float(of_csv["difference"]) == d.mean
                assert of_csv["together low"] == ("" if math.isnan(d.low) else repr(d.low))
                assert of_csv["single high"] == ("" if math.isnan(d.single.high) else repr(d.single.high))
                assert row.short in terminal
    assert verdicts >= {
        "better",
        "worse",
        "open",
        "practically the same",
        "first impression",
        "seed noise not measured",
    }


def _comparison(results):
    return (write_csv(results).with_name("comparison.csv")).read_text()


def test_judging_otherwise_trains_nothing(study, capsys):
    """Margin and groups are entries of the plan that no trial depends on."""
    environment = {"data": {"classes": ["odd", "even"], "val_names": [f"s{i % 3}_{i}" for i in range(30)]}}
    (study / "environment.json").write_text(json.dumps(environment))
    assert load(study).conclusions.groups.number == 30  # embedded scenes have no sequences
    report_command(study, margin=50.0, groups=r"^s\d")
    results = load(study)
    assert results.conclusions.groups.number == 3
    assert results.summary("control").verdict == "practically the same"
    assert "seeds alone: between" in repr(results)
    report_command(study, groups="^s")
    results = load(study)
    assert results.conclusions.groups.number == 1
    for row in results.summaries:
        assert row.difference is None or "on this one group of images" in row.sentence
    assert answer(results).headline.startswith("nonlocal gains ")
    assert "on this one group of images" in answer(results).headline
    with pytest.raises(ValueError, match="finds nothing in the image 's0_0'"):
        report_command(study, groups="x")
    assert Plan.load(study / "study.yaml").groups == "^s"
    assert Plan.load(study / "study.yaml").blocks == ("nonlocal", "cbam", "criss_cross")


def test_camvid_has_sequences(study):
    plan = Plan("camvid:data", ("nonlocal", "cbam", "criss_cross"), seeds=3)
    plan.save(study / "study.yaml")
    names = [f"0016E5_{i:05d}" for i in range(30)]
    (study / "environment.json").write_text(json.dumps({"data": {"classes": ["a", "b"], "val_names": names}}))
    results = load(study)
    assert str(results.conclusions.groups) == "1 sequence"
    assert "better on this one sequence" in repr(results)
    assert "on this one sequence" in answer(results).headline


def test_nothing_learned_is_said(tmp_path):
    plan = Plan("scenes:lookup", ("nonlocal",), seeds=3)
    plan.save(tmp_path / "study.yaml")
    confusion = np.zeros((5, 2, 2), np.int64)
    confusion[:, 0, 0], confusion[:, 1, 0] = 90, 10
    for candidate in plan.candidates:
        for seed in range(3):
            write_trial(tmp_path, candidate, seed, confusion)
    said = "Nothing was learned: no candidate beats always naming the commonest class (45.0 % mIoU)."
    results = load(tmp_path)
    assert said in repr(results)
    assert answer(results).headline == said
    assert {row["study"] for row in csv.DictReader(_comparison(results).splitlines())} == {said}
    assert next_step(results) == "train longer, in a folder of its own: --steps 4000 --out DIR"


def small_study(folder, labelled):
    """Five images, of which the first few have labels."""
    Plan("photos", ("nonlocal",), seeds=3).save(folder / "study.yaml")
    rng = np.random.default_rng(0)
    for candidate in ("baseline", "control", "nonlocal"):
        for seed in range(3):
            confusion = confusion_of(0.8, rng, images=5)
            confusion[labelled:] = 0
            write_trial(folder, candidate, seed, confusion)
    return load(folder)


def test_the_next_command_can_be_pasted(tmp_path):
    (folder := tmp_path / "ein Ort").mkdir()
    assert next_step(small_study(folder, 5)).endswith(f": lookfar study '{folder}' --seeds 6")
    (trial_folder(folder, "control", 2) / "result.json").unlink()  # `lookfar report` would not make it again
    assert next_step(load(folder)) == f"lookfar study '{folder}' runs what failed or is missing"


@pytest.mark.parametrize(("labelled", "said"), [(1, True), (2, False)])
def test_images_without_a_label_are_none(tmp_path, labelled, said):
    results = small_study(tmp_path, labelled)
    assert ("on this one image" in results.summary("nonlocal").sentence) == said
    assert ("1 image" in str(results.conclusions.groups)) == said


def test_a_block_that_never_came_in_is_told(study):
    for seed, share in enumerate((0.002, 0.019, 0.0)):
        lines = [
            {"step": 5, "blocks": {"b": {"contribution": 0.5}}},
            {"step": 9, "blocks": {"b": {"contribution": share}}},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "blocks": {"b"'  # torn
        (trial_folder(study, "nonlocal", seed) / "metrics.jsonl").write_text(text)
    row = load(study).summary("nonlocal")
    about = "this says something about the gate and the budget, not about the block"
    assert row.came_in == f"never came in (at the end it added 1.9 % to its input): {about}"
    assert f"It {row.came_in}." in row.said
    environment = json.loads((study / "environment.json").read_text())
    (study / "environment.json").write_text(json.dumps(environment | {"sum_of_learning_rates": 0.304}))
    said = load(study).summary("nonlocal").came_in
    assert said == f"{row.came_in}; the learning rates of all steps add up to only 0.3"
    (trial_folder(study, "nonlocal", 1) / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert load(study).summary("nonlocal").came_in.startswith("did not come in under 2 of 3 seeds")


def test_a_notebook_shows_the_table_and_its_sentences(study):
    results = load(study)
    shown = results._repr_html_()
    assert shown.count("<tr>") == 1 + len(results.summaries)
    assert all(f">{name}</td>" in shown for name in ("nonlocal", "control (conv)", "baseline"))
    assert all(f"<p>{html.escape(line)}</p>" in shown for line in sentences(results.summaries, results.conclusions))


def test_tables_as_data_frames(study, monkeypatch):
    results = load(study)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    for table, name in (("trials", "results"), ("comparison", "comparison"), ("classes", "classes")):
        rows = results.to_pandas(table)
        with (write_csv(results).parent / f"{name}.csv").open() as file:
            header, *lines = csv.reader(file)
        assert list(rows[0]) == header
        assert len(rows) == len(lines)
    with pytest.raises(ValueError, match="table must be trials, comparison or classes"):
        results.to_pandas("rows")


def test_without_pandas_the_message_says_what_to_install(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas, .*pip install pandas"):
        load(study).to_pandas()
