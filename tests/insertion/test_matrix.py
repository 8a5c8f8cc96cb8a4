"""The questions of `make insertion-table`, for four blocks; the command asks them of every block."""

import pytest
from insertion.matrix import POSITIONS, QUESTIONS, SLOW, TOGETHER, ask, table

BLOCKS = ("nonlocal", "criss_cross", "squeeze_excitation", "expectation_maximization")
PAIRS = [(block, position) for block in BLOCKS for position in POSITIONS]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("block", "position"), PAIRS)
@pytest.mark.parametrize("question", [question for question in QUESTIONS if question not in {*SLOW, *TOGETHER}])
def test_question(question: str, block: str, position: str) -> None:
    ask(question, block, position)


@pytest.mark.slow
@pytest.mark.parametrize("question", TOGETHER)
def test_question_to_other_processes(question: str) -> None:
    """Of all at once: to start the processes takes much longer than to answer."""
    told = dict(zip(PAIRS, TOGETHER[question](PAIRS)))
    assert told == dict.fromkeys(PAIRS, "yes")


@pytest.mark.slow
@pytest.mark.parametrize(("block", "position"), [("nonlocal", "last"), ("squeeze_excitation", "branch")])
@pytest.mark.parametrize("question", sorted(SLOW))
def test_slow_question(question: str, block: str, position: str) -> None:
    if question == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs `pip install lookfar[onnx]`")
    ask(question, block, position)


def test_columns_that_are_not_asked_stay():
    every = dict.fromkeys(QUESTIONS, "yes")
    whole = table({f"{block}@{position}": {**every, "onnx": "no way"} for block, position in PAIRS})
    quick = {question: "yes" for question in QUESTIONS if question not in SLOW}
    assert "- `nonlocal` at `last and branch`, ONNX: no way" in whole
    assert table({f"{block}@{position}": quick for block, position in PAIRS}, whole) == whole
    quick["fx"] = "ValueError"
    changed = table({f"{block}@{position}": quick for block, position in PAIRS}, whole)
    assert changed != whole
    assert "ONNX: no way" in changed
