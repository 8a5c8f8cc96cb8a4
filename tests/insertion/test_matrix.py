"""The questions of `make insertion-table`, for a block of four families; the command asks them of every block."""

import pytest
from insertion.matrix import POSITIONS, QUESTIONS, TOGETHER, ask

BLOCKS = ("nonlocal", "criss_cross", "squeeze_excitation", "expectation_maximization")
PAIRS = [(block, position) for block in BLOCKS for position in POSITIONS]
APART = {"checkpointed", "onnx", "exported"}  # asked of fewer: seconds each

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("block", "position"), PAIRS)
@pytest.mark.parametrize("question", [question for question in QUESTIONS if question not in APART | TOGETHER.keys()])
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
@pytest.mark.parametrize("question", sorted(APART))
def test_slow_question(question: str, block: str, position: str) -> None:
    if question == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs `pip install lookfar[onnx]`")
    ask(question, block, position)
