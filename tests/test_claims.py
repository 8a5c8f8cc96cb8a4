"""Claims of papers come out as docs/claims.md says, and the page has them all."""

import re
from pathlib import Path

import pytest

from lookfar.claims import EXACT, LARGE, SMALL, claim_of, document, run_claim

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
    head, tail = document({}).split("| --- | --- | --- | --- | --- |\n")
    assert PAGE.startswith(head)
    assert PAGE.endswith(tail)


@pytest.mark.parametrize(
    ("name", "message"), [("c1", "a small training"), ("c7", "more than a CPU"), ("c99", "claim must be")]
)
def test_what_no_command_decides(name, message):
    with pytest.raises(ValueError, match=message):
        run_claim(name)


def test_a_page_of_some_is_not_written(run, tmp_path):
    code, _, err = run("claims", "c3", "--out", tmp_path / "page.md")
    assert code == 2
    assert "leave the names out" in err
    assert not (tmp_path / "page.md").exists()
