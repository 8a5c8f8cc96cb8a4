"""The report: a pure, self-contained function of the folder whose words and numbers are those of the results."""

import base64
import hashlib
import html
import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from study.fake_study import make_fake_study

from lookfar.diagnostics import labels_at
from lookfar.study import charts, pictures
from lookfar.study import report as package_report
from lookfar.study.answer import answer, short_names
from lookfar.study.plan import trial_folder
from lookfar.study.report import LIMIT, render, write_report
from lookfar.study.results import load
from lookfar.study.words import points, signed

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
    for s in load(folder).summaries:
        if s.miou is None:
            continue
        assert f"{points(s.miou.mean, s.miou.half)} ± {points(s.miou.half, s.miou.half)}" in shown
        if s.difference:
            d = s.difference
            assert f"{signed(d.mean, d.half)}{signed(d.low, d.half)} to {signed(d.high, d.half)}" in shown
        assert s.sentence in shown
        assert f"{s.iou[0]:.1f}" in shown


def test_failed_trials_are_shown_with_their_reason(folder, page):
    shown = text_of(page)
    assert "failed TrainingError: the loss is nan at step 412" in shown
    assert "1 of 3 seeds failed" in shown
    assert "4 of 15 trials failed: control and squeeze_excitation." in shown


def test_maps_of_the_explorer_are_those_of_the_trial(folder, text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data = json.loads(found[1])
    block = next(b for b in data["blocks"] if b["name"] == "nonlocal(mode=gaussian)@place")
    sample = pictures.load_samples(trial_folder(folder, block["name"], 0))
    assert sample is not None
    i = sample["name"].tolist().index(data["images"][0]["name"])
    stored = np.frombuffer(base64.b64decode(block["images"][0]["maps"]), np.uint8).reshape(1 + 16, 16)
    low, high = np.array(block["images"][0]["span"]).T
    got = low[:, None] + (high - low)[:, None] * stored / 255
    want = sample["low"][i][:, None] + (sample["high"] - sample["low"])[i][:, None] * sample["map"][i] / 255
    assert np.abs(got[1:] - want).max() < 0.01 * want.max()
    assert got[0] == pytest.approx(want.mean(0), abs=0.02)
    assert block["images"][0]["similarity"] == 0.31


def test_labels_of_queries_are_those_under_their_centres(tmp_path):
    folder = make_fake_study(tmp_path / "labels", seeds=2, blocks=("nonlocal",), images=2, size=(48, 80), grid=(6, 8))
    sample = pictures.load_samples(trial_folder(folder, "nonlocal", 0))
    assert sample is not None
    query = pictures.explorer_block(sample, [1], pictures.Detail())["query"]
    want = labels_at(torch.from_numpy(sample["truth"][1:]), (6, 8))[0]
    assert pictures.labels_near(sample["truth"][1], query) == want.tolist()


def test_one_seed_has_no_verdict(tmp_path):
    folder = make_fake_study(tmp_path / "one", seeds=1, blocks=("nonlocal",), **SMALL)
    said = answer(load(folder))
    assert said.headline == "One seed shows no winner: seed noise was not measured."
    shown = text_of(Page(render(load(folder))))
    assert "seed noise not measured" in shown
    assert "better by" not in shown
    assert "one seed, so without an interval" in shown


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
    said = answer(load(folder))
    assert " gains " in said.headline
    supports = " ".join(said.supports)
    assert "Which of these is the best is open; probability of being it: " in supports
    assert "is not shown to be better than convolutions of" in supports


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
