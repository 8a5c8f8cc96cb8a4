"""Studies of many candidates: the page folds, and work grows with the number of trials and no faster."""

import builtins
import io
import re
from collections import Counter
from dataclasses import replace

import pytest
from study.fake_study import make_fake_study

from lookfar.study import Plan, load
from lookfar.study import run as run_study
from lookfar.study.processes import RunningTrial
from lookfar.study.progress import Board, make_console
from lookfar.study.report import OPEN, folded, write_report
from lookfar.study.results import write_csv
from lookfar.study.single import run_trial


def blocks(number):
    return [f"nonlocal(reduction={k})" for k in range(1, number + 1)]


@pytest.fixture
def opened(monkeypatch):
    """Counts how often files are opened, by their names."""
    found = Counter()

    def counted(of):
        def call(file, *arguments, **options):
            found[str(file).rpartition("/")[2]] += 1
            return of(file, *arguments, **options)

        return call

    monkeypatch.setattr(io, "open", counted(io.open))
    monkeypatch.setattr(builtins, "open", counted(builtins.open))
    return found


def test_what_is_beyond_the_best_is_folded_and_has_no_pictures(tmp_path):
    study = make_fake_study(tmp_path / "study", blocks=blocks(OPEN + 3), seeds=2, images=2, size=(16, 16), grid=(2, 2))
    page = write_report(study).read_text()
    results = load(study)
    behind = folded([row.candidate for row in results.summaries])
    assert behind == {row.candidate for row in results.summaries[OPEN : OPEN + 3]}
    assert not behind & {"baseline", "control"}
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    table = re.search(r"<tbody>(.*?)</tbody>", sections["comparison"], re.DOTALL)[1]
    rows = re.findall(r'<tr class="([^"]*)">\s*<th scope="row" data-sort="([^"]*)">(.*?)</tr>', table, re.DOTALL)
    assert {name for classes, name, _ in rows if "more" in classes.split()} == behind
    assert len(rows) == OPEN + 5
    for name, row in ((name, row) for _, name, row in rows if name in behind):  # every number is there
        assert f"{results.summary(name).score.mean:.1f}" in re.sub(r"<[^>]*>", "", row)
    drawn = {name: text.count("<figcaption>") for name, text in sections.items() if name in ("curves", "on")}
    assert drawn["curves"] == OPEN + 2
    assert drawn["on"] == OPEN + 1
    assert sections["predictions"].count('<img class="all"') == 2 * (OPEN + 2)
    names = set(re.findall(r"<text class=\"label\"[^>]*><title>([^<]*)", sections["cost"]))
    assert len(names) == OPEN + 2
    assert f"Show all {OPEN + 5} candidates" in page
    few = make_fake_study(tmp_path / "few", blocks=blocks(OPEN), seeds=1, images=2, size=(16, 16), grid=(2, 2))
    page = write_report(few).read_text()
    assert "Show all" not in page
    assert not re.search(r'class="[^"]*\bmore\b', page)


def test_files_are_read_as_often_as_there_are_trials(tmp_path, opened):
    read = []
    for number in (OPEN + 5, 2 * OPEN + 10):
        study = make_fake_study(tmp_path / str(number), blocks=blocks(number), seeds=1, images=2, size=(16, 16))
        opened.clear()
        write_csv(load(study))
        write_report(study)
        read.append(dict(opened))
    for name in ("result.json", "config.json", "confusion.npz", "ablations.npz"):
        assert read[1].get(name, 0) <= 2 * read[0].get(name, 0), name
    for name in ("samples.npz", "metrics.jsonl"):
        assert read[0][name] > OPEN
    assert read[1]["samples.npz"] == read[0]["samples.npz"]  # those of the best alone
    assert sum(read[1].values()) < 2.1 * sum(read[0].values())


def test_a_study_touches_each_trial_as_often_however_many_there_are(fake, opened, tmp_path, monkeypatch):
    touched = []
    out, _ = fake
    for seeds in (2, 4):
        plan = Plan("scenes:lookup", ("nonlocal",), seeds=seeds, steps=2, accelerator="cpu")
        study = tmp_path / str(seeds)
        study.mkdir()
        (study / "wishes.json").write_text("{}")
        opened.clear()
        run_study(plan, study, quiet=True, workers=2)
        touched.append(sum(n for name, n in opened.items() if name != "stat"))
        opened.clear()
        assert run_trial(plan, study, 3) == 0
        touched.append(sum(opened.values()))
    assert touched[2] < 2.1 * touched[0]
    assert touched[3] == touched[1]  # a trial of an array job looks at no other


def test_the_time_left_is_known_with_hundreds_to_come(tmp_path):
    plan = replace(Plan("scenes:lookup", ("nonlocal",)).resolved(), steps=10)
    trials = [RunningTrial(f"c{n}", 0, tmp_path, n) for n in range(500)]
    board = Board(make_console(quiet=True))
    board.expect(plan, 5, {"c0": 2.0})
    assert board._left([], trials) == pytest.approx(500 * 2.0 / 5)
