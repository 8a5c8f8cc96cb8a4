"""Claims of papers come out as docs/claims.md says, and the page has them all."""

import re
import shlex
from pathlib import Path

import pytest

from lookfar.claims import EXACT, LARGE, SMALL, claim_of, document, run_claim
from lookfar.claims.trained import data_of, plans_of
from lookfar.study import Plan
from lookfar.study.candidates import Candidate

PAGE = (Path(__file__).parents[1] / "docs/claims.md").read_text(encoding="utf-8")
WORDS = {
    "c3": "refuted",
    "c4": "open",
    "c9": "confirmed",
    "c10": "confirmed",
    "c14": "refuted",
    "c20": "confirmed",
    "c25": "refuted",
    "c26": "refuted",
    "c27": "refuted",
}


@pytest.mark.parametrize("name", EXACT)
def test_outcome(name):
    outcome = run_claim(name)
    assert outcome.word == WORDS[name], outcome.found
    assert f"**{outcome.word}**" in next(line for line in PAGE.splitlines() if line.startswith(f"| {name} "))


def test_the_page_is_what_the_command_writes():
    """But for measured numbers."""
    rows = [line for line in PAGE.splitlines() if re.match(r"\| c\d+ ", line)]
    assert [re.match(r"\| (c\d+)", row)[1] for row in rows] == [*EXACT, *SMALL, *LARGE]
    for name in EXACT:
        claim = claim_of(name)
        assert all(text in PAGE for text in (claim.says, claim.source, claim.refuted_by))
    for name, claim in SMALL.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} "))
        asked, outcome = row.rstrip(" |").rsplit(" | ", 1)
        assert asked == f"| {name} | {claim.says} | {claim.source} | {claim.refuted_by} | {data_of(name)}"
        word = re.match(r"\*\*(confirmed|refuted|open)\*\* on |open: |not run$|partly run: |on ", outcome)
        assert word, outcome
    around = [line for line in document({}).splitlines() if not re.match(r"\| (c\d+|---|scenes)", line)]
    assert [line for line in around if line not in PAGE] == []


@pytest.mark.parametrize(
    ("name", "message"), [("c1", "`lookfar claims c1` says which"), ("c7", "more than a CPU"), ("c99", "claim must be")]
)
def test_what_no_command_decides(name, message):
    with pytest.raises(ValueError, match=message):
        run_claim(name)


@pytest.mark.parametrize("name", SMALL)
def test_plans_of_trainings_can_be_run(name):
    plans = plans_of(name)
    assert plans
    for path in plans:
        plan = Plan.load(path)
        assert [str(Candidate.parse(block)) for block in plan.blocks]
        assert plan.seeds == 3


def test_a_claim_that_takes_trainings_says_which_and_where_results_stand(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("claims", "c6")
    assert code == 0
    *_, command, outcome = out.splitlines()
    assert shlex.split(command)[:2] == ["lookfar", "study"]
    assert Path(shlex.split(command)[2]) == plans_of("c6")[0]
    assert shlex.split(command)[3:] == ["--out", "runs/claims/lookup"]
    assert outcome.strip() == "not run"


def test_a_page_of_some_is_not_written(run, tmp_path):
    code, _, err = run("claims", "c3", "--out", tmp_path / "page.md")
    assert code == 2
    assert "leave the names out" in err
    assert not (tmp_path / "page.md").exists()
