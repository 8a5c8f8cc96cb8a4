"""The report: a pure, self-contained function of the folder whose words and numbers are those of the results."""

import base64
import hashlib
import html
import importlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from study.fake_study import make_fake_study

from lookfar.diagnostics import labels_at
from lookfar.study import charts, explorer, pictures
from lookfar.study import report as package_report
from lookfar.study.answer import answer, short_names
from lookfar.study.confusion import confusion, most_confused
from lookfar.study.plan import trial_folder
from lookfar.study.report import LIMIT, render, write_report
from lookfar.study.results import load
from lookfar.study.words import plus_minus, points, signed, signed_plus_minus

SMALL = {"images": 3, "size": (32, 32), "grid": (4, 4)}
NAUGHTY = '<b>"road" & co</b>'


class Page(HTMLParser):
    """Elements with their attributes, and whether every element is closed in order."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def find(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def text_of(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text.replace("\N{NO-BREAK SPACE}", " "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_fake_study(
        tmp_path_factory.mktemp("study") / "odd",
        blocks=("nonlocal(mode=gaussian)@place", "global_context", "squeeze_excitation"),
        classes=("background", NAUGHTY, "</script><script>alert(1)</script>", "even square"),
        failed=[("squeeze_excitation", 0), ("squeeze_excitation", 1), ("squeeze_excitation", 2), ("control", 1)],
        names=["<img src=x onerror=alert(1)>", "../b.png", "c.png"],
        **SMALL,
    )


@pytest.fixture(scope="module")
def text(folder) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_an_answer_in_several_places_has_a_frame_for_each():
    where = np.zeros((8, 8), bool)
    where[0:2, 0:2] = where[6:8, 2:4] = True
    assert explorer._boxes(where) == [[0.0, 0.0, 0.25, 0.25], [0.75, 0.25, 1.0, 0.5]]
    assert explorer._boxes(np.zeros((8, 8), bool)) == []


def test_the_same_folder_gives_the_same_bytes(folder, text):
    assert render(load(folder)) == text
    assert package_report(folder) == folder / "report.html"


def test_well_formed_with_unique_ids(page):
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_comes_from_the_network(text, page):
    for _, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), f"{key}={value!r}"
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert len(text.encode()) < LIMIT


def test_the_policy_lets_only_its_own_script_run(text, page):
    policy = next(a["content"] for a in page.find("meta") if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_names_are_data(text, page):
    assert NAUGHTY not in text
    assert NAUGHTY in text_of(page)
    assert "<script>alert" not in text
    assert "</script><script>alert(1)</script>" in text_of(page)
    assert not [a for a in page.find("img") if a.get("src") == "x"]
    assert len(page.find("script")) == 2


def test_every_picture_has_words(page):
    assert all(a.get("alt") for a in page.find("img"))
    charts_ = [a for a in page.find("svg") if a.get("aria-hidden") != "true" and a.get("role") == "img"]
    assert charts_
    assert all(a.get("aria-label") for a in charts_)


def test_sections_stand_in_the_order_of_a_readers_questions(page):
    ids = [a["id"] for a in page.find("section")]
    assert ids == ["comparison", "cost", "curves", "where", "predictions", "classes", "on", "made"]


def test_numbers_are_those_of_the_results(folder, page):
    shown = text_of(page)
    results = load(folder)
    for s in results.summaries:
        if s.score is None:
            continue
        assert f"{points(s.score.mean, s.score.half)} ± {points(s.score.half, s.score.half)}" in shown
        if s.difference:
            d = s.difference
            assert f"{signed(d.mean, d.half)}{signed(d.low, d.half)} to {signed(d.high, d.half)}" in shown
        assert s.sentence in shown
        assert points(results.by_class[0].scores[s.candidate].mean) in shown


def test_failed_trials_are_shown_with_their_reason(folder, page):
    shown = text_of(page)
    assert "failed TrainingError: the loss is nan at step 412" in shown
    assert "1 of 3 seeds failed" in shown
    assert "4 of 15 trials failed: control and squeeze_excitation." in shown


def data_of(text: str):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_maps_of_the_explorer_are_those_of_every_trial(folder, text):
    data = data_of(text)
    assert data["seeds"] == [0, 1, 2]
    block = next(b for b in data["blocks"] if b["name"] == "nonlocal(mode=gaussian)@place")
    for seed in range(3):
        sample = pictures.load_samples(trial_folder(folder, block["name"], seed))
        assert sample is not None
        i = sample["name"].tolist().index(data["images"][0]["name"])
        of = block["of"][str(seed)][0]
        stored = np.frombuffer(base64.b64decode(of["maps"]), np.uint8).reshape(1, 1 + 16, 16)
        low, high = np.moveaxis(np.array(of["span"]), -1, 0)
        got = low[..., None] + (high - low)[..., None] * stored / 255
        span = (sample["high"] - sample["low"])[i][..., None]
        want = sample["low"][i][..., None] + span * sample["map"][i] / 255
        assert np.abs(got[:, 1:] - want).max() < 0.01 * want.max()
        assert got[:, 0] == pytest.approx(want.mean(1), abs=0.02)
        assert of["similarity"] == [0.31]


def test_files_of_an_earlier_version_are_one_head(folder, text, tmp_path):
    path = trial_folder(folder, "global_context", 0) / "samples.npz"
    with np.load(path) as file:
        old = dict(file)
    for key in ("map", "low", "high", "mean", "mean_low", "mean_high", "share", "mean_share"):
        old[key] = old[key][:, 0]
    (tmp_path / "old").mkdir()
    np.savez_compressed(tmp_path / "old" / "samples.npz", **old)
    got, want = pictures.load_samples(tmp_path / "old"), pictures.load_samples(path.parent)
    assert got is not None
    assert want is not None
    assert all(np.array_equal(got[key], want[key]) for key in want)


def test_labels_of_queries_are_those_under_their_centres(tmp_path):
    folder = make_fake_study(tmp_path / "labels", seeds=2, blocks=("nonlocal",), images=2, size=(48, 80), grid=(6, 8))
    sample = pictures.load_samples(trial_folder(folder, "nonlocal", 0))
    assert sample is not None
    found = explorer.explorer({"nonlocal": {0: sample}}, ["a"], [1], 0, pictures.Detail())
    want = labels_at(torch.from_numpy(sample["truth"][1:]), (6, 8))[0]
    assert list(base64.b64decode(found["images"][0]["truth"])) == want.tolist()
    want = labels_at(torch.from_numpy(sample["prediction"][1:]), (6, 8))[0]
    assert list(base64.b64decode(found["candidates"][0]["predicted"][0][0])) == want.tolist()


def one_sample(truth, prediction, **more):
    """Four queries on a 2x2 map."""
    query = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    truth, prediction = (np.array(v, np.uint8).reshape(1, 2, 2) for v in (truth, prediction))
    given = {"share": [0.9, 0.6, 0.5, 0.4], "chance": [0.1] * 4} | more
    arrays = {k: np.array(v)[None, None] if k in ("share", "found") else np.array(v)[None] for k, v in given.items()}
    return {"truth": truth, "prediction": prediction, "query": query, **arrays}


def test_it_opens_where_the_block_is_right_and_the_baseline_wrong():
    baseline = one_sample([0, 1, 1, 255], [0, 0, 1, 0])
    # the first query has more weight on its own class, and both have it right
    assert explorer.opening(one_sample([0, 1, 1, 255], [0, 1, 1, 1]), baseline, 0)[1] == (0.25, 0.75)
    both_right = explorer.opening(baseline, baseline, 0)
    assert both_right[1] == (0.25, 0.25)
    better = explorer.opening(one_sample([0, 1, 1, 255], [0, 1, 1, 1]), baseline, 0)
    assert better[0] > both_right[0]
    # where the data know what asks, only that is a story
    nan = float("nan")
    asking = one_sample([0, 1, 1, 255], [0, 1, 1, 1], found=[nan, nan, 0.8, nan], found_chance=[nan, nan, 0.1, nan])
    assert explorer.opening(asking, baseline, 0)[1] == (0.75, 0.25)
    # one answer for the whole image: what asks, else the middle
    words = {"truth": np.array(["7"]), "prediction": np.array(["7"])}
    assert explorer.opening(asking | words, baseline | words, 0)[1] == (0.75, 0.25)
    assert explorer.opening(baseline | words, None, 0) == (0.0, (0.75, 0.25))
    wrong = explorer.opening(asking | words | {"prediction": np.array(["3"])}, baseline | words, 0)
    assert explorer.opening(asking | words, baseline | {"prediction": np.array(["3"])}, 0)[0] > wrong[0]


def test_it_opens_with_the_image_that_tells_the_story_under_the_middle_seed(tmp_path):
    folder = make_fake_study(tmp_path / "open", blocks=("nonlocal",), images=11, size=(32, 32), grid=(4, 4))
    results = load(folder)
    data = data_of(render(results))
    scores = sorted((t.score, t.seed) for t in results.trials if t.candidate == "nonlocal")
    assert data["seed"] == scores[1][1]
    block, base = (pictures.load_samples(trial_folder(folder, c, data["seed"])) for c in ("nonlocal", "baseline"))
    assert block is not None
    names = block["name"].tolist()
    told = [explorer.opening(block, base, names.index(image["name"]))[0] for image in data["images"]]
    assert told[data["start"]] == max(told) > told[0]


def test_sentences_say_the_weight_on_the_answer(tmp_path):
    folder = make_fake_study(tmp_path / "told", blocks=("nonlocal",), answers=True, **SMALL)
    html_text = render(load(folder))
    shown = text_of(Page(html_text))
    said = "70 % of a left half’s weight lies on the upper right, 25 % by chance (seeds: 70 %, 70 % and 70 %)."
    assert said in shown
    assert "own class" not in shown
    data = data_of(html_text)
    assert data["images"][0]["answers"] == {"1": [[0.0, 0.5, 0.5, 1.0]]}
    at = data["query"].index(data["images"][data["start"]]["start"])
    assert base64.b64decode(data["images"][data["start"]]["asks"])[at] == 1


def test_without_an_answer_the_own_class_stands_beside_its_size(page):
    assert "62 % of the weight lies on the query’s own class, which makes up 20 % of the positions" in text_of(page)


def test_four_rows_of_predictions_stand_open(tmp_path):
    folder = make_fake_study(tmp_path / "many", blocks=("nonlocal",), maps=False, images=12, size=(32, 32), grid=(4, 4))
    text = render(load(folder))
    start, end = text.index('<section id="predictions">'), text.index('<section id="classes">')
    before, folded = text[start:end].split("<details>")
    assert before.count("<article") == 4
    assert folded.count("<article") == 8
    assert "8 more images" in folded


def test_names_of_blocks_are_never_broken(text):
    whole = re.findall(r'<span class="who">.*?</svg><span>(.*?)</span></span>', text)
    assert "global_context" in whole
    assert "nonlocal<wbr>(mode=gaussian)<wbr>@place" in whole
    assert not [name for name in whole if re.search(r"[\w]<wbr>[\w]", name)]
    headline = re.search(r"<h1.*?>(.*?)</h1>", text)
    assert headline
    assert "<wbr>" not in headline[1]


def test_values_of_curves_are_those_of_the_records(folder, text):
    curves = [json.loads(html.unescape(found)) for found in re.findall(r"data-curves='(.*?)'", text)]
    plot = curves[0]["plots"][0]
    assert plot["title"] == "validation mIoU, %"
    of_seed = []
    for seed in range(3):
        lines = (trial_folder(folder, "nonlocal(mode=gaussian)@place", seed) / "metrics.jsonl").read_text().splitlines()
        of_seed.append({r["step"]: 100 * r["val"]["miou"] for r in map(json.loads, lines) if "val" in r})
    own = plot["series"][0]
    assert own["name"] == ""
    for k, step in enumerate(plot["steps"]):
        assert own["values"][k] == pytest.approx(np.mean([of[step] for of in of_seed]), rel=1e-3)
        assert [seed[k] for seed in own["seeds"]] == pytest.approx([of[step] for of in of_seed], rel=1e-3)


def test_confusions_are_said_and_drawn(folder, text):
    results = load(folder)
    matrix = results.confusion("global_context")
    assert matrix is not None
    share = 100 * matrix[1, 0] / matrix[1].sum()
    assert share > 1
    assert f"<title>{NAUGHTY} taken for background: {share:.0f} %</title>" in html.unescape(text)
    assert results.confusion("squeeze_excitation") is None


def test_of_many_classes_those_that_are_confused_most_are_drawn():
    matrix, names = 100 * np.eye(60, dtype=int), [f"of {k}" for k in range(60)]
    matrix[7, 40], matrix[33, 7], matrix[50, 51] = 60, 30, 90
    share, chosen = most_confused(matrix, names)
    assert share.shape == (20, 20)
    assert {"of 7", "of 40", "of 33", "of 50", "of 51"} <= set(chosen)
    assert chosen == sorted(chosen, key=names.index)
    assert share[chosen.index("of 7"), chosen.index("of 40")] == pytest.approx(100 * 60 / 160)
    assert "of 50 taken for of 51" in confusion(share, chosen, "many")


def test_the_headline_names_flops_and_time(tmp_path):
    folder = make_fake_study(tmp_path / "cost", blocks=("nonlocal",), maps=False, **SMALL)
    results = load(folder)
    block, base = results.summary("nonlocal"), results.summary("baseline")
    assert block.flops
    assert base.flops
    assert block.latency
    assert block.latency.ratio
    flops, time = 100 * (block.flops / base.flops - 1), 100 * (block.latency.ratio - 1)
    assert f"for {flops:.2g} % more FLOPs and {time:.2g} % more time." in answer(results).headline
    # a ratio whose rounds lie on both sides of 1 is no difference
    unclear = replace(block, latency=replace(block.latency, ratio_low=0.97))
    results = replace(results, summaries=tuple(unclear if s is block else s for s in results.summaries))
    assert "more FLOPs and no measurable change in time." in answer(results).headline


def test_one_seed_has_no_verdict(tmp_path):
    folder = make_fake_study(tmp_path / "one", seeds=1, blocks=("nonlocal",), **SMALL)
    said = answer(load(folder))
    assert said.headline == "One seed shows no winner: seed noise was not measured."
    shown = text_of(Page(render(load(folder))))
    assert "seed noise not measured" in shown
    assert "better by" not in shown
    assert "One seed: seed noise was not measured, and no difference is shown." in shown


def test_no_winner_where_the_data_show_none(tmp_path):
    folder = make_fake_study(tmp_path / "same", blocks=("nonlocal", "cbam"), gains={}, **SMALL)
    results = load(folder)
    assert {s.verdict for s in results.summaries if s.difference} == {"open"}
    said = answer(results)
    assert said.headline == "It is open whether 2 blocks help, at 3 seeds."
    supports = " ".join(said.supports)
    assert re.search(r"if the [+−][\d.]+ is real, \d+ to \d+ seeds would show it", supports)
    assert "never came in: this says something about the gate and the budget, not about the block." in supports
    assert "no difference" not in (repr(results) + supports).lower()


def test_overlapping_winners_are_not_ranked_and_the_control_is_named(tmp_path):
    gains = {"nonlocal": 0.15, "cbam": 0.15, "control": 0.15}
    folder = make_fake_study(tmp_path / "two", blocks=("nonlocal", "cbam"), gains=gains, images=16, maps=False)
    results = load(folder)
    said = answer(results)
    assert " gains " in said.headline
    control = results.summary("control").difference
    assert control
    assert said.headline.endswith(f"; plain convolutions {plus_minus(control.mean, control.half)}.")
    supports = " ".join(said.supports)
    assert "Which of these is best is open; probability of being the best: " in supports
    assert "is not shown to be better than convolutions of" in supports
    assert "second set" not in supports


def test_the_second_set_is_beside_what_is_better_on_the_first(tmp_path):
    gains = {"nonlocal": 0.15, "cbam": 0.0}
    results = load(make_fake_study(tmp_path / "two", blocks=("nonlocal", "cbam"), gains=gains, maps=False, **SMALL))
    results = replace(results, plan=replace(results.plan, also_val="test"), also=results)
    gain = results.summary("nonlocal").difference
    assert gain
    assert f"On test, the second set: nonlocal {signed_plus_minus(gain.mean, gain.half)}." in answer(results).supports


def test_unfinished_and_bare_studies_still_make_a_page(tmp_path):
    nothing = [(c, s) for c in ("baseline", "control", "nonlocal") for s in range(2)]
    folder = make_fake_study(tmp_path / "empty", blocks=("nonlocal",), seeds=2, missing=nothing, **SMALL)
    page = Page(render(load(folder)))
    assert "Without a finished baseline nothing can be compared." in text_of(page)
    (folder / "environment.json").unlink()
    assert "Without a finished baseline" in text_of(Page(render(load(folder))))

    folder = make_fake_study(tmp_path / "bare", blocks=("nonlocal",), maps=False, metrics=False, **SMALL)
    for samples in folder.glob("trials/*/*/samples.npz"):
        samples.unlink()
    shown = text_of(Page(render(load(folder))))
    for said in ("No curves were recorded", "No trial has left maps", "No trial has left pictures"):
        assert said in shown


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path):
    folder = make_fake_study(tmp_path / "torn", blocks=("nonlocal",), seeds=2, **SMALL)
    before = render(load(folder))
    for path in folder.glob("trials/*/*/metrics.jsonl"):
        path.write_text(path.read_text() + '{"step": 1001, "lo')
    assert render(load(folder)) == before


def test_too_large_a_report_loses_pictures_not_numbers(folder, monkeypatch):
    whole = render(load(folder))
    module = importlib.import_module("lookfar.study.report")  # the package's own `report` is the function
    monkeypatch.setattr(module, "LIMIT", len(whole) - 20_000)
    smaller = render(load(folder))
    assert len(smaller) < len(whole)
    assert all(html.escape(s.sentence) in smaller for s in load(folder).summaries if s.done)


def test_pictures_of_other_bands_and_large_maps():
    draw = np.random.default_rng(0)
    for bands in (1, 2, 3, 5):
        assert pictures.image_uri(draw.integers(0, 255, (bands, 6, 7), np.uint8)).startswith("data:image/png;base64,")
    assert pictures.image_uri(draw.integers(0, 255, (3, 200, 200), np.uint8)).startswith("data:image/jpeg;base64,")
    colours = pictures.class_colours(["background", *(f"c{i}" for i in range(60))])
    assert len(set(colours)) == 61


def test_names_lose_their_options_only_where_that_is_clear():
    names = short_names(["nonlocal(mode=gaussian)", "nonlocal(mode=dot_product)", "cbam(reduction=4)@layer3"])
    assert list(names.values()) == ["nonlocal(mode=gaussian)", "nonlocal(mode=dot_product)", "cbam"]


def test_labels_of_points_do_not_cover_one_another():
    names = [f"block_{i}" for i in range(8)]
    draw = np.random.default_rng(3)
    places = [(float(x), float(y)) for x, y in draw.uniform((60, 30), (380, 280), (8, 2))]
    labels = charts.place_labels(names, places, [(y - 15, y + 15) for _, y in places], (44, 410, 12, 296))
    boxes = [(a.x, a.y - 10, a.x + charts.CHARACTER * len(a.text), a.y + 4) for a in labels]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-3, 3, [-2, 0, 2]), (0.71, 0.8, [0.72, 0.74, 0.76, 0.78, 0.8])],
)
def test_ticks_are_round(low, high, want):
    assert charts.ticks(low, high, about=5 if low >= 0 else 3) == want
