"""The table of planted faults fits the code as it is; `make mutations` plants them."""

import ast
import re

import pytest
from mutants import MUTANTS
from mutations import ROOT, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.why}")
def test_a_fault_can_be_planted(mutant):
    ast.parse(mutated(mutant))
    named = [word.split("::") for word in mutant.tests.split() if word.startswith("tests/")]
    assert named
    for path, *names in named:
        assert (ROOT / path).exists()
        for name in names:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_is_worth_its_name():
    assert len(MUTANTS) >= 60
    assert len({(m.file, m.before, m.after) for m in MUTANTS}) == len(MUTANTS)
    assert len([m for m in MUTANTS if m.survives]) <= 3, "a fault that no test notices asks for a test"
